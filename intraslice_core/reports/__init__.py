"""What a run leaves behind in writing."""
