"""The project's frame: what lies where, what may be imported, what a missing extra says."""
