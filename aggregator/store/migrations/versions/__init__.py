"""Schema versions, oldest first: never edited, only followed by another."""
