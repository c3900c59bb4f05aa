"""The node agent: reads the hardware's own signals, keeps them in a spool, streams them to the aggregator."""
