"""The rule engine: the catalog, what lines mean, what sets of signals mean."""
