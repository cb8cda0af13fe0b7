"""Quality and speed of both models, and verification of the files on disk."""
