"""What a GGUF file says to fixed prompts; the program of a process that has none of our code.

The keys and values it caches are float32: float16 ones flip greedy tokens that are nearly tied.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

_CONTEXT = 1024
_CANDIDATES = 512
"""Likeliest tokens asked for; those of the reference must be among them."""


def serve(file: str) -> Any:
    """A server of the file within this process, on the CPU."""
    import xllamacpp  # type: ignore[import-untyped]

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx = _CONTEXT
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    settings.warmup = False
    settings.verbosity = -1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(settings)


def _likeliest(server: Any, prompt: list[int], harmless: int) -> dict[int, float]:
    """Log-probabilities of the likeliest next tokens, the likeliest first.

    The server is made to choose `harmless`, which its reported probabilities do not show: of a
    token that ends within a character it would report nothing.
    """
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": 1,
            "temperature": 0.0,
            "n_probs": _CANDIDATES,
            "logit_bias": [[harmless, 1e6]],
            "cache_prompt": True,
        }
    )
    if "error" in answer:
        raise ValueError(str(answer["error"]))
    (token,) = answer["choices"][0]["logprobs"]["content"]
    return {one["id"]: float(one["logprob"]) for one in token["top_logprobs"]}


def greedy(server: Any, prompt: list[int], tokens: int, harmless: int) -> list[int]:
    """The greedy tokens after a prompt, each decoded on top of the cache."""
    found: list[int] = []
    while len(found) < tokens:
        found.append(next(iter(_likeliest(server, [*prompt, *found], harmless))))
    return found


def tokens_of(server: Any, text: str) -> list[int]:
    """As the file's own tokenizer reads a text; asked over the server's loopback address."""
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        data=json.dumps({"content": text, "add_special": True}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found: list[int] = json.load(response)["tokens"]
    return found


def _answer(server: Any, entry: dict[str, Any], harmless: int) -> dict[str, Any]:
    """Log-probabilities after the last positions, and the greedy tokens, of one prompt.

    A token wanted that is not among the likeliest has minus infinity.
    """
    prompt: list[int] = entry["tokens"]
    rows = entry["candidates"]
    log_probs = []
    for end, wanted in zip(range(len(prompt) - len(rows) + 1, len(prompt) + 1), rows, strict=True):
        found = _likeliest(server, prompt[:end], harmless)
        log_probs.append([found.get(token, float("-inf")) for token in wanted])
    return {
        "tokens": tokens_of(server, entry["text"]),
        "log_probs": log_probs,
        "greedy": greedy(server, prompt, len(entry["greedy"]), harmless),
    }


def main() -> None:
    """`llama_cpp_process.py FILE REFERENCE ANSWERS`."""
    file, questions, answers = sys.argv[1:]
    reference = json.loads(Path(questions).read_text())
    server = serve(file)
    harmless = tokens_of(server, "a")[-1]
    found = [_answer(server, entry, harmless) for entry in reference["prompts"]]
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
