"""A real API server for tests: how it is built, started, and brought into every sort of trouble."""
