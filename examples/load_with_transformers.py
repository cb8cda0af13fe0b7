"""Load a compressed checkpoint as any user of transformers does, and let it write.

    python examples/load_with_transformers.py DIRECTORY "Some prompt"

Nothing of IntraSlice is needed. To prove it, `make demo` runs this file in an interpreter that sees
the standard library and one directory of third-party packages only (`python -I -S … --packages`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time

OURS = ("intraslice_core", "app", "workers")


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--packages", help="the only place to import third-party packages from")
    arguments = parser.parse_args()
    if arguments.packages:
        sys.path.append(arguments.packages)
        importable = [name for name in OURS if importlib.util.find_spec(name) is not None]
        if importable:
            sys.exit(f"{', '.join(importable)} can be imported: this would prove nothing")
    answer = generate(arguments.directory, arguments.prompt, arguments.tokens)
    sys.stdout.write(json.dumps(answer) + "\n")


def generate(directory: str, prompt: str, tokens: int) -> dict[str, object]:
    """Greedy continuation of the prompt, with what was loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    loaded = time.perf_counter() - began
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return {
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "load_seconds": round(loaded, 2),
        "text": tokenizer.decode(output[0], skip_special_tokens=True),
    }


if __name__ == "__main__":
    main()
