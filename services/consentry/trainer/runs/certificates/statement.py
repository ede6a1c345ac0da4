"""The statement of a training run's certificate: its fields, and the type of each.

Times and `lease_micros` are in microseconds, times since 1970-01-01 UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from consentry.domain.errors import InvalidInput


class _Fields(BaseModel):
    """Exactly the declared fields, each of exactly its type: no number is read from a text.

    Unlike forms.document.Document, which helps whoever writes a document by hand to correct it, a
    certificate that does not fit is refused by the name of its first field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StatedReads(_Fields):
    """A certificate's part about the reads of the training run, with their Merkle root."""

    leaves: int
    leaf: str
    tree: str
    merkle_root: str
    first_read_at: int | None
    last_read_at: int | None


class StatedExclusions(_Fields):
    """A certificate's part about the members excluded at the training run's end.

    They are excluded whatever a row says.
    """

    members: int
    digest: str
    definition: str


class StatedDisjoint(_Fields):
    """A certificate's result of deciding every read of a training run again.

    Nobody excluded was read, or how many were.
    """

    holds: bool
    violations: int
    unclear: int
    how: str


class CertificateStatement(_Fields):
    """All that the certificate of a training run states.

    Every field has to be there, and no other.
    """

    format: str
    run_id: str
    dataset: str
    dataset_version: str
    purpose: str
    subscriber: str
    started_at: int
    ended_at: int
    view_start: str
    view_end: str
    token_start: str
    token_end: str
    known_at_start: int
    known_at_end: int
    lease_micros: int
    tail_micros: int
    tail_rows: int
    batches: int
    batches_empty: int
    rows_seen: int
    rows_read: int
    members_read: int
    counts: dict[str, int]
    reads: StatedReads
    exclusions: StatedExclusions
    disjoint: StatedDisjoint
    software: str
    limit: str


def check_statement(statement: Mapping[str, Any]) -> None:
    """Raise InvalidInput where a certificate's field is missing, unknown or of another type."""
    try:
        CertificateStatement.model_validate(statement)
    except ValidationError as error:
        field = _first_field(error)
        raise InvalidInput(
            f"The certificate's field {field!r} is missing, unknown or of another kind.",
            code="certificate.malformed",
            fix="verify it with the version that wrote it; its field `software` may name it",
        ) from error


def _first_field(error: ValidationError) -> str:
    """Return the path of the first wrong field by name, such as `reads.leaves`."""
    paths = []
    for details in error.errors(include_url=False, include_input=False):
        names = [str(name) for name in details["loc"]]
        if names[0] == "counts":
            names = names[:1]  # the names in `counts` are reasons, not fields
        paths.append(names)
    return ".".join(min(paths))
