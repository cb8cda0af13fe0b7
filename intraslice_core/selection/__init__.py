"""What stays in a module (section 3 of docs/method.md)."""
