"""The investigator: the choke point, the loop, grounding."""
