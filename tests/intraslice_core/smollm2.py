"""Dimensions of SmolLM2-135M, for tests that need a real model's shapes but no weights."""

from __future__ import annotations

from intraslice_core.plan import ModelGeometry

SMOLLM2 = ModelGeometry(
    num_hidden_layers=30,
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    tie_word_embeddings=True,
)
"""Geometry of SmolLM2-135M."""
