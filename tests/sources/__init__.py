"""What an investigation can ask, against the real servers."""
