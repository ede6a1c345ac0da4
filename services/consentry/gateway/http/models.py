"""Bodies of HTTP requests to the gateway and of its responses, for checks and for OpenAPI."""

from __future__ import annotations

import enum
import uuid
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from consentry.domain.values import MEMBER_ID_PATTERN, NAME_PATTERN, AgeBand, Choice, Micros, micros
from consentry.wire.events import INSTANT_MAX, INSTANT_MIN, STRING_BYTES_MAX
from consentry.wire.jurisdictions import iso_jurisdictions

VERSION_MAX: Final = (1 << 63) - 1


def _in_window(moment: datetime) -> datetime:
    _micros_in_window(moment)
    return moment


def _micros_in_window(moment: datetime) -> Micros:
    instant = micros(moment)
    if not INSTANT_MIN <= instant < INSTANT_MAX:
        raise ValueError("it lies outside 1979 to 3111")
    return instant


def _moment(value: object) -> object:
    """Return a date and time in ISO 8601. Raises ValueError for anything else.

    A number is refused: it could mean seconds or milliseconds.
    """
    if isinstance(value, str) and "T" in value.upper():
        try:
            return datetime.fromisoformat(value.upper())
        except ValueError:
            pass  # raised below, without the value
    elif isinstance(value, datetime):
        return value
    raise ValueError("it is not a date and time such as 2024-10-11T09:00:00Z")


def _printable(text: str) -> str:
    is_long = len(text.encode(errors="replace")) > STRING_BYTES_MAX
    if is_long or not text.isprintable() or not _is_unicode(text):
        raise ValueError(f"it has unprintable characters or more than {STRING_BYTES_MAX} bytes")
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False  # half of a surrogate pair, which JSON can spell
    return True


def _jurisdiction(code: str) -> str:
    if not iso_jurisdictions().is_code(code):
        raise ValueError("it is not an ISO 3166 code such as HK or US-CA")
    return code


MemberIdField = Annotated[
    str,
    Field(
        pattern=f"^{MEMBER_ID_PATTERN.pattern}$",
        description="Pseudonym of the member.",
        examples=["m:42"],
    ),
]
PurposeField = Annotated[
    str,
    Field(
        pattern=f"^{NAME_PATTERN.pattern}$",
        description="What the data would be used for.",
        examples=["genai_training"],
    ),
]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment, json_schema_input_type=AwareDatetime)]
Instant = Annotated[Moment, AfterValidator(_in_window)]
Text = Annotated[str, AfterValidator(_printable), Field(max_length=STRING_BYTES_MAX)]


def instant_of(text: str) -> Micros:
    """Return the microseconds of a date and time in a request to the gateway (an `Instant`).

    Raises ValueError for other texts.
    """
    moment = _moment(text)
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError("it has no offset from UTC")
    return _micros_in_window(moment)


class LegalBasis(enum.StrEnum):
    """The legal ground in a consent change sent to the gateway: consent, or another."""

    CONSENT = "CONSENT"
    LEGITIMATE_INTEREST = "LEGITIMATE_INTEREST"
    OTHER = "OTHER"
    UNKNOWN = "UNKNOWN"


class _RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _EventIn(_RequestBody):
    member_id: MemberIdField
    effective_at: Instant | None = Field(
        None,
        description="When it holds in the world, ISO 8601 with an offset; default: when it is "
        "accepted.",
    )
    event_id: uuid.UUID | None = Field(
        None,
        description="Identity of the event. A repetition carries the same id and the same "
        "effective_at, which is then needed: the same id with other content is a forgery or a bug, "
        "and quarantines the member.",
    )


class _ExcludingIn(_EventIn):
    announced: bool = Field(
        False,
        strict=True,
        description="What excludes binds from when it is accepted, at the latest. Only with true "
        "may effective_at lie ahead, and then the event does not bind before.",
    )


class ConsentChangeIn(_ExcludingIn):
    """A consent change sent to the gateway: a member chose for a purpose."""

    purpose: PurposeField
    choice: Choice = Field(description="UNKNOWN takes an opt-in back and leaves an opt-out.")
    observed_version: int | None = Field(
        None,
        ge=0,
        le=VERSION_MAX,
        strict=True,
        description="Version of the member's record that the person had seen; needed for OPT_IN, "
        "here or in If-Match.",
    )
    legal_basis: LegalBasis = LegalBasis.CONSENT
    notice_version: Text = Field(
        "", description="Version of the policy or notice that the person saw."
    )
    evidence: Text | None = Field(
        None, description="Reference to evidence kept elsewhere, never the evidence."
    )


class RelocationIn(_EventIn):
    """A relocation sent to the gateway: the place where a member lives, or their age band."""

    jurisdiction: Annotated[
        str, Field(max_length=6, examples=["HK"]), AfterValidator(_jurisdiction)
    ]
    age_band: AgeBand = AgeBand.UNKNOWN


class ErasureIn(_ExcludingIn):
    """An erasure sent to the gateway: a member was erased, which is final."""


class ReleaseIn(_RequestBody):
    """The reason in a request to the gateway to release a member or to replay a message."""

    reason: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]


class Accepted(BaseModel):
    """The gateway's response for an event or control that the broker has acknowledged."""

    state: Literal["accepted"] = "accepted"
    event_id: uuid.UUID
    token: str = Field(
        description="Consistency token: ask readers for answers at least as fresh as this."
    )
    accepted_at: datetime
    partition: int
    offset: int
    warnings: list[str] = Field(
        default=[], description="What was accepted and may still not be what was meant."
    )


class AwaitingApproval(BaseModel):
    """The gateway's response for a proposal that waits for a second person's approval.

    It would widen use.
    """

    state: Literal["awaiting_approval"] = "awaiting_approval"
    approval_id: str
    opens: list[str] = Field(description="What it would open.")
    expires_at: datetime


class VersionedDecisionOut(BaseModel):
    """The gateway's answer to one question about one member."""

    allowed: bool
    reason: str
    because: list[str]
    version: int | None = Field(
        description="Version of the record that was asked; what an opt-in observes."
    )


class BulkLine(BaseModel):
    """The gateway's result of one line of a bulk request, in the order of the lines."""

    line: int
    status: Literal["accepted", "invalid", "refused", "unknown"] = Field(
        description="accepted: the broker has it. invalid: the line holds no event. refused: Kafka "
        "did not accept it; once its client accepts none, no later line is sent. unknown: send the "
        "same body with the same Idempotency-Key."
    )
    event_id: uuid.UUID | None = None
    code: str | None = None
    detail: str | None = None
    fix: str | None = None
    warnings: list[str] | None = Field(
        None, description="What was accepted and may still not be what was meant."
    )


class BulkCounts(BaseModel):
    """The number of lines by status, in the gateway's response to a bulk request."""

    accepted: int
    invalid: int
    refused: int
    unknown: int


class BulkSummary(BaseModel):
    """The last line of the gateway's response to a bulk request."""

    summary: BulkCounts
    token: str | None = Field(
        description="Consistency token over all accepted lines; null where no line was accepted."
    )


Json = dict[str, Any]
