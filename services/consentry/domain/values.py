"""Identifiers, times and closed lists that all rules of the domain share.

The words: docs/architecture.md, "Words".
"""

from __future__ import annotations

import enum
import re
from datetime import UTC, datetime
from typing import Final, NewType

from consentry.domain.errors import InvalidInput

MemberId = NewType("MemberId", str)
"""Pseudonym of a member; the Kafka key is exactly these bytes."""

Micros = NewType("Micros", int)
"""An instant: microseconds since 1970-01-01 UTC."""

DAY_MICROS: Final = 86_400_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MEMBER_ID_BYTES_MAX: Final = 64
MEMBER_ID_PATTERN: Final = re.compile(r"[A-Za-z0-9:_-]{1,64}", re.ASCII)
NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}", re.ASCII)
"""Purposes, categories, pause names: lower case, safe as a key, a label and a log field."""


POLICY_VERSION_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
"""Versions of policies: part of a record's key, and what a notice names."""
DATASET_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
"""Names of data sets, in receipts and metric labels."""


def micros(moment: datetime) -> Micros:
    """Return an aware datetime in microseconds since 1970-01-01 UTC, as the rules hold times.

    It is exact.
    """
    since = moment - _EPOCH
    return Micros((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def parse_member_id(text: object) -> MemberId:
    """Return `text` as a member id for the rules, or raise InvalidInput.

    It raises that also for what is no text.
    """
    if not isinstance(text, str) or MEMBER_ID_PATTERN.fullmatch(text) is None:
        shown = f"of type {type(text).__name__}"
        if isinstance(text, str):
            shown = repr(text[:80])
        raise InvalidInput(
            f"The member id {shown} is not a pseudonym of 1 to 64 letters, digits, ':', '_' or "
            "'-'.",
            code="input.member_id",
            fix="send the platform's pseudonym, not a name, address or path",
        )
    return MemberId(text)


_EXAMPLES: Final = {
    "purpose": "genai_training, as the policy names it",
    "category": "posts",
    "pause": "hk-2024",
}


def parse_name(text: str, *, what: str) -> str:
    """Return `text` as the name of a purpose, category or pause, or raise InvalidInput."""
    if NAME_PATTERN.fullmatch(text) is None:
        raise InvalidInput(
            f"The {what} {text[:80]!r} is not 1 to 64 lower-case letters, digits, '_', '.' or '-'.",
            code=f"input.{what.replace(' ', '_')}",
            fix=f"use a {what} such as {_EXAMPLES.get(what, 'ranker-2')}",
        )
    return text


class Choice(enum.StrEnum):
    """The choice of a member for a purpose, as the rules read it; no choice is not OPT_IN."""

    OPT_OUT = "OPT_OUT"
    OPT_IN = "OPT_IN"
    UNKNOWN = "UNKNOWN"


class AgeBand(enum.StrEnum):
    """The age of a member for the rules: of age where they live, a minor, or not known."""

    MINOR = "MINOR"
    ADULT = "ADULT"
    UNKNOWN = "UNKNOWN"


class Reason(enum.StrEnum):
    """The closed list of reasons for an answer of the rules; the first that applies wins."""

    ERASED = "ERASED"
    QUARANTINED = "QUARANTINED"
    HISTORY_FOLDED = "HISTORY_FOLDED"
    JURISDICTION_UNKNOWN = "JURISDICTION_UNKNOWN"
    PAUSED = "PAUSED"
    OPTED_OUT = "OPTED_OUT"
    NO_TERMS = "NO_TERMS"
    NOT_OFFERED = "NOT_OFFERED"
    OUTSIDE_TERMS = "OUTSIDE_TERMS"
    OPTED_IN = "OPTED_IN"
    NOTICE_OPEN = "NOTICE_OPEN"
    DEFAULT_ON = "DEFAULT_ON"
    OPT_IN_REQUIRED = "OPT_IN_REQUIRED"
    STALE = "STALE"

    @property
    def allows(self) -> bool:
        """True if the reason allows the use; every other reason excludes."""
        return self is Reason.OPTED_IN or self is Reason.DEFAULT_ON


REASON_RANK: Final = {reason: rank for rank, reason in enumerate(Reason)}
