"""Actions on nodes, in execute mode alone: a model proposes, policy decides, the executor acts, everything is written down.

In `recommend` and `annotate` nothing of this package is constructed.
"""
