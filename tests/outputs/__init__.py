"""The outputs: metrics and log."""
