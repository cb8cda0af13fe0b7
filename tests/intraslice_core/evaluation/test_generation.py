"""Continuation of one prompt: greedy by a naive loop, sampled by seed, and bounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from intraslice_core.errors import ConfigurationError
from intraslice_core.evaluation.generation import Continuation, Decoding, continue_prompt
from intraslice_core.evaluation.loaded_models import load_model
from tests.intraslice_core.tiny_models import tiny_llama, tiny_tokenizer

PROMPT = "one"
CONTEXT = 256
END = 1


def continued(directory: Path, prompt: str = PROMPT, **decoding: float) -> Continuation:
    settings = Decoding(**{"max_new_tokens": 24, **decoding})  # type: ignore[arg-type]
    return continue_prompt(directory, prompt, settings, dtype="float32", device="cpu")


def greedy(directory: Path, prompt: str, most: int) -> list[int]:
    """Return the most likely tokens, each from a forward pass over the whole sequence."""
    model = load_model(directory, dtype="float32", device="cpu")
    sequence: Tensor = tiny_tokenizer()(prompt, return_tensors="pt")["input_ids"]
    start = sequence.shape[1]
    while sequence.shape[1] < start + most and sequence[0, -1] != END:
        with torch.no_grad():
            logits = model(input_ids=sequence, use_cache=False).logits
        sequence = torch.cat([sequence, logits[:, -1:].argmax(-1)], dim=1)
    return [int(token) for token in sequence[0, start:]]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_greedy_continuation_equals_a_loop_of_whole_forward_passes(
    tmp_path: Path, seed: int
) -> None:
    directory = tiny_llama(tmp_path / "model", seed=seed)
    tokens = greedy(directory, PROMPT, 24)
    continuation = continued(directory)
    assert continuation.text == tiny_tokenizer().decode(tokens, skip_special_tokens=True)
    assert (continuation.prompt_tokens, continuation.new_tokens) == (len(PROMPT), len(tokens))
    assert continuation.stopped == (tokens[-1] == END)
    assert continuation.seconds > 0
    assert continuation.load_seconds > 0


def test_sampling_follows_the_seed_and_nothing_that_the_checkpoint_says(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")
    sampled = continued(directory, temperature=1.0, seed=7)
    assert sampled.text == continued(directory, temperature=1.0, seed=7).text
    others = {continued(directory, temperature=1.0, seed=seed).text for seed in (8, 9)}
    assert others != {sampled.text}
    greedy_text = continued(directory).text
    # Almost all of the probability is on the most likely token.
    assert continued(directory, temperature=0.001, seed=7).text == greedy_text
    settings = {"do_sample": True, "temperature": 5.0, "top_k": 3, "eos_token_id": END}
    settings |= {"repetition_penalty": 3.0, "num_beams": 2, "max_length": 4}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    assert continued(directory).text == greedy_text
    assert continued(directory, temperature=1.0, seed=7).text == sampled.text


def test_an_end_is_told_from_the_limit(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "model")
    tokens = greedy(directory, PROMPT, 24)
    assert tokens[0] != END
    assert not continued(directory, max_new_tokens=1).stopped
    # The checkpoint's own settings say which token ends a text: here, the first one.
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [END, tokens[0]]})
    )
    ended = continued(directory)
    assert (ended.new_tokens, ended.stopped) == (1, True)


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "field"),
    [("a" * CONTEXT, 1, "prompt"), ("a" * 200, CONTEXT - 199, "max_new_tokens")],
)
def test_a_prompt_beyond_the_context_is_rejected_before_the_model_is_loaded(
    tmp_path: Path, prompt: str, new_tokens: int, field: str
) -> None:
    directory = tiny_llama(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="context of 256 tokens") as caught:
        continued(directory, prompt, max_new_tokens=new_tokens)
    assert caught.value.field == field
