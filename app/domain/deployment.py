"""Identity of a deployment, and whose the artifact store is.

A deployment is one database with its processes. Its id stands in the database and in a marker
object at the root of the store. Objects are deleted only while the two agree.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

MARKER = "deployment.json"
"""Key of the marker object."""
_NOTE = (
    "Identifies the IntraSlice deployment that owns this store. Do not delete or copy this file."
)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The deployment of a database."""

    id: str
    store_claimed: bool
    """True once the deployment's marker was written to a store."""

    @property
    def store_prefix(self) -> str:
        """Prefix of the keys of new objects in the store."""
        return f"{self.id}/"


class StoreClaim(StrEnum):
    """Relation of a store to a deployment."""

    OWN = "own"
    UNCLAIMED = "unclaimed"
    """Without a marker; the deployment has never claimed a store."""
    FOREIGN = "foreign"
    """With the marker of another deployment."""
    LOST = "lost"
    """Without a marker, although the deployment has claimed its store before."""


@dataclass(frozen=True, kw_only=True)
class StoreState:
    """Result of comparing the store's marker with the deployment's id."""

    deployment_id: str
    claim: StoreClaim
    owner: str | None
    """Deployment id in the marker."""
    place: str
    """URL of the store."""

    @property
    def problem(self) -> str | None:
        """Reason why nothing may be deleted, and the remedy; None if all is well."""
        if self.claim is StoreClaim.FOREIGN:
            return (
                f"The artifact store {self.place} belongs to deployment {self.owner}, the database"
                f" to {self.deployment_id}; nothing is deleted. Correct INTRASLICE_ARTIFACT_STORE"
                " or INTRASLICE_DATABASE_URL, restore the database, or hand the store over with"
                " `intraslice maintenance --claim-store`"
            )
        if self.claim is StoreClaim.LOST:
            return (
                f"The artifact store {self.place} has no {MARKER} any more; nothing is deleted."
                " Restore the store, correct INTRASLICE_ARTIFACT_STORE, or accept this store with"
                " `intraslice maintenance --claim-store`"
            )
        return None


def compare(deployment: Deployment, owner: str | None, place: str) -> StoreState:
    """Return the state of a store whose marker names `owner`, None if it has no marker."""
    if owner == deployment.id:
        claim = StoreClaim.OWN
    elif owner is not None:
        claim = StoreClaim.FOREIGN
    else:
        claim = StoreClaim.LOST if deployment.store_claimed else StoreClaim.UNCLAIMED
    return StoreState(deployment_id=deployment.id, claim=claim, owner=owner, place=place)


def marker_content(deployment_id: str) -> bytes:
    """Return the marker object of a deployment."""
    document = {"deployment_id": deployment_id, "note": _NOTE}
    return (json.dumps(document, indent=2) + "\n").encode()


def marker_owner(content: bytes) -> str:
    """Return the deployment id in a marker; a description of it if it is damaged."""
    try:
        owner = json.loads(content)["deployment_id"]
    except (ValueError, KeyError, TypeError):
        owner = None
    return owner if isinstance(owner, str) and owner else "(unreadable marker)"
