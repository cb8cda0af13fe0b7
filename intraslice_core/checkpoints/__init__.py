"""Checkpoints on disk: model sources, readers, the writer, the manifest and the model card."""
