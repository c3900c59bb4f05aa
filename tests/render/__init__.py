"""The one renderer of incidents."""
