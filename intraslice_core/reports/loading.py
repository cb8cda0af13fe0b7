"""Code that loads a result, for each runtime that its target and its files allow.

`tests/intraslice_core/reports/test_loading.py` runs the Python code on results of every target.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from intraslice_core.config import GGUF_FILES, GgufFormat
from intraslice_core.reports.schema import CompressionReport

HERE = "."
"""Place of the files for code that runs in their directory."""
PROMPT = "The capital of France is"
_NAME = "compressed"
"""Name by which the snippets serve the model."""
_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "{place}"
model = AutoModelForCausalLM.from_pretrained(path{model_code})
tokenizer = AutoTokenizer.from_pretrained(path{tokenizer_code})
prompt = tokenizer("{prompt}", return_tensors="pt", return_token_type_ids=False)
output = model.generate(**prompt, max_new_tokens=32, do_sample=False)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""
_CURL = """\
curl http://localhost:{port}/v1/completions -H "Content-Type: application/json" \\
  -d '{{"model": "{name}", "prompt": "{prompt}", "max_tokens": 32, "temperature": 0}}'
"""


def directory_name(name: str) -> str:
    """Return a model's name as the name of a directory that no shell or string has to quote."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip(".-") or "model"


@dataclass(frozen=True, kw_only=True)
class Snippet:
    """Code that loads or serves the files in one runtime."""

    runtime: str
    language: Literal["python", "bash"]
    code: str
    note: str = ""


def snippets(report: CompressionReport, place: str = HERE) -> tuple[Snippet, ...]:
    """Return the code for every runtime that loads the result, the most general one first.

    Args:
        report: report of the compression.
        place: directory of the files, or the name of their repository on a hub.
    """
    return tuple(_snippets(report, place))


def _snippets(report: CompressionReport, place: str) -> Iterator[Snippet]:
    yield _transformers(report, place)
    vllm = _vllm(report, place)
    if vllm is not None:
        yield vllm
    formats = report.config.gguf_formats
    if formats:
        smallest: GgufFormat = "gguf-q8_0" if "gguf-q8_0" in formats else formats[0]
        yield _llama_cpp(f"{place.rstrip('/')}/{GGUF_FILES[smallest]}")
    yield Snippet(
        runtime="IntraSlice",
        language="bash",
        code=f'intraslice verify {place}\nintraslice generate {place} "{PROMPT}"\n',
        note="Compares the files with their checksums, and continues a prompt. Needs "
        "`pip install 'intraslice[engine]'`.",
    )


def _transformers(report: CompressionReport, place: str) -> Snippet:
    """Return the code for transformers; only a stock checkpoint has no code of its own."""
    own_code = report.config.target != "stock"
    note = (
        "The modeling code is in the checkpoint. With the `intraslice` package, "
        "`import intraslice_core.modeling` makes `trust_remote_code` unnecessary. The tokenizer "
        "needs no code; without `trust_remote_code=False` transformers asks whether to run it."
    )
    return Snippet(
        runtime="transformers",
        language="python",
        code=_TRANSFORMERS.format(
            place=place,
            prompt=PROMPT,
            model_code=", trust_remote_code=True" if own_code else "",
            tokenizer_code=", trust_remote_code=False" if own_code else "",
        ),
        note=note if own_code else "No code of its own: the class is that of the original.",
    )


def _vllm(report: CompressionReport, place: str) -> Snippet | None:
    """Return the commands for vLLM; None if it was not tried with results of this kind."""
    target = report.config.target
    named = next((runtime for runtime in report.runtimes if "vLLM" in runtime), None)
    if target != "stock" and named is None:
        return None
    serve = f"vllm serve {place} --served-model-name {_NAME}"
    note = ""
    if target == "research":
        serve = f"pip install --no-deps intraslice  # in vLLM's environment\n{serve}"
        note = "The `intraslice` package is a plugin that vLLM finds by itself."
        if named is not None and "slower" in named:
            note += (
                " Models of this family run through vLLM's backend for transformers models and may "
                "be slower than the original there: for vLLM, compress with target `stock`."
            )
    if target == "adaptive":
        serve += " --trust-remote-code"
        note = "A DeciLM checkpoint, which vLLM runs natively; the code is its configuration."
    ask = _CURL.format(port=8000, name=_NAME, prompt=PROMPT)
    return Snippet(runtime="vLLM", language="bash", code=f"{serve}\n{ask}", note=note)


def _llama_cpp(file: str) -> Snippet:
    return Snippet(
        runtime="llama.cpp",
        language="bash",
        code=f"llama-server -m {file}\n{_CURL.format(port=8080, name=_NAME, prompt=PROMPT)}",
        note="Also everything that is built on llama.cpp.",
    )
