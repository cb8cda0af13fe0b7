"""How much is removed where (section 4 of docs/method.md)."""
