"""Version 1 of the wire contract, proto package gcm_sentinel.v1."""
