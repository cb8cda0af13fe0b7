"""Run one checkpoint in vLLM; program of a process in vLLM's own environment.

    python runtimes_vllm.py CHECKPOINT REFERENCE ANSWERS

REFERENCE is a checkpoint's verification.json. ANSWERS receives the greedy tokens of every prompt
and tokens/s.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

PREFILL, DECODED, REPEATS = 512, 64, 3


def generated(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """Return the greedy tokens after a prompt, ignoring end-of-sequence."""
    settings = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    (answer,) = model.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)
    return list(answer.outputs[0].token_ids)


def seconds(model: Any, tokens: int, repeat: int) -> float:
    """Time a prompt that is in no cache and `tokens` generated tokens."""
    prompt = [100 + (7 * place + 11 * repeat + tokens) % 20_000 for place in range(PREFILL)]
    started = time.perf_counter()
    generated(model, prompt, tokens)
    return time.perf_counter() - started


def main() -> None:
    """Write greedy tokens and speed."""
    checkpoint, questions, answers = sys.argv[1:]
    prompts = json.loads(Path(questions).read_text())["prompts"]
    model = LLM(
        model=checkpoint,
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        enable_prefix_caching=False,
    )
    greedy = [generated(model, prompt["tokens"], len(prompt["greedy"])) for prompt in prompts]
    seconds(model, 1, REPEATS)
    first = statistics.median(seconds(model, 1, repeat) for repeat in range(REPEATS))
    whole = statistics.median(seconds(model, DECODED, repeat) for repeat in range(REPEATS))
    speed = {"prefill": PREFILL / first, "decode": (DECODED - 1) / (whole - first)}
    Path(answers).write_text(json.dumps({"greedy": greedy, "speed": speed}))


if __name__ == "__main__":
    main()
