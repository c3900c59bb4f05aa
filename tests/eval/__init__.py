"""Does a model beat the rules: the worlds, the judge, and the command, with scripted models over the real SDK."""
