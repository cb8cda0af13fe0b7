"""Load a compressed checkpoint with stock transformers and generate text.

    python examples/load_with_transformers.py DIRECTORY "Some prompt" ["Another prompt" …]

IntraSlice is not needed. To prove it, `make demo` runs this file in an interpreter that can import
only the standard library and one directory of third-party packages (`python -I -S … --packages`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time

INTRASLICE_PACKAGES = ("intraslice_core", "app", "workers")


def main() -> None:
    """Print the generated texts and facts about the model as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", help="checkpoint directory")
    parser.add_argument("prompts", nargs="+", metavar="prompt", help="text to continue")
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of each (default: 24)")
    parser.add_argument("--packages", help="only directory to import packages from")
    arguments = parser.parse_args()
    if arguments.packages:
        sys.path.append(arguments.packages)
        importable = [
            name for name in INTRASLICE_PACKAGES if importlib.util.find_spec(name) is not None
        ]
        if importable:
            sys.exit(f"{', '.join(importable)} can be imported: this run would prove nothing")
    result = generate(arguments.directory, arguments.prompts, arguments.tokens)
    sys.stdout.write(json.dumps(result) + "\n")


def generate(directory: str, prompts: list[str], tokens: int) -> dict[str, object]:
    """Return a greedy continuation of each prompt and facts about the loaded model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    load_seconds = time.perf_counter() - started
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        texts.append(tokenizer.decode(output[0], skip_special_tokens=True))
    return {
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "load_seconds": round(load_seconds, 2),
        "texts": texts,
    }


if __name__ == "__main__":
    main()
