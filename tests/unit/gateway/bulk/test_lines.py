"""Lines of one form are read once: what the first of them was checked for must hold for all, letter
by letter.
"""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import PURPOSE
from tests.unit.gateway.in_memory import CATALOG, PRODUCER, START, InMemoryGateway

from consentry.domain.errors import ConsentryError
from consentry.domain.values import Micros
from consentry.gateway.bulk.lines import LineReader
from consentry.gateway.idempotency import Attempt
from consentry.gateway.kafka_submit import OutMessage
from consentry.wire.events import read_event

ATTEMPT: Final = Attempt("asked", "0f" * 16, Micros(START), Micros(START), nonce="n")
LINES: Final = 8
UUID: Final = "018f3a9e-1c5a-7cc0-9b1a-0c5fe0f3a111"
TIME: Final = "2025-01-02T03:04:05Z"

Outcome = OutMessage | tuple[str, str]

MEMBERS: Final = [
    *(
        '"m:1"',
        '"m:2"',
        '"m\\u003a1"',
        '"m\\u003a2"',
        f'"{"A" * 64}"',
        f'"{"A" * 65}"',
        '""',
        '"m.1"',
        '"m 1"',
        '"mé"',
    ),
    *('"m\\"1"', '"member_id"', '"null"', "null", "1"),
]
EVENT_IDS: Final = [
    *(
        f'"{UUID}"',
        f'"1{UUID[1:]}"',
        f'"{UUID.upper()}"',
        f'"{UUID.replace("-", "")}"',
        f'"urn:uuid:{UUID}"',
    ),
    *(
        f'"{{{UUID}}}"',
        f'"{{1{UUID[1:]}}}"',
        "null",
        f'"{UUID[:-1]}"',
        f'"{UUID}0"',
        '"x"',
        '""',
        "5",
    ),
    '"018f3a9e1-c5a-7cc0-9b1a-0c5fe0f3a11"',
]
INSTANTS: Final = [
    *(f'"{TIME}"', '"2025-01-02T03:04:06Z"', f'"{TIME.lower()}"', '"2025-01-02T03:04:05+01:00"'),
    *(
        '"2025-01-02T03:04:05.123456-03:30"',
        '"20250102T030405Z"',
        '"2025-W01-4T03:04:05Z"',
        '"2025-06-15T15:06:40Z"',
    ),
    *(
        '"2025-06-15T15:06:41.5Z"',
        '"2025-06-15T15:06:43Z"',
        '"2026-06-15T15:06:43Z"',
        '"2025-01\\u002d02T03:04:05Z"',
    ),
    *(
        '"2025-01\\u002d02T03:04:06Z"',
        "null",
        '"2025-01-02T03:04:05"',
        '"2025-01-02"',
        '"1969-01-01T00:00:00Z"',
    ),
    *(
        '"3200-01-01T00:00:00Z"',
        '"2025-01-02T25:04:05Z"',
        '"1750000000"',
        '"0001-01-01T00:00:00+23:59"',
        '""',
        '"T"',
    ),
    *("5", "true"),
]
VALUES: Final[dict[str, list[str]]] = {
    "member_id": MEMBERS,
    "event_id": EVENT_IDS,
    "effective_at": INSTANTS,
    "purpose": [f'"{PURPOSE}"', f'"{PURPOSE}"', '"other"', '"a b"', "7"],
    "choice": ['"OPT_OUT"', '"OPT_OUT"', '"OPT_IN"', '"UNKNOWN"', '"out"'],
    "observed_version": ["0", "3", "null", "-1", '"3"', "1e2"],
    "announced": ["true", "true", "false", "1"],
    "notice_version": [
        '"v1"',
        '"\\"member_id\\": \\"m:9\\""',
        '"member_id"',
        '"\\u0000"',
        '{"member_id": "m:1"}',
    ],
    "kind": ['"consent-change"', '"erasure"', '"relocation"', '"x"', "1"],
    "jurisdiction": ['"DE"', '"XX"'],
    'x\\"member_id': ['"m:1"'],
}
"""What a line may say, the usual first."""
NAMES: Final = [
    *(
        ["member_id", "purpose", "choice"],
        ["member_id", "purpose", "choice", "event_id", "effective_at"],
    ),
    *(
        ["effective_at", "choice", "member_id", "purpose"],
        ["event_id", "member_id", "kind", "effective_at"],
    ),
    *(
        ["purpose", "choice", "announced", "effective_at", "member_id"],
        ["kind", "member_id", "jurisdiction"],
    ),
    ["member_id", "purpose", "choice", "observed_version", "notice_version"],
]


@st.composite
def lines_of_few_forms(draw: st.DrawFn) -> list[bytes]:
    """Lines that share their names, order and blanks, as a program writes them; now and then one
    that does not.
    """
    names = draw(
        st.sampled_from(NAMES)
        | st.sampled_from(NAMES)
        | st.lists(st.sampled_from([*VALUES]), max_size=6)
    )
    colon = draw(st.sampled_from([": ", ":", " : ", ":  ", ":\t"]))
    usual = draw(st.sampled_from(['"consent-change"', '"erasure"', '"relocation"']))
    lines = []
    for _ in range(LINES):
        told = {
            name: draw(st.just(VALUES[name][0]) | st.sampled_from(VALUES[name])) for name in names
        }
        if "kind" in told and draw(st.booleans()):
            told["kind"] = usual
        pairs = [f'"{name}"{colon}{value}' for name, value in told.items()]
        pairs += draw(
            st.sampled_from([[], [], [], [], ['"member_id": "m:7"'], ['"event_id"'], [""]])
        )
        lines.append(
            ("{" + draw(st.sampled_from([", ", ", ", ", ", ","])).join(pairs) + "}").encode()
        )
    return lines


@pytest.mark.parametrize("name", ["member_id", "event_id", "effective_at"])
@pytest.mark.parametrize(
    "rest",
    [
        {"purpose": f'"{PURPOSE}"', "choice": '"OPT_OUT"'},
        {"purpose": f'"{PURPOSE}"', "choice": '"OPT_OUT"', "announced": "true"},
        {"kind": '"erasure"'},
        {"kind": '"relocation"', "jurisdiction": '"DE"'},
    ],
)
def test_every_two_spellings_of_a_value_are_told_apart(name: str, rest: dict[str, str]) -> None:
    """The second of two lines must be what it would be alone, whatever the first one said in its
    place.
    """
    base = {"member_id": MEMBERS[0], "event_id": EVENT_IDS[0], "effective_at": INSTANTS[0]} | rest
    for first in VALUES[name]:
        for second in VALUES[name]:
            pair = [line(base | {name: value}) for value in (first, second)]
            assert told_of(pair) == [
                outcome(reader(), number, text) for number, text in enumerate(pair)
            ], pair


def test_names_that_change_places_are_told_apart() -> None:
    """Two lines may be alike in all that stands between the values."""
    change = {"purpose": f'"{PURPOSE}"', "choice": '"OPT_OUT"'}
    one = {"member_id": f'"{UUID}"', "event_id": EVENT_IDS[1], "effective_at": INSTANTS[0]}
    other = {"event_id": EVENT_IDS[1], "member_id": f'"{UUID}"', "effective_at": INSTANTS[0]}
    pair = [line(one | change), line(other | change)]

    assert told_of(pair) == [outcome(reader(), number, text) for number, text in enumerate(pair)]


@given(lines=lines_of_few_forms())
def test_a_line_of_a_known_form_is_read_as_if_it_were_the_first(lines: list[bytes]) -> None:
    """One line read otherwise than alone is a choice that nobody made, or one that is lost."""
    assert told_of(lines) == [outcome(reader(), number, text) for number, text in enumerate(lines)]


def test_lines_of_one_form_are_checked_in_full_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would compare the slow way with itself."""
    strictly: list[int] = []
    read = LineReader._read_strictly

    def noted(self: LineReader, number: int, *rest: Any) -> OutMessage:
        strictly.append(number)
        return read(self, number, *rest)

    monkeypatch.setattr(LineReader, "_read_strictly", noted)
    one = reader()
    change = {"purpose": PURPOSE, "choice": "OPT_OUT"}
    own = {"event_id": UUID, "effective_at": TIME}
    lines: list[dict[str, Any]] = [{"member_id": f"m:{number}"} | change for number in range(5)]
    lines += [{"member_id": f"m:{number}"} | change | own for number in range(5)]

    messages = [one.read(number, json.dumps(line).encode()) for number, line in enumerate(lines)]

    assert strictly == [0, 5]
    assert [message.key for message in messages] == [line["member_id"].encode() for line in lines]
    assert len({message.event_id for message in messages}) == 6
    events = [read_event(message.value, message.key, CATALOG) for message in messages]
    assert [event.event_id.hex() for event in events] == [
        message.event_id.replace("-", "") for message in messages
    ]


def test_a_line_whose_member_is_spelt_with_escapes_is_no_form_of_others() -> None:
    """All that were alike would be of that one member."""
    one = reader()
    message = one.read(
        0, line({"member_id": '"m\\u003a1"', "purpose": f'"{PURPOSE}"', "choice": '"OPT_OUT"'})
    )

    assert (message.key, one._templates) == (b"m:1", {})


def test_no_more_forms_are_kept_than_is_reasonable() -> None:
    """Each line of a hostile body may have a form of its own."""
    one = reader(count=2000)
    for number in range(2000):
        line = {
            "member_id": "m:1",
            "purpose": PURPOSE,
            "choice": "OPT_OUT",
            "evidence": f"e{number}",
        }
        assert one.read(number, json.dumps(line).encode()).key == b"m:1"

    assert len(one._templates) == 256


def reader(count: int = LINES) -> LineReader:
    """A reader that has met no line yet."""
    return LineReader(GATEWAY.context, ATTEMPT, source=PRODUCER, count=count, traceparent=None)


def line(values: dict[str, str]) -> bytes:
    """A line of these names and JSON values."""
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}").encode()


def told_of(lines: list[bytes]) -> list[Outcome]:
    """What the lines of one request come to."""
    together = reader()
    return [outcome(together, number, text) for number, text in enumerate(lines)]


def outcome(one: LineReader, number: int, text: bytes) -> Outcome:
    """What the line came to."""
    try:
        return one.read(number, text)
    except ConsentryError as error:
        return error.code, error.message


def _open_gateway() -> InMemoryGateway:
    gateway = InMemoryGateway()
    gateway.publish()
    return gateway


GATEWAY: Final = _open_gateway()
