"""What a model says to fixed prompts; also the program of a process that has none of our code.

Run as a script this file must load a checkpoint as a stranger would: it imports nothing of ours,
and makes sure that nothing else can.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OUR_PACKAGES = ("intraslice_core", "app", "workers")
POSITIONS = 4
"""Last positions of a prompt whose log-probabilities are kept."""
TOP = 16
"""Likeliest tokens kept of each position."""
GREEDY_TOKENS = 16


class _OursRefused(MetaPathFinder):
    """Comes first on the import path and refuses our packages, however they are installed."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Refuse ours, leave the rest to others."""
        del path, target
        if fullname.partition(".")[0] in OUR_PACKAGES:
            raise ModuleNotFoundError(f"{fullname} is not for a stranger", name=fullname)


def observe(model: Any, prompt: list[int], candidates: list[list[int]] | None) -> dict[str, Any]:
    """Log-probabilities after the last positions of a prompt, and the greedy continuation.

    Args:
        model: a causal language model in evaluation mode.
        prompt: token ids.
        candidates: per position the tokens to report; None takes the likeliest.

    Returns:
        `candidates` and `log_probs` (positions, tokens), `greedy` tokens, and their `margins`:
        by how much each beat the second best.
    """
    with torch.inference_mode():
        output = model(input_ids=_batch(model, prompt), use_cache=True)
        log_probs = _log_probs(output.logits[0, -POSITIONS:])
        top = min(TOP, log_probs.shape[-1])
        wanted = log_probs.topk(top).indices if candidates is None else torch.tensor(candidates)
        greedy, margins = _continue(model, output)
    return {
        "candidates": wanted.tolist(),
        "log_probs": log_probs.gather(-1, wanted).tolist(),
        "greedy": greedy,
        "margins": margins,
    }


def _continue(model: Any, output: Any) -> tuple[list[int], list[float]]:
    """Greedy tokens through the KV cache, and their lead over the second best."""
    greedy: list[int] = []
    margins: list[float] = []
    while True:
        best = _log_probs(output.logits[0, -1:])[0].topk(2)
        greedy.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        if len(greedy) == GREEDY_TOKENS:
            return greedy, margins
        output = model(
            input_ids=_batch(model, greedy[-1:]),
            past_key_values=output.past_key_values,
            use_cache=True,
        )


def _batch(model: Any, tokens: list[int]) -> Tensor:
    """(1, sequence) on the model's device."""
    return torch.tensor([tokens], device=model.device)


def _log_probs(logits: Tensor) -> Tensor:
    """Log-softmax of (rows, vocabulary) in fp32 on the CPU."""
    return torch.log_softmax(logits.float(), dim=-1).cpu()


def _forget_ours() -> None:
    """Make our packages unimportable, and prove it."""
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if not getattr(finder, "__module__", "").startswith("__editable__")
    ]
    sys.meta_path.insert(0, _OursRefused())
    for name in OUR_PACKAGES:
        assert name not in sys.modules, f"{name} was imported before the check began"
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported: the process is not clean")


def _remember_ours(place: str) -> None:
    """Let our packages in again, from the directory that holds them, and register our classes."""
    sys.meta_path[:] = [one for one in sys.meta_path if not isinstance(one, _OursRefused)]
    sys.path.insert(0, place)
    importlib.import_module("intraslice_core.modeling")


def _brings_code(checkpoint: str) -> bool:
    """Whether the configuration names model code beside it."""
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    return "auto_map" in config


def _answer(
    checkpoint: str, reference: dict[str, Any], *, trust_remote_code: bool
) -> list[dict[str, Any]]:
    """Load, answer every prompt; the tokenizer is asked too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        checkpoint, local_files_only=True, trust_remote_code=False
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        dtype=getattr(torch, reference["dtype"]),
        output_loading_info=True,
    )
    model, loading = loaded
    wrong = {kind: sorted(names) for kind, names in loading.items() if names}
    if wrong:
        raise ValueError(f"weights and model do not fit: {wrong}")
    model.to(reference["device"]).train(False)
    answers = []
    for entry in reference["prompts"]:
        answer = observe(model, entry["tokens"], entry["candidates"])
        answer["tokens"] = tokenizer(entry["text"])["input_ids"]
        answers.append(answer)
    return answers


def main() -> None:
    """`fresh_process.py CHECKPOINT REFERENCE ANSWERS PLACE_OF_OURS`.

    First with the checkpoint's own code, if it brings any, and none of ours; then, if it does,
    with our package and none of the checkpoint's code.
    """
    _forget_ours()
    checkpoint, questions, answers, place = sys.argv[1:]
    reference = json.loads(Path(questions).read_text())
    own_code = _brings_code(checkpoint)
    found = {"stranger": _answer(checkpoint, reference, trust_remote_code=own_code)}
    assert not any(name in sys.modules for name in OUR_PACKAGES), "our code came in after all"
    if own_code:
        _remember_ours(place)
        found["package"] = _answer(checkpoint, reference, trust_remote_code=False)
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
