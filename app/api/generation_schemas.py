"""Request body of the playground."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.api.schemas import storable
from app.domain.generation import GenerationRequest, PlaygroundModel

_MOST_CHARACTERS = 65_536
_MOST_NEW_TOKENS = 4096
"""Bounds of the document; those of the deployment are tighter, see `GET /v1/service`."""
_DEFAULT_NEW_TOKENS = 64


def _encodable(prompt: str) -> str:
    if not prompt.isascii():
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair is no character") from None
    return prompt


def _different(models: tuple[PlaygroundModel, ...]) -> tuple[PlaygroundModel, ...]:
    if len(set(models)) < len(models):
        raise ValueError("name each model once")
    return models


class GenerationCreate(BaseModel):
    """A prompt for the models of a succeeded job."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {"prompt": "The capital of France is", "max_new_tokens": 32},
                {"prompt": "Once upon a time", "models": ["compressed"], "temperature": 0.8},
            ]
        },
    )

    prompt: Annotated[
        str,
        BeforeValidator(storable),
        AfterValidator(_encodable),
        Field(min_length=1, max_length=_MOST_CHARACTERS, description="Text to continue."),
    ]
    max_new_tokens: Annotated[
        int, Field(ge=1, le=_MOST_NEW_TOKENS, description="Most tokens of each answer.")
    ] = _DEFAULT_NEW_TOKENS
    temperature: Annotated[
        float | None,
        Field(
            gt=0,
            le=2,
            description="Temperature of sampling; null takes the most likely token each time.",
        ),
    ] = None
    seed: Annotated[
        int, Field(ge=0, lt=2**32, description="Seed of sampling; without effect otherwise.")
    ] = 0
    models: Annotated[
        tuple[PlaygroundModel, ...],
        AfterValidator(_different),
        Field(min_length=1, max_length=len(PlaygroundModel), description="Models to ask."),
    ] = tuple(PlaygroundModel)

    def to_domain(self) -> GenerationRequest:
        return GenerationRequest(
            prompt=self.prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            models=self.models,
        )
