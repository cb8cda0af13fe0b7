"""Selection within a module (docs/method.md, section 3): neurons, pairs, value basis, heads."""
