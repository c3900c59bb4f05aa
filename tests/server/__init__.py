"""Agents' streams and people's questions over real gRPC."""
