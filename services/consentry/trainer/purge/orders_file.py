"""Purge orders from a file of JSON, for data sets that no Kafka is near."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from consentry.domain.controls import Scope
from consentry.domain.errors import InvalidInput
from consentry.domain.orders import PurgeOrder, PurgeReason
from consentry.domain.values import Micros, parse_member_id
from consentry.forms.controls import parse_instant

_FIELDS: Final = frozenset(
    {
        "order_id",
        "because",
        "recorded_at",
        "due_at",
        "member",
        "pause",
        "jurisdictions",
        "purposes",
        "categories",
    }
)
_ORDER_ID_MAX: Final = 256


def read_orders(path: Path) -> list[PurgeOrder]:
    """The orders of a JSON list, or of one object per line.

    Raises InvalidInput that tells which is wrong.

    Each has `order_id`, `because` (ERASURE, PAUSE, OPT_OUT), `recorded_at` (ISO 8601), and either
    `member` or `jurisdictions` with, if wanted, `categories`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines()]
        )
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"The file of orders {str(path)!r} cannot be read: {type(error).__name__}.",
            code="input.orders",
            fix="write a JSON list of orders, or one JSON object per line",
        ) from error
    if not found:
        raise InvalidInput(
            f"The file of orders {str(path)!r} holds none, as one that was cut off would.",
            code="input.orders",
            fix="check what wrote it; without an order there is nothing to purge or to verify",
        )
    orders = [_order(fields, number) for number, fields in enumerate(found, 1)]
    names = [order.order_id for order in orders]
    if len(set(names)) < len(names):
        raise _wrong(len(names), "an order_id occurs twice")
    return orders


def _order(fields: Any, number: int) -> PurgeOrder:
    if not isinstance(fields, Mapping):
        raise _wrong(number, "it is no object")
    if unknown := sorted(set(fields) - _FIELDS):
        raise _wrong(number, f"{unknown[0]!r} is no field of an order")
    order_id, because = fields.get("order_id"), str(fields.get("because"))
    if not isinstance(order_id, str) or not 0 < len(order_id) <= _ORDER_ID_MAX:
        raise _wrong(number, f"order_id is not a text of 1 to {_ORDER_ID_MAX} characters")
    if because not in PurgeReason.__members__:
        raise _wrong(number, f"because is not one of {', '.join(PurgeReason)}")
    member, scope = fields.get("member"), _scope(fields, number)
    if (member is None) == (not fields.get("jurisdictions")):
        raise _wrong(number, "it names neither a member nor jurisdictions, or both")
    recorded_at = _instant(fields, "recorded_at", number)
    return PurgeOrder(
        order_id=order_id,
        because=PurgeReason(because),
        recorded_at=recorded_at,
        due_at=_instant(fields, "due_at", number) if "due_at" in fields else recorded_at,
        member=None
        if member is None
        else parse_member_id(member if isinstance(member, str) else ""),
        pause=fields.get("pause"),
        scope=scope if member is None else None,
    )


def _scope(fields: Mapping[str, Any], number: int) -> Scope:
    lists: dict[str, tuple[str, ...] | None] = {}
    for name in ("jurisdictions", "purposes", "categories"):
        value = fields.get(name)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(one, str) for one in value)
        ):
            raise _wrong(number, f"{name} is not a list of texts")
        lists[name] = None if value is None else tuple(value)
    return Scope(
        jurisdictions=lists["jurisdictions"] or (),
        purposes=lists["purposes"],
        categories=lists["categories"],
    )


def _instant(fields: Mapping[str, Any], name: str, number: int) -> Micros:
    try:
        return parse_instant(fields.get(name), what=name)
    except InvalidInput as error:
        raise _wrong(number, error.message) from error


def _wrong(number: int, why: str) -> InvalidInput:
    return InvalidInput(
        f"Order {number} of the file cannot be used: {why}.",
        code="input.orders",
        fix="write order_id, because, recorded_at, and a member or jurisdictions",
    )
