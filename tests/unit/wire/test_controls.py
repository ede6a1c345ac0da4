"""Controls, orders, receipts and frontiers: what is written is read back, and what cannot be read
stops everything.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import (
    PURPOSE,
    WORLD,
    any_control,
    day,
    instants,
    lift,
    member_ids,
    names,
    new_catalog,
    pause,
    policy,
    terms,
    texts,
)

from consentry.domain.controls import Control, Controls, PauseImposed, Reach, Scope
from consentry.domain.decisions import Row, decide
from consentry.domain.errors import InvalidInput, UndecodableEvent
from consentry.domain.orders import PurgeOrder, PurgeReason, Receipt, Result
from consentry.domain.values import Micros, Reason
from consentry.wire.controls import control_key, read_control, read_control_or_pause, write_control
from consentry.wire.frames import FRAME_LENGTH
from consentry.wire.frontiers import Frontier, read_frontier, readable_frontiers, write_frontier
from consentry.wire.messages import StoredMessage
from consentry.wire.purge_orders import read_order, read_receipt, write_order, write_receipt
from consentry.wire.schemas import schema

CATALOG = new_catalog()
OFFSETS = st.integers(0, 2**62)


@st.composite
def orders(draw: st.DrawFn) -> PurgeOrder:
    """Any order, of a member or of a scope."""
    common = {
        "order_id": draw(texts),
        "because": draw(st.sampled_from(PurgeReason)),
        "recorded_at": draw(instants),
        "due_at": draw(instants),
        "is_settled": draw(st.booleans()),
    }
    if draw(st.booleans()):
        purposes = draw(st.none() | st.tuples(names))
        scope = None if purposes is None else Scope(jurisdictions=(), purposes=purposes)
        return PurgeOrder(member=draw(member_ids), scope=scope, **common)
    scope = Scope(
        jurisdictions=("HK",),
        purposes=draw(st.none() | st.tuples(names)),
        categories=draw(st.none() | st.tuples(names, names)),
    )
    return PurgeOrder(pause=draw(names), scope=scope, **common)


receipts = st.builds(
    Receipt,
    order_id=texts,
    subscriber=texts,
    dataset=texts,
    result=st.sampled_from(Result),
    rows_removed=OFFSETS,
    version_before=texts,
    version_after=texts,
    completed_at=instants,
    detail=texts,
)
frontiers = st.builds(
    Frontier,
    partition=st.integers(0, 1000),
    generation=texts,
    frontier_at=instants,
    next_offset=OFFSETS,
    records_offset=OFFSETS,
    controls_offset=OFFSETS,
    tainted=st.booleans(),
)


class TestRoundTrips:
    @given(any_control())
    def test_a_control_is_read_back_as_it_was_written(self, control: Control) -> None:
        """A regulator's scope that loses an entry on its way leaves a country open."""
        assert read_control(write_control(control, CATALOG), CATALOG) == control

    @given(orders())
    def test_an_order_is_read_back_as_it_was_written(self, order: PurgeOrder) -> None:
        """A subscriber deletes what it reads."""
        assert read_order(write_order(order, CATALOG), CATALOG) == order

    @given(receipts)
    def test_a_receipt_is_read_back_as_it_was_written(self, receipt: Receipt) -> None:
        """It is shown to the regulator."""
        assert read_receipt(write_receipt(receipt, CATALOG), CATALOG) == receipt

    @given(frontiers)
    def test_a_frontier_is_read_back_as_it_was_written(self, frontier: Frontier) -> None:
        """Freshness is believed on these numbers alone."""
        assert read_frontier(write_frontier(frontier, CATALOG), CATALOG) == frontier

    def test_a_large_policy_is_read_back_or_never_written(self) -> None:
        """It would be accepted at the desk, and then pause everything as unreadable."""
        large = policy(
            1,
            *(terms("US-CA", "HK", "EEA", purpose=f"purpose-{number}") for number in range(1200)),
            on=1,
        )

        assert read_control(write_control(large, CATALOG), CATALOG) == large

    def test_a_policy_that_nobody_could_read_is_refused_before_it_is_sent(self) -> None:
        """The desk must hear it, not every trainer."""
        huge = policy(
            1,
            *(terms("US-CA", "HK", "EEA", purpose=f"purpose-{number}") for number in range(20_000)),
            on=1,
        )

        with pytest.raises(InvalidInput):
            write_control(huge, CATALOG)

    def test_a_version_beyond_32_bits_is_refused(self) -> None:
        """No reader in another language could read that control: it would not see the pause."""
        beyond = write_control(pause(1, "HK", on=1, version=2**40), CATALOG)

        with pytest.raises(UndecodableEvent):
            read_control(beyond, CATALOG)


class TestKeys:
    def test_no_two_controls_share_a_key(self) -> None:
        """Compaction keeps the last message of a key: a shared one would make an earlier pause
        vanish.
        """
        controls: list[Control] = [
            pause(1, "HK", on=1),
            pause(2, "HK", on=1),
            lift(3, on=1),
            policy(4, terms("*"), on=1),
        ]

        assert len({control_key(control) for control in controls}) == len(controls)


class TestClocks:
    def test_a_pause_from_a_fast_clock_binds_at_once(self) -> None:
        """An authority ordered it now; a desk whose clock runs ahead must not postpone it by an
        hour.
        """
        value = write_control(pause(1, "GB", on=9), CATALOG)

        found = read_control_or_pause(value, offset=1, appended_at=day(2), catalog=CATALOG)

        assert isinstance(found, PauseImposed)
        assert found.recorded_at == found.effective_at == day(2) + 999

    def test_a_pause_in_nanoseconds_pauses_everything(self) -> None:
        """Read as microseconds it would bind in fifty thousand years."""
        beyond = replace(pause(1, "GB", on=2), effective_at=Micros(day(2) * 1000))

        found = read_control_or_pause(
            write_control(beyond, CATALOG), offset=1, appended_at=day(2), catalog=CATALOG
        )

        assert isinstance(found, PauseImposed)
        assert found.pause == "unreadable-1"

    def test_an_unreadable_frontier_is_left_out(self) -> None:
        """One junk message on that topic would otherwise end every worker at each start."""
        good = Frontier(0, "life", day(1), 1, 2, 3, False)
        values = [b"junk", write_frontier(good, CATALOG), None]
        messages = [
            StoredMessage(0, offset, b"0", value, day(1)) for offset, value in enumerate(values)
        ]

        assert list(readable_frontiers(messages, CATALOG)) == [good]


class TestRefusals:
    def test_a_member_event_on_the_controls_topic_is_refused(self) -> None:
        """Who may produce member events must not be able to lift a pause."""
        value = CATALOG.frame_of("MemberErased") + b"whatever"

        with pytest.raises(UndecodableEvent):
            read_control(value, CATALOG)

    def test_a_result_that_is_not_known_leaves_the_obligation_open(self) -> None:
        """A subscriber of a later version may say something new; that is not DELETED."""
        fields = {
            "order_id": "o",
            "subscriber": "s",
            "dataset": "d",
            "result": "UNKNOWN",
            "detail": "",
            "rows_removed": 0,
            "version_before": "",
            "version_after": "",
            "completed_at": 0,
        }
        value = CATALOG.frame_of("Receipt") + schema("Receipt").encode(fields)

        assert read_receipt(value, CATALOG).result is Result.FAILED

    def test_an_order_with_a_reason_that_is_not_known_is_refused(self) -> None:
        """Deleting for no reason is as wrong as keeping."""
        good = write_order(
            PurgeOrder(order_id="", because=PurgeReason.ERASURE, recorded_at=day(1), due_at=day(2)),
            CATALOG,
        )
        at = FRAME_LENGTH + 1
        assert good[at] == 0

        with pytest.raises(UndecodableEvent):
            read_order(good[:at] + b"\x06" + good[at + 1 :], CATALOG)

    @given(st.none() | st.binary(max_size=40), st.integers(0, 2**40))
    def test_a_control_that_cannot_be_read_pauses_everything(
        self, value: bytes | None, offset: int
    ) -> None:
        """It may have been a regulator's stop; until an operator has looked, nothing is used."""
        open_to_all = Controls(WORLD).after(policy(900, terms("*"), on=0))

        control = read_control_or_pause(value, offset=offset, appended_at=day(3), catalog=CATALOG)

        assert isinstance(control, PauseImposed)
        assert control.reach is Reach.GOING_FORWARD
        question = {"purpose": PURPOSE, "at": day(4)}
        row = Row(jurisdiction="US", category="posts")
        before = decide(None, row, open_to_all.after(control), known_at=day(2), **question)  # type: ignore[arg-type]
        after = decide(None, row, open_to_all.after(control), known_at=day(3), **question)  # type: ignore[arg-type]
        assert (before.reason, after.reason) == (Reason.DEFAULT_ON, Reason.PAUSED)

    def test_an_operator_can_lift_the_pause_of_an_unreadable_control(self) -> None:
        """Otherwise one bad message would end all training for ever."""
        open_to_all = Controls(WORLD).after(policy(900, terms("*"), on=0))
        shut = open_to_all.after(
            read_control_or_pause(b"?", offset=7, appended_at=day(3), catalog=CATALOG)
        )

        opened = shut.after(lift(1, on=4, name="unreadable-7"))

        row = Row(jurisdiction="US")
        assert decide(None, row, opened, purpose=PURPOSE, at=day(5), known_at=day(5)).allowed
