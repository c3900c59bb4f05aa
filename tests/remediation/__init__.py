"""Actions on nodes: what policy lets through, and what then happens on a real API server."""
