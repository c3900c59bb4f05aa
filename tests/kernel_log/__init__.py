"""The kernel log, from its bytes to evidence."""
