"""A checkpoint as a repository of a Hub: Hugging Face's, or one that speaks as it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.domain.errors import HandOffError
from app.domain.hand_off import CheckpointFacts, HandedOff


def push_checkpoint(
    directory: Path,
    facts: CheckpointFacts,
    *,
    repository: str,
    endpoint: str | None = None,
    token: str | None = None,
    private: bool = True,
) -> HandedOff:
    """Send all files in one commit; the repository is made where there is none.

    Args:
        directory: the checkpoint, its model card included.
        facts: say in the commit what it is.
        repository: `organisation/name`.
        endpoint: base URL; None is huggingface.co, or what the client's environment says.
        token: None: the one the client is logged in with.
        private: of a repository that is made.

    Raises:
        HandOffError: if the Hub refuses or does not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    with _explained(api.endpoint):
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message=f"Upload a compressed {facts.tags['intraslice.model']}",
            commit_description=f"manifest {facts.manifest_sha256}",
        )
    return HandedOff(reference=f"{repository} at {commit.oid}", url=f"{api.endpoint}/{repository}")


@contextmanager
def _explained(endpoint: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The base of whichever HTTP library the client is built on: it has changed before.
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    # It calls a part that did not get through a RuntimeError.
    except (HFValidationError, transport, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:500] or type(error).__name__
        hint = "; HF_HUB_DISABLE_XET=1 is for Hubs without Xet" if "xet" in reason else ""
        raise HandOffError(f"the Hub at {endpoint} did not take it: {reason}{hint}") from error
