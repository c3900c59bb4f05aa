"""The Kubernetes side that comes in, on a real API server."""
