"""The agent as operators and the aggregator meet it."""
