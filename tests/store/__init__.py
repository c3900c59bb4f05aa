"""What is durable, and what the disk or a record cannot take away."""
