"""A GGUF file's answers to fixed prompts; the program of a process that imports none of our code.

The KV cache is float32, because a float16 cache flips greedy tokens that are nearly tied.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

CONTEXT = 1024
"""Context in tokens; llama.cpp reduces it to the model's own, and rejects longer prompts."""
_CANDIDATES = 512
"""Number of most likely tokens requested; the reference's tokens must be among them."""
_SMALL_FILE_BYTES = 64 * 10**6


def threads_for(file: str) -> int | None:
    """Return 1 for a file below 64 MB, else None for llama.cpp's choice.

    On a busy machine, the threads of a small model wait for each other longer than they compute.
    """
    return 1 if Path(file).stat().st_size < _SMALL_FILE_BYTES else None


def serve(file: str, threads: int | None = None) -> Any:
    """Start a llama.cpp server for the file within this process, on the CPU.

    Args:
        file: the GGUF file.
        threads: compute threads; None for `threads_for(file)`.
    """
    import xllamacpp  # type: ignore[import-untyped]

    settings = xllamacpp.CommonParams()
    settings.model.path = file
    settings.n_ctx = CONTEXT
    settings.n_parallel = 1
    settings.n_gpu_layers = 0
    settings.warmup = False
    settings.verbosity = -1
    threads = threads or threads_for(file)
    if threads is not None:
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(settings)


def _top_log_probs(server: Any, prompt: list[int], safe_token: int) -> dict[int, float]:
    """Return the log-probabilities of the most likely next tokens, in descending order.

    A bias makes the server choose `safe_token`, without changing the probabilities it reports. The
    server reports nothing for a chosen token that ends within a character.

    Raises:
        ValueError: if the server reports an error.
    """
    response = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": 1,
            "temperature": 0.0,
            "n_probs": _CANDIDATES,
            "logit_bias": [[safe_token, 1e6]],
            "cache_prompt": True,
        }
    )
    if "error" in response:
        raise ValueError(f"llama.cpp reports an error: {response['error']}")
    (position,) = response["choices"][0]["logprobs"]["content"]
    return {token["id"]: float(token["logprob"]) for token in position["top_logprobs"]}


def greedy(server: Any, prompt: list[int], tokens: int, safe_token: int) -> list[int]:
    """Decode greedily after a prompt, using the KV cache."""
    decoded: list[int] = []
    while len(decoded) < tokens:
        decoded.append(next(iter(_top_log_probs(server, [*prompt, *decoded], safe_token))))
    return decoded


def tokens_of(server: Any, text: str) -> list[int]:
    """Tokenize a text with the file's own tokenizer, over the server's loopback address."""
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        data=json.dumps({"content": text, "add_special": True}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        tokens: list[int] = json.load(response)["tokens"]
    return tokens


def _answer(server: Any, entry: dict[str, Any], safe_token: int) -> dict[str, Any]:
    """Compute log-probabilities at the last positions of one prompt, and its greedy tokens.

    A candidate that is not among the most likely tokens gets minus infinity.
    """
    prompt: list[int] = entry["prompt"]
    rows = entry["candidates"]
    ends = range(len(prompt) - len(rows) + 1, len(prompt) + 1)
    log_probs = []
    for end, candidates in zip(ends, rows, strict=True):
        top = _top_log_probs(server, prompt[:end], safe_token)
        log_probs.append([top.get(token, float("-inf")) for token in candidates])
    return {
        "tokens": tokens_of(server, entry["text"]),
        "log_probs": log_probs,
        "greedy": greedy(server, prompt, len(entry["greedy"]), safe_token),
    }


def main() -> None:
    """Run `llama_cpp_process.py FILE REFERENCE ANSWERS`."""
    file, reference_file, answers_file = sys.argv[1:]
    reference = json.loads(Path(reference_file).read_text())
    server = serve(file)
    safe_token = tokens_of(server, "a")[-1]
    answers = []
    for number, entry in enumerate(reference["prompts"], 1):
        sys.stdout.write(f"step: answering prompt {number}/{len(reference['prompts'])}\n")
        sys.stdout.flush()
        answers.append(_answer(server, entry, safe_token))
    Path(answers_file).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
