"""Task heads of the IntraSlice decoder, by transformers' generic classes.

This file travels inside the checkpoint: it imports nothing but torch, transformers and the files
beside it. The generic classes create their decoder through `AutoModel`, which would ask whether to
trust the code that is running already; the constructors here create it directly.
"""

from __future__ import annotations

from torch import nn
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from .configuration_intraslice import IntraSliceConfig
from .modeling_intraslice import IntraSliceModel, IntraSlicePreTrainedModel

_DROPOUT = 0.1
"""Dropout before the head of a token classifier, as in transformers."""


class IntraSliceForSequenceClassification(
    GenericForSequenceClassification, IntraSlicePreTrainedModel
):
    """Sequence classifier: `IntraSliceModel` with a head on the last token."""

    def __init__(self, config: IntraSliceConfig) -> None:
        IntraSlicePreTrainedModel.__init__(self, config)
        assert config.num_labels is not None  # set on construction
        self.num_labels = config.num_labels
        self.model = IntraSliceModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


class IntraSliceForTokenClassification(GenericForTokenClassification, IntraSlicePreTrainedModel):
    """Token classifier: `IntraSliceModel` with a head on every token."""

    def __init__(self, config: IntraSliceConfig) -> None:
        IntraSlicePreTrainedModel.__init__(self, config)
        assert config.num_labels is not None  # set on construction
        self.num_labels = config.num_labels
        self.model = IntraSliceModel(config)
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", None) or _DROPOUT)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()  # type: ignore[no-untyped-call]


class IntraSliceForQuestionAnswering(GenericForQuestionAnswering, IntraSlicePreTrainedModel):
    """Extractive question answering: `IntraSliceModel` with a head for start and end."""

    def __init__(self, config: IntraSliceConfig) -> None:
        IntraSlicePreTrainedModel.__init__(self, config)
        self.model = IntraSliceModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()  # type: ignore[no-untyped-call]


__all__ = [
    "IntraSliceForQuestionAnswering",
    "IntraSliceForSequenceClassification",
    "IntraSliceForTokenClassification",
]
