"""What the agent answers: the same as the client, in whatever language it is asked."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa
import pytest
from tests.strategies import PURPOSE, day

from consentry.trainer.agent.bodies import ARROW, BODY_BYTES_MAX, BYTES, ROWS_MAX

DECIDE = f"/v1/decide?purpose={PURPOSE}"


def stream(table: pa.Table, **options: Any) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    found: bytes = sink.getvalue().to_pybytes()
    return found


class TestDecide:
    def test_it_says_whether_and_why(self, agent: Any) -> None:
        """A trainer in another language has no other way to ask."""
        anna, bert = (
            agent.call("GET", f"{DECIDE}&member=anna"),
            agent.call("GET", f"{DECIDE}&member=bert"),
        )

        assert anna.status == bert.status == 200
        assert (anna.data["allowed"], anna.data["reason"], anna.data["fresh"]) == (
            True,
            "DEFAULT_ON",
            True,
        )
        assert (bert.data["allowed"], bert.data["reason"]) == (False, "OPTED_OUT")
        assert bert.data["because"]
        assert anna.data["snapshot"] == agent.follower.snapshot_id
        assert (anna.headers["consentry-fresh"], anna.headers["cache-control"]) == (
            "true",
            "no-store",
        )

    def test_the_question_may_be_in_the_body_and_name_a_row(self, agent: Any) -> None:
        """Paths end up in logs, where a member must not be named."""
        asked = {"member": "anna", "purpose": PURPOSE, "collected_at": "2024-10-11T09:00:00Z"}

        assert agent.call("POST", "/v1/decide", asked).data["allowed"]
        nowhere = agent.call("POST", "/v1/decide", asked | {"jurisdiction": "XX"})
        assert nowhere.data["reason"] == "JURISDICTION_UNKNOWN"

    @pytest.mark.parametrize(
        "more",
        [
            {"purpose": "GenAI!"},
            {"member": "a b"},
            {"jurisdictions": "US"},
            {"collected_at": "soon"},
            {"wait": 1e9},
            {"member": 7},
        ],
    )
    def test_what_does_not_fit_is_a_problem_with_a_code_and_a_fix(
        self, agent: Any, more: dict[str, Any]
    ) -> None:
        """A field that is ignored in silence may be the one that excludes."""
        answer = agent.call("POST", "/v1/decide", {"member": "anna", "purpose": PURPOSE} | more)

        assert answer.status == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.data["code"]
        assert answer.data["fix"]

    def test_a_token_is_waited_for_and_else_the_answer_is_stale(self, agent: Any) -> None:
        """Who has just seen an opt-out accepted must not be told the state before it."""
        late = agent.call("GET", f"{DECIDE}&member=anna&at_least=later&wait=0.1")
        assert (late.status, late.data["reason"], late.data["fresh"]) == (200, "STALE", False)
        assert late.headers["consentry-fresh"] == "false"

        threading.Timer(0.2, lambda: agent.follower.reached.add("later")).start()
        assert agent.call("GET", f"{DECIDE}&member=anna&at_least=later&wait=10").data["allowed"]


class TestMask:
    def test_every_row_has_an_answer_in_its_order(self, agent: Any) -> None:
        """A mask that is shifted by one trains on the wrong members."""
        answer = agent.mask("anna", "bert", "nobody", "anna", reasons=True)

        assert answer.data["mask"] == [True, False, False, True]
        assert answer.data["reasons"] == [
            "DEFAULT_ON",
            "OPTED_OUT",
            "JURISDICTION_UNKNOWN",
            "DEFAULT_ON",
        ]
        assert answer.data["counts"] == {"DEFAULT_ON": 2, "OPTED_OUT": 1, "JURISDICTION_UNKNOWN": 1}
        assert (answer.data["rows"], answer.data["allowed"], answer.data["fresh"]) == (4, 2, True)

    def test_ids_that_are_none_stay_in_as_excluded_rows(self, agent: Any) -> None:
        """Dropped rows shift the mask, and nobody counts them."""
        odd = [None, True, 1.5, {"id": 1}, "", "a b", 10**30, "\ud800", 42]

        answer = agent.mask(*odd, "anna", reasons=True)

        assert answer.data["mask"] == [False] * len(odd) + [True]
        assert answer.data["counts"]["QUARANTINED"] == len(odd) - 1

    def test_rows_may_name_where_and_when_they_come_from(self, agent: Any) -> None:
        """The stricter of two jurisdictions decides: left out, rows would be allowed that are
        not.
        """
        answer = agent.mask(
            "anna", "anna", "anna", jurisdiction=["US", "XX", None], collected_at=day(3)
        )
        assert answer.data["mask"] == [True, False, True]

        assert agent.mask("nobody", jurisdiction="US").data["mask"] == [True]

    def test_ten_thousand_rows_are_judged_in_one_call_off_the_event_loop(self, agent: Any) -> None:
        """Ten thousand questions one by one would take seconds in which nobody else is answered."""
        agent.follower.judged.clear()

        answer = agent.mask(*[f"m{number}" for number in range(9_999)], "anna")

        assert (answer.data["rows"], answer.data["allowed"]) == (10_000, 1)
        [(rows, thread)] = agent.follower.judged
        assert rows == 10_000
        assert thread.startswith("question")

    @pytest.mark.parametrize(
        "column",
        [
            pa.array(["anna", "bert", None]),
            pa.array(["anna", "bert", None], pa.large_string()),
            pa.array(["anna", "bert", None]).dictionary_encode(),
        ],
    )
    def test_an_arrow_stream_gives_bytes_or_arrow_back(self, agent: Any, column: pa.Array) -> None:
        """Millions of rows as JSON cost more than judging them."""
        body = stream(pa.table({"member_id": column, "text": ["a", "b", "c"]}))
        path = f"/v1/mask?purpose={PURPOSE}"

        as_bytes = agent.call("POST", path, body, kind=ARROW, Accept=BYTES)
        as_arrow = agent.call("POST", path, body, kind=ARROW, Accept=ARROW)
        as_json = agent.call("POST", path, body, kind=ARROW)

        assert as_bytes.body == b"\1\0\0"
        assert as_bytes.headers["consentry-fresh"] == "true"
        assert (
            as_bytes.headers["consentry-counts"]
            == '{"QUARANTINED": 1, "OPTED_OUT": 1, "DEFAULT_ON": 1}'
        )
        found = pa.ipc.open_stream(as_arrow.body).read_all().to_pydict()
        assert found == {
            "allowed": [True, False, False],
            "reason": ["DEFAULT_ON", "OPTED_OUT", "QUARANTINED"],
        }
        assert as_json.data["mask"] == [True, False, False]

    def test_the_member_column_of_an_arrow_stream_may_have_any_name(self, agent: Any) -> None:
        """Nobody renames a column of a terabyte."""
        path = f"/v1/mask?purpose={PURPOSE}"
        body = stream(pa.table({"author": ["anna"]}))

        assert agent.call("POST", f"{path}&member_col=author", body, kind=ARROW).data["mask"] == [
            True
        ]
        wrong = agent.call("POST", path, body, kind=ARROW)
        assert (wrong.status, wrong.data["code"]) == (422, "input.column")
        assert "'author'" in wrong.data["detail"]

    def test_nothing_in_an_arrow_stream_is_believed_before_it_is_checked(self, agent: Any) -> None:
        """Offsets that point elsewhere end the process, and small bodies that become large ones its
        memory.
        """
        path = f"/v1/mask?purpose={PURPOSE}"
        table = pa.table({"member_id": ["anna"] * 1000})
        whole = stream(table)
        [offsets] = [buffer for buffer in table["member_id"].chunk(0).buffers()[1:2]]
        place = whole.index(offsets.to_pybytes()[:64])
        wild = whole[: place + 8] + (1 << 30).to_bytes(4, "little") + whole[place + 12 :]
        nulls = pa.RecordBatch.from_arrays([pa.nulls(ROWS_MAX + 1)], ["member_id"])
        longest = pa.DictionaryArray.from_arrays(
            pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 10_000])
        )
        bad = {
            "input.arrow": [
                whole[:100],
                b"",
                b"ARROW1",
                wild,
                whole + b"x",
                whole + whole,
                whole[:-8],
            ],
            "input.arrow_compressed": [stream(table, compression=kind) for kind in ("zstd", "lz4")],
            "input.too_many_rows": [stream(pa.Table.from_batches([nulls]))],
            "input.too_large": [stream(pa.table({"member_id": longest}))],
            "input.column": [
                stream(pa.table({"member_id": [[1]]})),
                stream(pa.table({"member_id": [1.5]})),
            ],
        }
        for code, bodies in bad.items():
            for body in bodies:
                answer = agent.call("POST", path, body, kind=ARROW)
                assert (answer.data["code"], 400 <= answer.status < 500) == (code, True), (
                    code,
                    answer,
                )
        assert agent.call("POST", path, whole, kind=ARROW).data["allowed"] == 1000

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            (b"{", 400),
            (b"[]", 400),
            (b'{"purpose": "a", "purpose": "b", "member_id": []}', 400),
            (b'{"purpose": "a", "member_id": [NaN]}', 400),
            (b"[" * 100_000, 400),
            (b'{"purpose": "a", "member_id": "anna"}', 422),
            (b'{"member_id": ["anna"]}', 422),
            (b'{"purpose": "a", "member_id": ["anna"], "jurisdiction": ["US", "US"]}', 422),
            (b'{"purpose": "a", "member_id": ["anna"], "jurisdictions": ["HK"]}', 422),
            (b'{"purpose": "a", "member_id": ["anna"], "collected_at": ["soon"]}', 422),
        ],
    )
    def test_what_is_no_question_is_refused_and_judged_by_nobody(
        self, agent: Any, body: bytes, status: int
    ) -> None:
        """A guess at what was meant is a guess at who is excluded."""
        answer = agent.call("POST", "/v1/mask", body)

        assert answer.status == status
        assert answer.data["code"].startswith("input.")
        assert agent.follower.judged == []

    def test_a_body_that_is_too_large_or_of_another_kind_is_not_read(self, agent: Any) -> None:
        """One caller could otherwise take all memory of the machine that trains."""
        assert agent.call("POST", "/v1/mask", b"a,b", kind="text/csv").status == 415
        head = (
            f"POST /v1/mask HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BODY_BYTES_MAX + 1}\r\n"
        )
        assert (
            b"413"
            in agent.raw(f"{head}Content-Type: application/json\r\n\r\n{{".encode()).splitlines()[0]
        )

    def test_no_rows_are_no_error(self, agent: Any) -> None:
        """The last batch of a file may be empty."""
        assert agent.mask().data["mask"] == []


class TestFreshness:
    def test_before_it_is_ready_it_answers_nothing(self, follower: Any, start: Any) -> None:
        """An answer from half of what was there would allow the other half's opt-outs."""
        follower.stale_detail = "what was there at the start has not all been read"
        agent = start()
        for answer in (
            agent.mask("anna"),
            agent.call("GET", f"{DECIDE}&member=anna"),
            agent.call("GET", "/v1/events"),
        ):
            assert (answer.status, answer.data["code"]) == (503, "agent.not_ready")
            assert answer.headers["retry-after"]
        assert agent.call("GET", "/readyz").status == 503
        assert agent.call("GET", "/healthz").status == 200

        follower.stale_detail = ""

        assert agent.mask("anna").data["mask"] == [True]
        assert agent.call("GET", "/readyz").status == 200

    def test_once_it_is_stale_every_answer_excludes_and_says_so(self, agent: Any) -> None:
        """An error would be retried or caught; an answer that excludes is used."""
        assert agent.mask("anna").data["fresh"]
        agent.follower.stale_detail = "the least fresh partition is 7 s old"

        mask = agent.mask("anna", "bert")
        decision = agent.call("GET", f"{DECIDE}&member=anna")

        assert (mask.status, mask.data["mask"], mask.data["counts"]) == (
            200,
            [False, False],
            {"STALE": 2},
        )
        assert (mask.data["fresh"], mask.headers["consentry-fresh"]) == (False, "false")
        assert (decision.status, decision.data["reason"], decision.data["fresh"]) == (
            200,
            "STALE",
            False,
        )
        assert agent.call("GET", "/readyz").status == 503
        assert not agent.call("GET", "/v1/status").data["fresh"]

    def test_a_thread_that_no_longer_follows_is_not_alive(self, agent: Any) -> None:
        """Nobody would start it again."""
        agent.follower.is_following = False
        assert agent.call("GET", "/healthz").status == 503


class TestDescription:
    def test_every_route_and_model_is_described(self, agent: Any) -> None:
        """Clients in other languages are generated from it."""
        found = agent.call("GET", "/openapi.json").data

        assert set(found["paths"]) == {
            f"/v1/{name}" for name in ("decide", "mask", "check", "events", "status")
        }
        text = str(found)
        for name in found["components"]["schemas"]:
            assert "$ref" not in name
        used = {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}
        assert used <= set(found["components"]["schemas"])
        assert set(found["paths"]["/v1/mask"]["post"]["requestBody"]["content"]) == {
            "application/json",
            ARROW,
        }

    def test_metrics_and_status_name_no_member(self, agent: Any) -> None:
        """They are read by many more than may know who opted out."""
        agent.mask("anna", "bert")
        assert b"anna" not in agent.call("GET", "/metrics").body
        assert b"anna" not in agent.call("GET", "/v1/status").body
        assert b"consentry_build_info" in agent.call("GET", "/metrics").body

    def test_an_unknown_path_is_a_problem_too(self, agent: Any) -> None:
        """A client has one way to read what went wrong."""
        for method, path, status in (
            ("GET", "/v2", 404),
            ("DELETE", "/v1/mask", 405),
            ("GET", "/v1/decide", 422),
        ):
            answer = agent.call(method, path)
            assert (answer.status, answer.headers["content-type"]) == (
                status,
                "application/problem+json",
            )
