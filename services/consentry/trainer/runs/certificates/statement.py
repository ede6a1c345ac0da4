"""What a certificate states: its fields, and of which kind each is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from consentry.domain.errors import InvalidInput

_OR_NOTHING: Final = (int, type(None))
FIELDS: Final[Mapping[str, Any]] = {
    "format": str,
    "run_id": str,
    "dataset": str,
    "dataset_version": str,
    "purpose": str,
    "subscriber": str,
    "started_at": int,
    "ended_at": int,
    "view_start": str,
    "view_end": str,
    "token_start": str,
    "token_end": str,
    "known_at_start": int,
    "known_at_end": int,
    "lease_micros": int,
    "tail_micros": int,
    "tail_rows": int,
    "batches": int,
    "batches_empty": int,
    "rows_seen": int,
    "rows_read": int,
    "members_read": int,
    "counts": dict,
    "reads": {
        "leaves": int,
        "leaf": str,
        "tree": str,
        "merkle_root": str,
        "first_read_at": _OR_NOTHING,
        "last_read_at": _OR_NOTHING,
    },
    "exclusions": {"members": int, "digest": str, "definition": str},
    "disjoint": {"holds": bool, "violations": int, "unclear": int, "how": str},
    "software": str,
    "limit": str,
}
"""Each of them has to be there, and no other. Times and `lease_micros` in microseconds."""


def check_statement(statement: Mapping[str, Any]) -> None:
    """Raise InvalidInput where a field is missing, unknown or of another kind."""
    wrong = next(_wrong(statement, FIELDS, ""), None)
    counts = statement.get("counts")
    if (
        wrong is None
        and isinstance(counts, dict)
        and not all(_is_kind(number, int) for number in counts.values())
    ):
        wrong = "counts"
    if wrong is not None:
        raise InvalidInput(
            f"The certificate's field {wrong!r} is missing, unknown or of another kind.",
            code="certificate.malformed",
            fix="verify it with the version that wrote it; its field `software` may name it",
        )


def _wrong(told: Mapping[str, Any], fields: Mapping[str, Any], before: str) -> Any:
    for name in sorted(told.keys() | fields.keys()):
        kind = fields.get(name)
        if name not in told or kind is None:
            yield before + name
        elif isinstance(kind, dict):
            if isinstance(told[name], dict):
                yield from _wrong(told[name], kind, f"{before}{name}.")
            else:
                yield before + name
        elif not _is_kind(told[name], kind):
            yield before + name


def _is_kind(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
