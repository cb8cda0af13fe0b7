"""Sensitivity of the dense model's layers: gradients, a pass over the layers, trial cuts."""
