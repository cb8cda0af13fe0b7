"""Tiny models for the export tests, with tokenizers that llama.cpp supports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from intraslice_core.config import GGUF_FILES, CalibrationConfig, CompressionConfig
from intraslice_core.evaluation.verification import verify_gguf, write_reference
from intraslice_core.pipeline import compress_model
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.tokenizer import load_tokenizer
from tests.intraslice_core.tiny_models import tiny_llama

CALIBRATION = CalibrationConfig(source="pydoc", samples=16, sequence_length=32)
TOKENS = torch.randint(3, 250, (2, 40), generator=torch.Generator().manual_seed(1))
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"))
VOCAB_SIZE = 256 + 3 + len(MERGES) + 2
"""Rows of the embedding, two of which belong to no token."""


def merging_tokenizer(pre_tokenizer: Any = None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a few merges; special tokens come first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = ["<s>", "</s>", "<pad>", *alphabet, *("".join(pair) for pair in MERGES)]
    vocabulary = {text: number for number, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template="{{ messages[0].content }}",
    )


def write_sentencepiece(
    directory: Path, tokenizer_class: str, texts: Sequence[str], **options: Any
) -> None:
    """Write a SentencePiece model trained on texts, and its settings, without tokenizer.json."""
    directory.mkdir(exist_ok=True)
    lines = [line for text in texts for line in text.splitlines() if line] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(directory / "tokenizer"),
        minloglevel=2,
        pad_id=-1,
        **{
            "model_type": "bpe",
            "vocab_size": 700,
            "byte_fallback": True,
            "character_coverage": 0.99,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "hard_vocab_limit": False,
        }
        | options,
    )
    (directory / "tokenizer.vocab").unlink()
    settings = {"tokenizer_class": tokenizer_class, "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"unk_token": "<unk>", "add_bos_token": True, "legacy": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def llama_with_merges(directory: Path, **overrides: Any) -> Path:
    """Write a tiny Llama whose rows are multiples of the 8-bit quantisation's block."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": VOCAB_SIZE}
    sizes["max_position_embeddings"] = 1024
    tiny_llama(directory, **(sizes | overrides))
    merging_tokenizer().save_pretrained(directory)
    return directory


def config(target: str, **settings: Any) -> CompressionConfig:
    common = {"target": target, "round_to": 4, "dtype": "float32", "calibration": CALIBRATION}
    return CompressionConfig.model_validate(common | settings)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        output: Tensor = model(input_ids=TOKENS).logits
    return output


def load(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=trust_remote_code
    ).eval()


def compress_to_gguf(dense: Path, out: Path, settings: CompressionConfig) -> CompressionReport:
    """Compress, and compare what llama.cpp computes from the GGUF files with the safetensors.

    The verification of the safetensors, a process of transformers, takes seconds, and is left out.
    """
    report = compress_model(str(dense), out, settings, verify=False)
    model = load(out, trust_remote_code=settings.target == "adaptive")
    write_reference(out, model, load_tokenizer(out))
    for gguf_format in settings.gguf_formats:
        assert verify_gguf(out, GGUF_FILES[gguf_format], gguf_format).max_abs_difference > 0.0
    return report
