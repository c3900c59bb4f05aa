"""Absence, told apart from failure: what readers raise and the supervisor understands."""

from __future__ import annotations


class CollectorAbsent(Exception):
    """What a collector would read does not exist on this node. Expected: reported, looked for again later, never an error."""
