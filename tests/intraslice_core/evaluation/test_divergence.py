"""Divergence of two models compared with its definition, over the whole vocabulary at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from intraslice_core.device import HostMemory
from intraslice_core.errors import NumericalError
from intraslice_core.evaluation import perplexity as module
from intraslice_core.evaluation.divergence import Divergence, DivergenceMeter, HiddenStateRecorder
from intraslice_core.evaluation.perplexity import OutputHead, perplexity
from tests.intraslice_core.tiny_models import (
    VOCAB_SIZE,
    decoder_layers,
    tiny_family_model,
    tiny_model,
)

WINDOW = 20


def models(variant: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return a model, and the same model with disturbed MLPs."""
    pair = [
        tiny_model() if variant == "tied_llama" else tiny_family_model(variant) for _ in range(2)
    ]
    torch.manual_seed(5)
    with torch.no_grad():
        for layer in decoder_layers(pair[1]):
            for parameter in layer.mlp.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return pair[0], pair[1]


def text(count: int) -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(1))


def measured(
    dense: PreTrainedModel,
    compressed: PreTrainedModel,
    tokens: Tensor,
    prefix: tuple[int, ...] = (),
    memory: HostMemory | None = None,
) -> Divergence:
    """Score both models one after the other, as the evaluation does."""
    memory = memory or HostMemory()
    recorder = HiddenStateRecorder(memory, len(tokens))
    settings: dict[str, Any] = {"context_length": WINDOW, "batch_size": 2, "prefix": prefix}
    perplexity(dense, tokens, observer=recorder, **settings)
    meter = DivergenceMeter(recorder.states, OutputHead.of(dense).moved(memory.copy))
    perplexity(compressed, tokens, observer=meter, **settings)
    return meter.divergence()


def by_definition(
    pair: tuple[PreTrainedModel, PreTrainedModel], tokens: Tensor, prefix: tuple[int, ...]
) -> tuple[float, float, float]:
    """Compute divergence, standard error and agreement from the models' own logits in float64.

    Positions that predict a token of the prefix are not counted.
    """
    divergences, agreements = [], []
    step = WINDOW - len(prefix)
    for start in range(0, len(tokens), step):
        window = torch.cat((torch.tensor(prefix, dtype=torch.int64), tokens[start : start + step]))
        with torch.no_grad():
            logits = [model(window[None]).logits[0].double() for model in pair]
        for position in range(max(len(prefix), 1) - 1, len(window) - 1):
            p, q = (torch.softmax(each[position], -1) for each in logits)
            divergences.append((p * (p / q).log()).sum())
            agreements.append(p.argmax() == q.argmax())
    values = torch.stack(divergences)
    stderr = values.std() / len(values) ** 0.5
    return values.mean().item(), stderr.item(), torch.stack(agreements).double().mean().item()


@pytest.mark.parametrize("prefix", [(), (0, 1)])
@pytest.mark.parametrize("variant", ["tied_llama", "gemma2", "granite", "cohere2", "phi"])
def test_divergence_equals_the_full_softmax_of_both_models(variant, prefix, monkeypatch):
    # Gemma 2 caps its logits, Granite and Cohere scale them, Phi's head has a bias.
    monkeypatch.setattr(module, "EVALUATION_LOGITS", 7 * VOCAB_SIZE)
    dense, compressed = models(variant)
    result = measured(dense, compressed, text(50), prefix)
    kl, stderr, agreement = by_definition((dense, compressed), text(50), prefix)
    assert kl > 1e-3
    assert result.kl == pytest.approx(kl, rel=1e-3)
    assert result.kl_stderr == pytest.approx(stderr, rel=1e-3)
    assert result.top1_agreement == pytest.approx(agreement)


def test_divergence_from_itself_is_zero():
    model = tiny_model()
    result = measured(model, tiny_model(), text(50))
    assert result.kl == pytest.approx(0.0, abs=1e-9)
    assert result.kl_stderr == pytest.approx(0.0, abs=1e-9)
    assert result.top1_agreement == 1.0


def test_divergence_is_from_dense_to_compressed():
    dense, compressed = models("tied_llama")
    forward, backward = (
        measured(*pair, text(50)).kl for pair in ((dense, compressed), (compressed, dense))
    )
    assert forward != pytest.approx(backward, rel=1e-3)
    assert forward == pytest.approx(by_definition((dense, compressed), text(50), ())[0], rel=1e-3)


def test_one_position_has_no_standard_error():
    result = measured(*models("tied_llama"), text(2))
    assert result.kl > 0.0
    assert result.kl_stderr is None


def test_infinite_logits_of_the_compressed_model_are_an_error():
    model = tiny_model()
    recorder = HiddenStateRecorder(HostMemory(), 4)
    recorder(torch.ones(4, 48), torch.ones(4, VOCAB_SIZE))
    meter = DivergenceMeter(recorder.states, OutputHead.of(model).moved(torch.clone))
    meter(torch.ones(4, 48), torch.full((4, VOCAB_SIZE), float("inf")).log_softmax(-1))
    with pytest.raises(NumericalError, match="not finite"):
        meter.divergence()


class _Largest(TorchDispatchMode):
    """Sizes of the largest tensor and of the largest block of logits of any operation."""

    elements = logit_rows = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
                # The transposed output head has as many columns.
                if value.ndim == 2 and value.shape[1] == VOCAB_SIZE and value.shape[0] != 48:
                    self.logit_rows = max(self.logit_rows, value.shape[0])
        return result


def test_memory_does_not_grow_with_tokens_times_vocabulary(monkeypatch, tmp_path):
    tokens, rows = text(400), 4
    monkeypatch.setattr(module, "EVALUATION_LOGITS", rows * VOCAB_SIZE)
    dense, compressed = models("tied_llama")
    with _Largest() as largest:
        measured(dense, compressed, tokens)
    assert largest.logit_rows == rows
    assert largest.elements == len(tokens) * 48  # the hidden states


def test_outputs_of_the_dense_model_lie_in_files_that_are_removed(tmp_path: Path):
    pair = models("tied_llama")
    mapped = measured(*pair, text(50), memory=HostMemory(tmp_path))
    assert mapped == measured(*pair, text(50))
    assert list(tmp_path.iterdir()) == []
