"""Recovery fine-tuning: low-rank adapters are trained after the compression and merged."""
