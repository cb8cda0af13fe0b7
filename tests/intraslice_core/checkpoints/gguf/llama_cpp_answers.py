"""Answers of llama.cpp on several GGUF files; the program of a process without torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[4] / "intraslice_core" / "evaluation"))

import llama_cpp_process  # type: ignore[import-not-found]  # a program: it imports nothing of ours


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Return the log-probabilities after each prompt, by token, and the tokens of each text."""
    server = llama_cpp_process.serve(question["file"], threads=1)
    log_probs = []
    for prompt in question.get("prompts", ()):
        top = llama_cpp_process._top_log_probs(server, prompt, prompt[-1])
        log_probs.append([top.get(token, float("nan")) for token in range(len(top))])
    texts = [llama_cpp_process.tokens_of(server, text) for text in question.get("texts", ())]
    return {"log_probs": log_probs, "tokens": texts}


def main() -> None:
    """Run `llama_cpp_answers.py QUESTIONS ANSWERS`."""
    asked, answered = sys.argv[1:]
    questions = json.loads(Path(asked).read_text())
    Path(answered).write_text(json.dumps([answer(question) for question in questions]))


if __name__ == "__main__":
    main()
