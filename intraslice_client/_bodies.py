"""Bodies of the service's responses, imported at their first use.

A command or a script usually parses one of them, and importing all takes longer than its requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intraslice_client._lazy import lazy_names

if TYPE_CHECKING:
    from app.domain.api_key import ApiKey, IssuedKey, KeyList
    from app.domain.audit import AuditList
    from app.domain.comparison import Comparison
    from app.domain.generation import Answer, Generation, GenerationList
    from app.domain.model_catalogue import ModelList
    from app.domain.registry_hand_off import HandOff, HandOffList
    from app.domain.server_path import PathEntry, PathList
    from app.domain.service import Service
    from app.domain.sweep import Sweep, SweepDetails, SweepList
    from app.domain.validation import Validation
    from app.domain.webhook import Delivery, DeliveryList, Webhook, WebhookList, WebhookWithSecret
    from intraslice_core.reports.schema import CompressionReport

__all__ = [
    "Answer",
    "ApiKey",
    "AuditList",
    "Comparison",
    "CompressionReport",
    "Delivery",
    "DeliveryList",
    "Generation",
    "GenerationList",
    "HandOff",
    "HandOffList",
    "IssuedKey",
    "KeyList",
    "ModelList",
    "PathEntry",
    "PathList",
    "Service",
    "Sweep",
    "SweepDetails",
    "SweepList",
    "Validation",
    "Webhook",
    "WebhookList",
    "WebhookWithSecret",
]

NAMES_BY_MODULE = {
    "app.domain.api_key": (
        "ApiKey",
        "IssuedKey",
        "KeyList",
    ),
    "app.domain.audit": ("AuditList",),
    "app.domain.comparison": ("Comparison",),
    "app.domain.generation": (
        "Answer",
        "Generation",
        "GenerationList",
    ),
    "app.domain.model_catalogue": ("ModelList",),
    "app.domain.registry_hand_off": (
        "HandOff",
        "HandOffList",
    ),
    "app.domain.server_path": (
        "PathEntry",
        "PathList",
    ),
    "app.domain.service": ("Service",),
    "app.domain.sweep": (
        "Sweep",
        "SweepDetails",
        "SweepList",
    ),
    "app.domain.validation": ("Validation",),
    "app.domain.webhook": (
        "Delivery",
        "DeliveryList",
        "Webhook",
        "WebhookList",
        "WebhookWithSecret",
    ),
    "intraslice_core.reports.schema": ("CompressionReport",),
}

__getattr__ = lazy_names(__name__, NAMES_BY_MODULE)
