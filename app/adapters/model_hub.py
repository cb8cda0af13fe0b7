"""Uploads a checkpoint to a repository of the Hugging Face Hub or a compatible one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.domain.errors import HandOffError
from app.domain.registry_hand_off import CheckpointFacts, HandedOff, public_address


def push_checkpoint(
    directory: Path,
    facts: CheckpointFacts,
    *,
    repository: str,
    endpoint: str | None = None,
    token: str | None = None,
    private: bool = True,
) -> HandedOff:
    """Upload all files in one commit; the repository is created if needed.

    Args:
        directory: the checkpoint with its model card.
        facts: model and manifest for the commit message.
        repository: `organisation/name`.
        endpoint: base URL; None means huggingface.co or the client's environment.
        token: access token; None means that of the client's login.
        private: visibility of a new repository.

    Raises:
        HandOffError: if the Hub rejects the files or does not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    address = public_address(api.endpoint)
    with _explained(address):
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message=f"Upload a compressed {facts.tags['intraslice.model']}",
            commit_description=f"manifest {facts.manifest_sha256}",
        )
    return HandedOff(reference=f"{repository} at {commit.oid}", url=f"{address}/{repository}")


@contextmanager
def _explained(endpoint: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Base exception of the client's HTTP library, which has changed before.
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    # The client raises RuntimeError for a failed part of an upload.
    except (HFValidationError, transport, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:500] or type(error).__name__
        hint = "; HF_HUB_DISABLE_XET=1 is needed for Hubs without Xet" if "xet" in reason else ""
        raise HandOffError(
            f"the Hub at {endpoint} rejected the checkpoint: {reason}{hint}"
        ) from error
