"""The assessor: revisions, and what counts as a change."""
