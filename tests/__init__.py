"""Tests, in folders by behaviour. Nothing of ours is patched: they drive real processes, files, sockets and protocols."""
