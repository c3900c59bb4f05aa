"""The read-only pages, asked over a real socket."""
