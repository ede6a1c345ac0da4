"""Purge orders read from a file of JSON, for data sets that no Kafka is near."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from consentry.domain.controls import Scope
from consentry.domain.errors import InvalidInput
from consentry.domain.orders import PurgeOrder, PurgeReason
from consentry.domain.values import MemberId, Micros, parse_member_id
from consentry.forms.document import Document, InvalidDocument, ListOf, as_validator, refuse
from consentry.forms.fields import parse_instant

_ORDER_ID_CHARACTERS_MAX: Final = 256


def _parse_order_id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _ORDER_ID_CHARACTERS_MAX:
        refuse("", value, f"is not a text of 1 to {_ORDER_ID_CHARACTERS_MAX} characters", "")
    return value


def _parse_reason(value: object) -> PurgeReason:
    if not isinstance(value, str) or value not in PurgeReason.__members__:
        refuse("", value, f"is not one of {', '.join(PurgeReason)}", "")
    return PurgeReason(value)


def _parse_instant(value: object) -> Micros:
    return parse_instant(value, what="")


_OrderId = Annotated[str, BeforeValidator(as_validator(_parse_order_id))]
_Reason = Annotated[PurgeReason, BeforeValidator(as_validator(_parse_reason))]
_Instant = Annotated[int, BeforeValidator(as_validator(_parse_instant))]


class _OrderDocument(Document):
    """One order of the file: for a member, or for jurisdictions and maybe some categories there."""

    order_id: _OrderId
    because: _Reason
    recorded_at: _Instant
    due_at: _Instant = 0
    member: Any = None
    pause: str | None = None
    jurisdictions: ListOf[str] | None = None
    purposes: ListOf[str] | None = None
    categories: ListOf[str] | None = None

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> None:
        """Refuse an order that names both a member and jurisdictions, or neither of them."""
        has_member = fields.get("member") is not None
        if has_member == bool(fields.get("jurisdictions")):
            raise InvalidDocument("", "it names neither a member nor jurisdictions, or both", "")


def read_orders(path: Path) -> list[PurgeOrder]:
    """Return the purge orders of a file: a JSON list, or one object a line.

    Each has `order_id`, `because` (ERASURE, PAUSE, OPT_OUT), `recorded_at` (ISO 8601), maybe
    `due_at`, and either `member` or `jurisdictions`, maybe with `categories`. Raises InvalidInput
    that says which order is wrong.
    """
    documents = _read_json(path)
    if not documents:
        raise InvalidInput(
            f"The file of orders {str(path)!r} holds none, as one that was cut off would.",
            code="input.orders",
            fix="check what wrote it; without an order there is nothing to purge or to verify",
        )
    orders = [_read_order(fields, number) for number, fields in enumerate(documents, 1)]
    if len({order.order_id for order in orders}) < len(orders):
        raise _unusable(len(orders), "an order_id occurs twice")
    return orders


def _read_json(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            documents: list[Any] = json.loads(text)
            return documents
        return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"The file of orders {str(path)!r} cannot be read: {type(error).__name__}.",
            code="input.orders",
            fix="write a JSON list of orders, or one JSON object per line",
        ) from error


def _read_order(fields: Any, number: int) -> PurgeOrder:
    try:
        document = _OrderDocument.read(fields, name="the order")
    except InvalidDocument as error:
        why = error.problem
        if error.field not in ("", "the order"):
            why = f"{error.field}: {why}"
        raise _unusable(number, why) from error
    member: MemberId | None = None
    scope: Scope | None = None
    if document.member is not None:
        member = parse_member_id(document.member)
    else:
        scope = _scope(document)
    return PurgeOrder(
        order_id=document.order_id,
        because=document.because,
        recorded_at=Micros(document.recorded_at),
        due_at=Micros(document.due_at or document.recorded_at),
        member=member,
        pause=document.pause,
        scope=scope,
    )


def _scope(document: _OrderDocument) -> Scope:
    return Scope(
        jurisdictions=document.jurisdictions or (),
        purposes=document.purposes,
        categories=document.categories,
    )


def _unusable(number: int, why: str) -> InvalidInput:
    return InvalidInput(
        f"Order {number} of the file cannot be used: {why}.",
        code="input.orders",
        fix="write order_id, because, recorded_at, and a member or jurisdictions",
    )
