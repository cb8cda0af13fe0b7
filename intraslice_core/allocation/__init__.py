"""Allocation of the parameter budget to layers and modules (docs/method.md, section 4)."""
