"""What serve and the client commands accept from the environment."""
