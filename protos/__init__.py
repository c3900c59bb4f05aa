"""The wire contract: what agents, the aggregator and people say to each other. Generated code is committed; see .ci/protos."""
