"""Hostile input, a quick seed of it; `make fuzz` runs a million."""
