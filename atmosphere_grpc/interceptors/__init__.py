"""What holds for every call, one concern a file."""
