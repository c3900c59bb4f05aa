"""Faults played through the real agent, the real stream and the real store, each compared with the verdict it must get."""
