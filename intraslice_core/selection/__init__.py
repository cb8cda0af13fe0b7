"""What stays in a module (section 3 of algorithm.md)."""
