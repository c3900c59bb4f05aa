"""The diagnose command as an operator uses it."""
