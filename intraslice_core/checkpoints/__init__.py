"""Checkpoints on disk: sources, readers, the writer, the manifest and the model card."""
