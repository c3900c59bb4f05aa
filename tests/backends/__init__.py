"""Backends over the wire: the real SDKs against the scripted endpoint."""
