"""What the reader makes of text and typed evidence."""
