"""Whether a model beats the rules: recorded pairs of worlds that look the same until the right question is asked."""
