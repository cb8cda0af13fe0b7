"""A model's answers to fixed prompts, and the program of a process without our packages.

Run as a script, this file loads a checkpoint as third-party code would. It imports none of our
packages and makes them unimportable for everything else in the process.
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
"""Number of last prompt positions whose log-probabilities are compared."""
TOP = 16
"""Number of most likely tokens compared at each position."""
GREEDY_TOKENS = 16
"""Number of greedily decoded tokens compared per prompt, fewer in a very short context."""


class _BlockOurPackages(MetaPathFinder):
    """First import finder, which blocks our packages however they are installed."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Raise for our packages and leave all others to the next finder."""
        del path, target
        if fullname.partition(".")[0] in OUR_PACKAGES:
            raise ModuleNotFoundError(
                f"{fullname} is blocked: a checkpoint must load without our packages", name=fullname
            )


def observe(
    model: Any,
    prompt: list[int],
    candidates: list[list[int]] | None,
    greedy_tokens: int = GREEDY_TOKENS,
) -> dict[str, Any]:
    """Compute log-probabilities at the last positions of a prompt, and a greedy continuation.

    Args:
        model: a causal language model in evaluation mode.
        prompt: token ids.
        candidates: tokens to report at each position; None takes the most likely ones.
        greedy_tokens: number of tokens to decode.

    Returns:
        `candidates` and `log_probs` (positions, tokens), `greedy` tokens, and their `margins`: the
        difference in log-probability to the second most likely token.
    """
    with torch.inference_mode():
        output = model(input_ids=_batch(model, prompt), use_cache=True)
        log_probs = _log_probs(output.logits[0, -POSITIONS:])
        top = min(TOP, log_probs.shape[-1])
        tokens = log_probs.topk(top).indices if candidates is None else torch.tensor(candidates)
        greedy, margins = _continue(model, output, greedy_tokens)
    return {
        "candidates": tokens.tolist(),
        "log_probs": log_probs.gather(-1, tokens).tolist(),
        "greedy": greedy,
        "margins": margins,
    }


def _continue(model: Any, output: Any, tokens: int) -> tuple[list[int], list[float]]:
    """Decode greedily with the KV cache; return the tokens and their margins."""
    greedy: list[int] = []
    margins: list[float] = []
    while True:
        best = _log_probs(output.logits[0, -1:])[0].topk(2)
        greedy.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        if len(greedy) == tokens:
            return greedy, margins
        output = model(
            input_ids=_batch(model, greedy[-1:]),
            past_key_values=output.past_key_values,
            use_cache=True,
        )


def _batch(model: Any, tokens: list[int]) -> Tensor:
    """Return the tokens as (1, sequence) on the model's device."""
    return torch.tensor([tokens], device=model.device)


def _log_probs(logits: Tensor) -> Tensor:
    """Return the log-softmax of (rows, vocabulary) in fp32 on the CPU."""
    return torch.log_softmax(logits.float(), dim=-1).cpu()


def _block_our_packages() -> None:
    """Make our packages unimportable and check that they are."""
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if not getattr(finder, "__module__", "").startswith("__editable__")
    ]
    sys.meta_path.insert(0, _BlockOurPackages())
    for name in OUR_PACKAGES:
        assert name not in sys.modules, f"{name} was imported before it was blocked"
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported: the process is not clean")


def _register_our_classes(packages_directory: str) -> None:
    """Unblock our packages and register our model classes."""
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if not isinstance(finder, _BlockOurPackages)
    ]
    sys.path.insert(0, packages_directory)
    importlib.import_module("intraslice_core.modeling")


def _has_own_code(checkpoint: str) -> bool:
    """Return whether the checkpoint's configuration names model code of its own."""
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    return "auto_map" in config


def _is_multimodal(checkpoint: str) -> bool:
    """Return whether the checkpoint is a language model with a vision tower."""
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    return "vision_config" in config


def _load_model(checkpoint: str, dtype: str, *, trust_remote_code: bool) -> Any:
    """Load the model and check that every weight was found and used."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto: Any = AutoModelForImageTextToText if _is_multimodal(checkpoint) else AutoModelForCausalLM
    loaded: Any = auto.from_pretrained(
        checkpoint,
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    model, loading = loaded
    mismatches = {kind: sorted(names) for kind, names in loading.items() if names}
    if mismatches:
        raise ValueError(f"the weight files do not match the model: {mismatches}")
    return model


def _print_step(message: str) -> None:
    """Print a sub-step in the form that `clean_process` reads."""
    sys.stdout.write(f"step: {message}\n")
    sys.stdout.flush()


def _answer(
    checkpoint: str, reference: dict[str, Any], *, trust_remote_code: bool
) -> list[dict[str, Any]]:
    """Load model and tokenizer from the checkpoint and answer every prompt."""
    _print_step("importing transformers")
    from transformers import AutoTokenizer

    _print_step("loading the model")
    tokenizer = AutoTokenizer.from_pretrained(
        checkpoint, local_files_only=True, trust_remote_code=False
    )
    model = _load_model(checkpoint, reference["dtype"], trust_remote_code=trust_remote_code)
    model.to(reference["device"]).train(False)
    answers = []
    for number, entry in enumerate(reference["prompts"], 1):
        _print_step(f"answering prompt {number}/{len(reference['prompts'])}")
        answer = observe(model, entry["prompt"], entry["candidates"], len(entry["greedy"]))
        answer["tokens"] = tokenizer(entry["text"])["input_ids"]
        answers.append(answer)
    return answers


def main() -> None:
    """Run `transformers_process.py CHECKPOINT REFERENCE ANSWERS PACKAGES_DIRECTORY`.

    The checkpoint is loaded without our packages, with its own code if it has any. A checkpoint
    with its own code is then loaded again with our package and without that code.
    """
    _block_our_packages()
    checkpoint, reference_file, answers_file, packages_directory = sys.argv[1:]
    reference = json.loads(Path(reference_file).read_text())
    own_code = _has_own_code(checkpoint)
    answers = {"checkpoint": _answer(checkpoint, reference, trust_remote_code=own_code)}
    imported = [name for name in OUR_PACKAGES if name in sys.modules]
    assert not imported, f"loading the checkpoint imported {imported}"
    if own_code:
        _register_our_classes(packages_directory)
        answers["package"] = _answer(checkpoint, reference, trust_remote_code=False)
    Path(answers_file).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
