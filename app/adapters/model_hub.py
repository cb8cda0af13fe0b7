"""Uploads a checkpoint to a repository of the Hugging Face Hub or a compatible one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.adapters.server_address import public_address, without_password
from app.domain.errors import HandOffError, RepositoryTakenError
from app.domain.registry_hand_off import CheckpointFacts, HandedOff
from intraslice_core.reports.schema import REPORT_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MADE_BY_HUB = frozenset({".gitattributes"})
"""Files of a new repository."""


def push_checkpoint(
    directory: Path,
    facts: CheckpointFacts,
    *,
    repository: str,
    endpoint: str | None = None,
    token: str | None = None,
    private: bool = True,
    only_results: bool = False,
) -> HandedOff:
    """Upload all files in one commit; the repository is created if needed.

    Args:
        directory: the checkpoint with its model card.
        facts: model and manifest for the commit message.
        repository: `organisation/name`.
        endpoint: base URL; None means huggingface.co or the client's environment.
        token: access token; None means that of the client's login.
        private: visibility of a new repository.
        only_results: never write to a repository that has files of others.

    Raises:
        RepositoryTakenError: if it has.
        HandOffError: if the Hub rejects the files or does not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    with _explained(api.endpoint):
        api.create_repo(repository, private=private, exist_ok=True)
        if only_results:
            _require_result(api, repository)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message=f"Upload a compressed {facts.tags['intraslice.model']}",
            commit_description=f"manifest {facts.manifest_sha256}",
        )
    url = f"{public_address(api.endpoint)}/{repository}"
    return HandedOff(reference=f"{repository} at {commit.oid}", url=url)


def _require_result(api: HfApi, repository: str) -> None:
    """Raise if a repository has files, and among them no report of a compression."""
    files = set(api.list_repo_files(repository)) - _MADE_BY_HUB
    if files and REPORT_FILE not in files:
        raise RepositoryTakenError(
            f"the repository {repository} contains files that this service did not write:"
            " request another name"
        )


@contextmanager
def _explained(endpoint: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Base exception of the client's HTTP library, which has changed before.
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    # The client raises RuntimeError for a failed part of an upload.
    except (HFValidationError, transport, OSError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = without_password(first, endpoint)[:500]
        hint = "; HF_HUB_DISABLE_XET=1 is needed for Hubs without Xet" if "xet" in reason else ""
        raise HandOffError(
            f"the Hub at {public_address(endpoint)} rejected the checkpoint: {reason}{hint}"
        ) from error
