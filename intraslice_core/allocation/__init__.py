"""How much is removed where (section 4 of algorithm.md)."""
