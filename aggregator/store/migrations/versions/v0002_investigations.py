"""Investigations, their transcripts and what they spent."""

from __future__ import annotations

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables."""
