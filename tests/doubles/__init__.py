"""Stand-ins for parts that a test machine lacks."""
