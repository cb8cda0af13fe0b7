"""Training after the compression: adapters learn to make up for what was cut, and are merged."""
