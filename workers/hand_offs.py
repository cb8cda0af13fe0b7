"""Hands published checkpoints off, in a thread of the worker's own: jobs go on beside it."""

from __future__ import annotations

from app.services import hand_offs
from app.services.resources import Resources


def hand_off_due(resources: Resources) -> int:
    """One round: at most one hand-off, for it may be large; the number of tries made."""
    due = hand_offs.claim_due(resources)
    if due is None:
        return 0
    hand_offs.perform(resources, due)
    return 1
