"""The files that a target's runtimes read, from a compressed model."""
