"""Processes are killed at random moments while facts flow; what was said to be stored must be stored, once and in order."""
