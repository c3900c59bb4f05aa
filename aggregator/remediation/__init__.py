"""Acts on a node where policy allows it. In `recommend` and `annotate` nothing of it is constructed."""
