"""What a compression can know before it begins: gradients, and one walk over the dense model."""
