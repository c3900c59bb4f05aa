"""Grammars: one file per driver or subsystem; each turns its lines into signals."""
