"""What stands on the models topic: which bundle has which role, and from when on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stream.scoring.bundle import Manifest

FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,199}$")]
"""One folder of the library: no separator, so a record cannot name anything outside it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Place(_Part):
    """A bundle in the library."""

    folder: FolderName
    model: str = Field(description="name@version")
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="the manifest's digest")


class Deployment(_Part):
    """The value of a record of the models topic; its key is the role. The newest of a role counts."""

    role: Literal["champion", "challenger-1", "challenger-2", "challenger-3"] = Field(
        description="whose place the bundle takes; also the record's key"
    )
    bundle: Place | None = Field(description="null: nobody has this role any more (challengers only)")
    from_ms: int = Field(description="Kafka timestamp of the first event that a champion scores")
    deployed_ms: int = Field(description="when the command was given")
    former: Place | None = Field(None, description="what had the role before: where a rollback leads")


def place_of(manifest: Manifest) -> Place:
    """Where a bundle stands in a library: its label and the head of its digest, so versions never collide."""
    return Place(
        folder=f"{manifest.label}-{manifest.digest[:12]}",
        model=manifest.label,
        digest=manifest.digest,
    )


def parse(value: bytes | None) -> Deployment | str:
    """A record's content, or what is wrong with it. A tombstone is wrong too: roles are emptied by a record."""
    try:
        return Deployment.model_validate_json(value or b"")
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"
