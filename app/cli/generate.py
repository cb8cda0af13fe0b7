"""`intraslice generate`: text from a checkpoint, dense or compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import panels
from app.cli.errors import reported_errors
from app.cli.options import DEFAULT, DeviceOption, DtypeOption, require_checkpoint
from app.cli.progress_display import quiet_transformers


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(generate)


def generate(
    directory: Annotated[
        Path, typer.Argument(rich_help_panel=panels.MODEL, help="Checkpoint, dense or compressed.")
    ],
    prompt: Annotated[str, typer.Argument(rich_help_panel=panels.MODEL, help="Text to continue.")],
    max_new_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            rich_help_panel=panels.OUTPUT,
            help="Largest number of tokens to generate (1 or more).",
        ),
    ] = 64,
    dtype: DtypeOption = DEFAULT.dtype,
    device: DeviceOption = DEFAULT.device,
) -> None:
    """Continue a prompt by greedy decoding."""
    with reported_errors():
        require_checkpoint(directory)
        quiet_transformers()
        from intraslice_core.device_memory import out_of_memory_reported
        from intraslice_core.evaluation.loaded_models import load_model
        from intraslice_core.tokenizer import embedding_rows, load_tokenizer, require_known_tokens

        tokenizer: Any = load_tokenizer(directory)
        with out_of_memory_reported("--dtype"):
            model: Any = load_model(directory, dtype=dtype, device=device)
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        length = encoded["input_ids"].shape[1] + max_new_tokens
        _warn_if_beyond_context(model, length)
        require_known_tokens(encoded["input_ids"], embedding_rows(model), tokenizer, "the prompt")
        with out_of_memory_reported("--max-new-tokens"):
            output = model.generate(
                **encoded.to(model.device), max_new_tokens=max_new_tokens, do_sample=False
            )
        typer.echo(tokenizer.decode(output[0], skip_special_tokens=True))


def _warn_if_beyond_context(model: Any, tokens: int) -> None:
    """Warn if prompt and continuation may be longer than the model's context."""
    from intraslice_core.context_length import context_of

    context = context_of(model.config.to_dict())
    if context is not None and tokens > context:
        typer.echo(
            f"warning: prompt and continuation of up to {tokens:,} tokens exceed the model's "
            f"context of {context:,} tokens, beyond which its predictions are poor",
            err=True,
        )
