"""Orders from a file: what is not understood deletes nothing, and is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consentry.domain.controls import Scope
from consentry.domain.errors import InvalidInput
from consentry.domain.orders import PurgeOrder, PurgeReason
from consentry.domain.values import MemberId, Micros
from consentry.trainer.purge.orders_file import read_orders

ORDER: dict[str, Any] = {
    "order_id": "erase-1",
    "because": "ERASURE",
    "recorded_at": "2024-10-11",
    "member": "m:1",
}
SCOPE: dict[str, Any] = {
    **{name: value for name, value in ORDER.items() if name != "member"},
    "jurisdictions": ["HK"],
}
RECORDED_AT = Micros(1_728_604_800_000_000)
DAY = 86_400_000_000


def read(path: Path, *orders: Any) -> list[PurgeOrder]:
    """The orders of a file that holds a list of these."""
    path.write_text(json.dumps(orders))
    return read_orders(path)


def test_an_order_is_for_a_member_or_for_a_scope(tmp_path: Path) -> None:
    """Both kinds of duty come as files too."""
    scope = {**SCOPE, "order_id": "hk", "categories": ["posts"], "due_at": "2024-10-12"}
    assert read(tmp_path / "orders.json", ORDER, scope) == [
        PurgeOrder(
            order_id="erase-1",
            because=PurgeReason.ERASURE,
            recorded_at=RECORDED_AT,
            due_at=RECORDED_AT,
            member=MemberId("m:1"),
        ),
        PurgeOrder(
            order_id="hk",
            because=PurgeReason.ERASURE,
            recorded_at=RECORDED_AT,
            due_at=Micros(RECORDED_AT + DAY),
            scope=Scope(jurisdictions=("HK",), purposes=None, categories=("posts",)),
        ),
    ]


def test_a_file_may_hold_one_object_a_line(tmp_path: Path) -> None:
    """Most exports are written so."""
    file = tmp_path / "orders.jsonl"
    file.write_text(json.dumps(ORDER) + "\n" + json.dumps(SCOPE | {"order_id": "b"}) + "\n")
    assert [order.order_id for order in read_orders(file)] == ["erase-1", "b"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"order_id": ""}, "order_id: '' is not a text of 1 to 256 characters"),
        ({"order_id": 7}, "order_id: '7' is not a text of 1 to 256 characters"),
        ({"because": "WHIM"}, "because: 'WHIM' is not one of ERASURE, PAUSE, OPT_OUT"),
        ({"recorded_at": "yesterday"}, "recorded_at: 'yesterday' is not an ISO 8601 date or time"),
        ({"due_at": None}, "due_at: 'None' is not an ISO 8601 date or time"),
        ({"jurisdictions": ["HK"]}, "it names neither a member nor jurisdictions, or both"),
        ({"member": None}, "it names neither a member nor jurisdictions, or both"),
        ({"member": None, "jurisdictions": "HK"}, "jurisdictions: 'HK' is not a list"),
        ({"categories": [1]}, r"categories\[0\]: '1' is not a text"),
        ({"pauses": "x"}, "pauses: 'pauses' is not a field of the order"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_its_order(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    """A file of thousands of orders is mended at one line."""
    with pytest.raises(InvalidInput, match=f"Order 2 of the file cannot be used: {why}") as caught:
        read(tmp_path / "orders.json", SCOPE, {**ORDER, **change})
    assert caught.value.code == "input.orders"


@pytest.mark.parametrize("missing", ["order_id", "because", "recorded_at"])
def test_a_field_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    """Without one of these nobody can say what is to be deleted, or by when."""
    fields = {name: value for name, value in ORDER.items() if name != missing}
    with pytest.raises(InvalidInput, match=f"'{missing}' is missing"):
        read(tmp_path / "orders.json", fields)


@pytest.mark.parametrize("member", ["", "a b", 7])
def test_a_member_that_is_no_pseudonym_is_refused_as_everywhere(
    tmp_path: Path, member: Any
) -> None:
    """An order that finds nobody would be answered with NOT_FOUND."""
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / "orders.json", {**ORDER, "member": member})
    assert caught.value.code == "input.member_id"


@pytest.mark.parametrize("text", ["", "[]", "{", "[1]", '"text"', '{"order_id": "a"'])
def test_a_file_that_holds_no_orders_is_refused(tmp_path: Path, text: str) -> None:
    """A file that was cut off must not count as one that asks for nothing."""
    (tmp_path / "orders.json").write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_orders(tmp_path / "orders.json")
    assert caught.value.code == "input.orders"


def test_two_orders_of_one_id_are_refused(tmp_path: Path) -> None:
    """One receipt would stand for both."""
    with pytest.raises(InvalidInput, match="an order_id occurs twice"):
        read(tmp_path / "orders.json", ORDER, SCOPE)
