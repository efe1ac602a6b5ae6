"""What is configured and how it is doing."""
