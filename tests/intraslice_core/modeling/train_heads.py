"""Training, saving and loading of task heads; importable without the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

AUTO_CLASSES: dict[str, Any] = {
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "question": AutoModelForQuestionAnswering,
}
TOKENS = torch.arange(3, 35).view(2, 16)
LABELS: dict[str, dict[str, torch.Tensor]] = {
    "sequence": {"labels": torch.tensor([0, 2])},
    "token": {"labels": torch.arange(32).view(2, 16) % 3},
    "question": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 4])},
}
HEAD_TENSORS = {"score.weight", "score.bias", "qa_outputs.weight", "qa_outputs.bias"}


def check_all(checkpoint: Path, out: Path, *, trust_remote_code: bool) -> None:
    """Load the decoder with every head, train one step, save, load again and compare."""
    for kind, auto_class in AUTO_CLASSES.items():
        options = {} if kind == "question" else {"num_labels": 3}
        model, loading = auto_class.from_pretrained(
            checkpoint, trust_remote_code=trust_remote_code, output_loading_info=True, **options
        )
        decoder = "transformer." if hasattr(model, "transformer") else "model."
        if decoder == "model.":  # stock question answering names its decoder otherwise
            assert set(loading["missing_keys"]) <= HEAD_TENSORS, loading
            assert set(loading["unexpected_keys"]) <= {"lm_head.weight"}, loading
        before, after = train_step(model, kind)
        assert after < before, (kind, before, after)
        model.save_pretrained(out / kind)
        again = auto_class.from_pretrained(out / kind, trust_remote_code=trust_remote_code)
        torch.testing.assert_close(loss(again.eval(), kind), loss(model.eval(), kind))


def train_step(model: Any, kind: str) -> tuple[float, float]:
    """Return the loss before and after one step of gradient descent on all parameters."""
    model.eval()  # without dropout the loss of the same batch falls
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = loss(model, kind)
    before.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) > 3
    optimizer.step()
    return before.item(), loss(model, kind).item()


def loss(model: Any, kind: str) -> torch.Tensor:
    """Return the loss of the fixed batch."""
    value: torch.Tensor = model(input_ids=TOKENS, **LABELS[kind]).loss
    return value
