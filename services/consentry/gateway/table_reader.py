"""The gateway's answers from the consent table, only while table and controls are fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Final

from consentry.domain.controls import Controls
from consentry.domain.decisions import Decision, Ground, Row, member_state, stale
from consentry.domain.errors import ConsentryError, Unavailable
from consentry.domain.events import FactKind
from consentry.domain.explain import ExplainQuestion, Explanation, explain
from consentry.domain.records import Record
from consentry.domain.values import MemberId, Micros, Reason
from consentry.kafka.controls_follower import ControlsFollower
from consentry.ops.clock import Clock
from consentry.table.lookup import record_in
from consentry.table.protocol import ConsentTable, Meta, Reading
from consentry.wire.freshness import CLOCKS_SECONDS_MAX, stale_age
from consentry.wire.jurisdictions import name_of
from consentry.wire.partitions import partition_of
from consentry.wire.records import DamagedRecord
from consentry.wire.tokens import Token

WAIT_SECONDS_MAX: Final = 10.0
CONTROLS_SECONDS_MAX: Final = 3.0
_RETRY_SECONDS: Final = 0.01
_RETRY_SECONDS_MAX: Final = 0.2


@dataclass(frozen=True, slots=True)
class DecisionAnswer:
    """The gateway's answer to a question about a member: a decision with all its reasons.

    `version` is that of the member's record; 0 for a member without one, None where it could not be
    read.
    """

    decision: Decision
    version: int | None
    because: tuple[str, ...]
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class DecisionQuestion:
    """A question to the gateway about a member, or one row of theirs.

    Times are in microseconds, None for now.
    """

    member: MemberId
    purpose: str
    row: Row | None = None
    at: Micros | None = None
    known_at: Micros | None = None
    at_least: Token | None = None
    wait_seconds: float = 0.0


class TableReader:
    """The gateway's reader of the consent table and the controls; trusts neither once it is old.

    `log` is the identity of the event log that the table is built from.
    """

    def __init__(
        self,
        table: ConsentTable,
        controls: ControlsFollower,
        *,
        partitions: int,
        log: bytes,
        staleness_seconds: float,
        clock: Clock,
    ) -> None:
        self.controls = controls
        self.partitions = partitions
        self.log = log
        self._table = table
        self._staleness_seconds = staleness_seconds
        self._clock = clock

    async def answer(self, question: DecisionQuestion) -> DecisionAnswer:
        """Return the answer to a question.

        It is STALE where freshness, or what the token asks for, is not proven in time.
        """
        until = monotonic() + min(question.wait_seconds, WAIT_SECONDS_MAX)
        pause_seconds = _RETRY_SECONDS
        while True:
            outcome = await asyncio.to_thread(self._try_answer, question)
            if isinstance(outcome, DecisionAnswer):
                return outcome
            if monotonic() >= until:
                because = (f"freshness is not proven: {outcome}",)
                return DecisionAnswer(stale(outcome), None, because)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _RETRY_SECONDS_MAX)

    async def record(self, member: MemberId) -> Record | None:
        """Return the member's record as the table holds it now.

        Raises Unavailable where the table does not hold it whole.
        """
        return await asyncio.to_thread(self._record, member)

    async def version_of_opt_out(self, member: MemberId, purpose: str) -> int | None:
        """Return the version of the member's opt-out from a purpose.

        None where no opt-out stands, or the table cannot be read.
        """
        try:
            record = await self.record(member)
        except ConsentryError:
            return None  # the fold decides, when it gets there
        if record is None:
            return None
        now = self._clock()
        known_at = _known_at(now, record, self.controls.controls)
        choice = member_state(record, purpose=purpose, at=now, known_at=known_at).choice
        return choice.version if choice is not None and choice.kind is FactKind.OPTED_OUT else None

    async def wait_for_controls(self) -> None:
        """Return once every control that is in the log now is known to this gateway.

        Raises Unavailable after a bounded time. Whether a policy opens something is decided against
        the controls before it: against old ones it could undo, without a second person, what
        somebody had narrowed a moment ago.
        """
        asked_at, until = self._clock(), monotonic() + CONTROLS_SECONDS_MAX
        while self.controls.fresh_at < asked_at:
            if monotonic() >= until:
                raise _stale_controls(
                    self.stale_detail() or "the broker does not say where their log ends"
                )
            await asyncio.sleep(_RETRY_SECONDS)

    def controls_age_seconds(self) -> float:
        """Return the seconds since this gateway knew all controls."""
        return (self._clock() - self.controls.fresh_at) / 1e6

    def stale_detail(self) -> str:
        """Return the reason why the controls are not fresh; empty where they are."""
        age = self.controls_age_seconds()
        if age > self._staleness_seconds:
            return (
                f"the controls were known to be complete {age:.1f} s ago, the bound is "
                f"{self._staleness_seconds:g} s"
            )
        return ""

    def status(self) -> list[dict[str, object]]:
        """Return the state of each partition of the table, as plain values. Raises Unavailable."""
        return [self._partition_status(partition) for partition in range(self.partitions)]

    def _partition_status(self, partition: int) -> dict[str, object]:
        meta = self._table.meta(partition)
        age = None
        if meta.frontier_at is not None:
            age = round((self._clock() - meta.frontier_at) / 1e6, 3)
        return {
            "partition": partition,
            "next_offset": meta.next_offset,
            "generation": meta.generation,
            "age_seconds": age,
            "tainted": meta.tainted,
            "fresh": not self._partition_detail(partition, meta),
        }

    def _try_answer(self, question: DecisionQuestion) -> DecisionAnswer | str:
        """Return the answer, or the reason why it cannot be fresh yet."""
        try:
            readings = self._read(question.member)
            detail = _unbuilt(readings) or self._detail(question, readings)
            if detail:
                return detail
            meta = readings[self._home(question.member)].meta
            if meta.tainted:
                return _quarantined("an event of the member's partition has no readable key")
            # The controls are taken after the checks: they are at least what those saw.
            record = record_in(readings, question.member.encode(), home=self._home(question.member))
            return self._decide(question, record, meta)
        except DamagedRecord:
            return _quarantined("the member's record is damaged")
        except Unavailable as error:
            if error.code == "member.misplaced":
                return _quarantined(
                    "events of the member came on a foreign partition, so they have no order"
                )
            return "the table does not answer"

    def _detail(self, question: DecisionQuestion, readings: Mapping[int, Reading]) -> str:
        """Return what is not fresh, or not as fresh as the token asks; empty where all is."""
        partition, token = self._home(question.member), question.at_least
        meta = readings[partition].meta
        if token is None:
            return self._partition_detail(partition, meta) or self.stale_detail()
        if token.log != self.log:
            return "the token is of a log that is not read here"
        ahead = (token.issued_at - self._clock()) / 1e6
        if ahead > CLOCKS_SECONDS_MAX:
            return f"the token was given out {ahead:.1f} s ahead of this machine's clock"
        # Events of other partitions are not this member's: only their own one has to be there.
        next_offset = token.offsets.get(partition, 0)
        detail = self._partition_detail(partition, meta, next_offset) or self.stale_detail()
        if not detail and self.controls.position < token.controls:
            detail = (
                f"the controls are read up to {self.controls.position}, the token asks for "
                f"{token.controls}"
            )
        return detail

    def _decide(
        self, question: DecisionQuestion, record: Record | None, meta: Meta
    ) -> DecisionAnswer:
        controls = self.controls.controls
        now = self._now(question, meta)
        known_at = question.known_at
        if known_at is None:
            known_at = _known_at(now, record, controls)
        explanation = explain(
            ExplainQuestion(
                record=record,
                row=question.row,
                controls=controls,
                purpose=question.purpose,
                at=now if question.at is None else question.at,
                known_at=known_at,
            ),
            name_of,
        )
        version = 0 if record is None else record.version
        because = tuple(explanation.because)
        return DecisionAnswer(explanation.decision, version, because, explanation)

    def _now(self, question: DecisionQuestion, meta: Meta) -> Micros:
        """Return the latest of the clocks that are seen here.

        What another machine stamped a moment ago is then not in the future. No clock is more than
        CLOCKS_SECONDS_MAX ahead, or `_detail` had refused it; a token has whole seconds only.
        """
        issued_at = Micros(0)
        if question.at_least is not None:
            issued_at = Micros(question.at_least.issued_at + 1_000_000)
        return max(self._clock(), meta.frontier_at or Micros(0), issued_at)

    def _partition_detail(self, partition: int, meta: Meta, next_offset: int = 0) -> str:
        """Return why the partition is not fresh, or does not hold the events before `next_offset`.

        Empty where it is and does.
        """
        if meta.generation is None or meta.frontier_at is None or meta.next_offset is None:
            return f"partition {partition} of the table is not built"
        age = (self._clock() - meta.frontier_at) / 1e6
        detail = stale_age(f"partition {partition}", age, self._staleness_seconds)
        if detail:
            return detail
        if meta.next_offset < next_offset:
            return (
                f"partition {partition} is applied up to event {meta.next_offset}, the token "
                f"asks for {next_offset}"
            )
        return ""

    def _home(self, member: MemberId) -> int:
        return partition_of(member.encode(), self.partitions)

    def _read(self, member: MemberId) -> dict[int, Reading]:
        """Return what each partition holds of the member.

        A record in a foreign partition means that the member's events have no order.
        """
        return self._table.read(member.encode(), range(self.partitions))

    def _record(self, member: MemberId) -> Record | None:
        readings = self._read(member)
        detail = _unbuilt(readings)
        if detail:
            raise Unavailable(
                f"The record of the member is not known: {detail}.",
                code="table.not_built",
                fix="check that the processor runs; it builds what is missing, then ask again",
            )
        return record_in(readings, member.encode(), home=self._home(member))


def _unbuilt(readings: Mapping[int, Reading]) -> str:
    """Return which partition is not built, as a clause; empty where all are.

    A foreign partition counts too, as it may lack what says that the member is misplaced.
    """
    for partition, reading in readings.items():
        if reading.meta.generation is None:
            return f"partition {partition} of the table is not built"
    return ""


def _known_at(now: Micros, record: Record | None, controls: Controls) -> Micros:
    """Return a time by which all that is held here was recorded, whichever clock stamped it."""
    times = [control.recorded_at for control in controls.log]
    if record is not None:
        times.append(record.folded_recorded_at)
        times.extend(fact.recorded_at for fact in record.facts)
    return max(now, max(times, default=now))


def _stale_controls(detail: str) -> Unavailable:
    return Unavailable(
        f"What is in force is not known well enough to change it: {detail}.",
        code="controls.stale",
        fix="check the broker, then send the request again",
    )


def _quarantined(detail: str) -> DecisionAnswer:
    decision = Decision(False, Reason.QUARANTINED, (Ground(Reason.QUARANTINED, detail),))
    return DecisionAnswer(decision, None, (detail,))
