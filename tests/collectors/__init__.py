"""Collectors of the node agent, on real files, sockets and servers."""
