"""Many events in one request: each line for itself, in order, once."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
from tests.strategies import PURPOSE
from tests.unit.gateway.in_memory import START, InMemoryGateway, Reply

from consentry.domain.errors import Unavailable
from consentry.domain.events import ConsentChanged, MemberErased, MemberRelocated
from consentry.domain.values import Micros
from consentry.domain.wording import iso_text
from consentry.gateway.bulk import response as bulk_module
from consentry.gateway.bulk.lines import LineReader
from consentry.gateway.routes import events

OUT: dict[str, Any] = {"member_id": "m:1", "purpose": "p", "choice": "OPT_OUT"}


def bulk(gateway: InMemoryGateway, *lines: object, **headers: str) -> Reply:
    """One request of these lines."""
    body = b"\n".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
    )
    return gateway.call("POST", "/v1/bulk", body, content_type="application/x-ndjson", **headers)


def told(reply: Reply) -> tuple[list[Any], Any]:
    """The results of the lines, and the summary."""
    assert reply.status == 200, reply
    *found, summary = map(json.loads, reply.body.splitlines())
    return found, summary


def test_bad_lines_between_good_ones_are_told_and_the_good_ones_sent() -> None:
    """One mistyped line must not keep ten thousand people waiting, nor vanish among them."""
    gateway = InMemoryGateway()

    found, summary = told(
        bulk(
            gateway,
            OUT,
            b"{",
            b"",
            OUT | {"kind": "erasure"},
            {"kind": "erasure", "member_id": "m:2"},
            {"kind": "relocation", "member_id": "m:3", "jurisdiction": "DE"},
            OUT | {"kind": ["x"]},
            OUT | {"choice": "OPT_IN"},
            OUT | {"choice": "OPT_IN", "observed_version": 1},
            OUT | {"event_id": "018f3a9e-1c5a-7cc0-9b1a-0c5fe0f3a111"},
            b"[1]",
            b'{"member_id":"a","member_id":"b","purpose":"p","choice":"OPT_OUT"}',
            b'{"kind":"erasure","kind":"erasure","member_id":"b"}',
        )
    )

    assert [one["line"] for one in found] == list(range(1, 14))
    codes = [one.get("code", "") for one in found]
    assert codes == [
        *("", "input.json", "input.json", "input.field", "", "", "input.field"),
        *(
            "observed.missing",
            "purpose.unknown",
            "event.time_missing",
            "input.field",
            "input.json",
            "input.json",
        ),
    ]
    assert summary["summary"] == {"accepted": 3, "invalid": 10, "refused": 0, "unknown": 0}
    assert [type(event) for event in gateway.log.events] == [
        ConsentChanged,
        MemberErased,
        MemberRelocated,
    ]


def test_what_may_not_be_what_was_meant_is_said_of_each_line() -> None:
    """A misspelt purpose in ten thousand lines is taken, as it excludes, and is nobody's
    intention.
    """
    gateway = InMemoryGateway()
    gateway.publish()
    known = OUT | {"purpose": PURPOSE}

    found, _ = told(
        bulk(
            gateway, OUT, known, OUT | {"member_id": "m:2"}, {"kind": "erasure", "member_id": "m:3"}
        )
    )

    assert [one["status"] for one in found] == ["accepted"] * 4
    assert [bool(one.get("warnings")) for one in found] == [True, False, True, False]
    assert "no policy has terms for this purpose" in found[2]["warnings"][0]


def test_what_is_wrong_is_said_of_the_line_and_not_of_the_body() -> None:
    """ "The body, line 1" beside line 8,000 sends people to look at the wrong place."""
    gateway = InMemoryGateway()

    found, _ = told(bulk(gateway, OUT, b"", b'{"member_id" "m:1"}', json.dumps(OUT).encode() * 2))

    assert [one.get("detail") for one in found] == [
        None,
        "The line is empty.",
        "The line is not JSON: Expecting ':' delimiter, column 14.",
        f"The line is not JSON: Extra data, column {len(json.dumps(OUT)) + 1}.",
    ]
    assert "--data-binary" in found[3]["fix"]


def test_a_compressed_body_is_refused_whole() -> None:
    """Read as lines it would be so many invalid ones, as many as chance has it."""
    reply = bulk(InMemoryGateway(), OUT, content_encoding="gzip")

    assert (reply.status, reply.code) == (415, "input.encoding")


def test_the_events_of_a_member_keep_their_order() -> None:
    """The last word is the one that counts."""
    gateway = InMemoryGateway()
    choices = ["OPT_OUT", "UNKNOWN", "OPT_OUT", "UNKNOWN", "UNKNOWN"]

    bulk(gateway, *(OUT | {"choice": choice} for choice in choices))

    assert [getattr(event, "choice", None) for event in gateway.log.events] == choices


def test_sent_again_with_its_key_every_line_is_the_same_event() -> None:
    """A connection that breaks after line 7,000 of 10,000 leaves nobody knowing which were
    taken.
    """
    gateway = InMemoryGateway()
    first, _ = told(bulk(gateway, OUT, OUT | {"member_id": "m:2"}, OUT, idempotency_key="k"))
    gateway.now += 60_000_000

    second, _ = told(bulk(gateway, OUT, OUT | {"member_id": "m:2"}, OUT, idempotency_key="k"))

    assert first == second
    assert len({one["event_id"] for one in first}) == 3
    record = gateway.log.record("m:1")
    assert record is not None
    assert record.version == 2
    assert bulk(gateway, OUT, idempotency_key="k").code == "idempotency.reused"


def test_without_a_key_it_is_another_import() -> None:
    """Two people who both opted out this morning are two events, also when the lines look alike."""
    gateway = InMemoryGateway()
    for _ in range(2):
        bulk(gateway, OUT)

    assert len({event.event_id for event in gateway.log.events}) == 2


def test_lines_that_nobody_knows_of_and_lines_that_were_refused_are_told_apart() -> None:
    """One kind has to be repeated with the same key, the other can be sent as one likes."""
    for fails, status in (("silent", "unknown"), ("refused", "refused")):
        gateway = InMemoryGateway()
        gateway.log.fails = fails
        found, summary = told(bulk(gateway, OUT, b"{", OUT))

        assert [one["status"] for one in found] == [status, "invalid", status]
        assert found[0]["event_id"]
        assert summary["token"] is None
        assert summary["summary"][status] == 2


def test_the_token_asks_for_all_that_was_accepted() -> None:
    """Asked with it, nobody of the file is answered for from before the file."""
    gateway = InMemoryGateway()
    found, summary = told(
        bulk(gateway, *(OUT | {"member_id": f"m:{number}"} for number in range(50)))
    )

    assert len(found) == 50
    for number in (0, 17, 49):
        assert gateway.decision(f"m:{number}", at_least=summary["token"])["reason"] != "STALE"


def test_an_empty_file_is_nothing() -> None:
    """A night without choices is no error."""
    found, summary = told(bulk(InMemoryGateway()))

    assert (found, summary["token"]) == ([], None)


def test_ten_thousand_lines_are_the_most() -> None:
    """Taken in part, the rest would be believed taken."""
    gateway = InMemoryGateway()

    assert bulk(gateway, *([b"{}"] * 10_001)).code == "input.too_many_lines"
    assert told(bulk(gateway, *([b"{}"] * 10_000)))[1]["summary"]["invalid"] == 10_000
    assert gateway.log.messages == []


def test_a_queue_that_stays_full_refuses_all_lines_from_there_on() -> None:
    """A member's second choice that got in while the first did not would be taken for their only
    one.
    """
    gateway = InMemoryGateway()
    send, taken = gateway.log.send, []

    def two_then_full_then_free(*message: Any) -> None:
        taken.append(message)
        gateway.log.fails = "full" if len(gateway.log.messages) >= 2 and len(taken) < 1000 else ""
        send(*message)

    gateway.log.send = two_then_full_then_free  # type: ignore[assignment]
    found, summary = told(
        bulk(gateway, *({"member_id": f"m:{number}", "kind": "erasure"} for number in range(6)))
    )
    assert [one["status"] for one in found] == ["accepted"] * 2 + ["refused"] * 4
    assert {one["code"] for one in found[2:]} == {"kafka.queue_full"}
    assert summary["summary"]["refused"] == 4
    assert len(gateway.log.messages) == 2


def test_a_client_that_fails_once_refuses_all_lines_from_there_on() -> None:
    """It may take the next message all the same: a second choice would then stand where the first
    is missing.
    """
    gateway = InMemoryGateway()
    send, taken = gateway.log.send, []

    def fails_at_the_third(*message: Any) -> None:
        taken.append(message)
        if len(taken) == 3:
            raise Unavailable("It is broken.", code="kafka.unavailable", fix="wait")
        send(*message)

    gateway.log.send = fails_at_the_third  # type: ignore[assignment]
    found, summary = told(
        bulk(gateway, *(OUT | {"choice": choice} for choice in ["OPT_OUT", "UNKNOWN"] * 3))
    )

    assert [one["status"] for one in found] == ["accepted"] * 2 + ["refused"] * 4
    assert {one["code"] for one in found[2:]} == {"kafka.unavailable"}
    assert summary["summary"]["refused"] == 4
    assert len(gateway.log.messages) == 2


@pytest.mark.parametrize(
    "line",
    [
        OUT | {"effective_at": "2025-13-01T00:00:00Z"},
        OUT | {"evidence": "x" * 5000},
        b"{",
        OUT | {"choice": "x"},
    ],
)
def test_nothing_of_a_request_is_kept_after_its_answer(
    line: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception leads by its traceback to all that was read; some of those circles no collector
    ever ends.
    """
    seen: list[weakref.ref[LineReader]] = []

    def noted(*parts: Any, **more: Any) -> LineReader:
        reader = LineReader(*parts, **more)
        seen.append(weakref.ref(reader))
        return reader

    monkeypatch.setattr(events, "LineReader", noted)
    gateway = InMemoryGateway()
    gc.disable()
    try:
        found, _ = told(bulk(gateway, OUT, line, OUT))
    finally:
        gc.enable()

    assert [one["status"] for one in found] == ["accepted", "invalid", "accepted"]
    assert [one() for one in seen] == [None]


def test_a_line_may_be_no_longer_than_a_request_of_its_own() -> None:
    """One of eight megabytes would keep everybody else waiting while it is read."""
    long = OUT | {"evidence": "x" * 65_536}

    found, _ = told(bulk(InMemoryGateway(), OUT, long, OUT))

    assert [one.get("code") for one in found] == [None, "input.too_large", None]


def test_however_often_others_get_their_turn_the_lines_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading gives way after some time; no line may be lost or told twice for that."""
    lines = [OUT | {"member_id": f"m:{number}"} if number % 3 else b"{" for number in range(20)]
    expected = told(bulk(InMemoryGateway(), *lines, idempotency_key="k"))[1]["summary"]
    turns: list[int] = []
    read = bulk_module._read_chunk

    def noted(*parts: Any) -> Any:
        turns.append(1)
        return read(*parts)

    monkeypatch.setattr(bulk_module, "_read_chunk", noted)
    monkeypatch.setattr(bulk_module, "_CHUNK_SECONDS", -1.0)
    found, summary = told(bulk(InMemoryGateway(), *lines))

    assert len(turns) == 20
    assert [one["line"] for one in found] == list(range(1, 21))
    assert [one["status"] for one in found] == [
        "accepted" if number % 3 else "invalid" for number in range(20)
    ]
    assert summary["summary"] == expected


def test_a_line_that_excludes_later_has_to_say_that_it_is_meant_so() -> None:
    """A file written in another time zone would leave everybody in it in use for hours."""
    gateway = InMemoryGateway()
    late = OUT | {"effective_at": iso_text(Micros(START + 3_600_000_000))}
    near = OUT | {"effective_at": iso_text(Micros(START + 1_000_000)), "member_id": "m:2"}

    found, summary = told(
        bulk(
            gateway,
            late,
            near,
            late | {"announced": True},
            OUT | {"kind": "erasure", "purpose": "p"},
        )
    )

    assert [one.get("code", "") for one in found] == ["event.ahead", "", "", "input.field"]
    assert summary["summary"]["accepted"] == 2
    assert [event.fact().effective_at - START for event in gateway.log.events] == [0, 3_600_000_000]
