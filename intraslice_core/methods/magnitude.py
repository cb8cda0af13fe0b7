"""Magnitude pruning: the baseline that looks at weights alone and refits nothing."""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod

MAGNITUDE = CompressionMethod(allocator="uniform", targets=("research", "adaptive"))
