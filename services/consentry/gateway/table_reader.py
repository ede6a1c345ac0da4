"""Answers from the consent table: what it holds of a member, and whether that is fresh enough to be
believed.
"""

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
from consentry.table.protocol import ConsentTable, Meta, Reading
from consentry.wire.freshness import CLOCKS_SECONDS_MAX, stale_age
from consentry.wire.jurisdictions import name_of
from consentry.wire.partitions import partition_of
from consentry.wire.records import DamagedRecord, read_record
from consentry.wire.tokens import Token

WAIT_SECONDS_MAX: Final = 10.0
CONTROLS_SECONDS_MAX: Final = 3.0
_LOOK_SECONDS: Final = 0.01
_LOOK_SECONDS_MAX: Final = 0.2


@dataclass(frozen=True, slots=True)
class DecisionAnswer:
    """A decision, the version of the record that was asked (0: none;

    None: it could not be read), and why in full.
    """

    decision: Decision
    version: int | None
    because: tuple[str, ...]
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class DecisionQuestion:
    """What is asked about a member; times in microseconds, None for now."""

    member: MemberId
    purpose: str
    row: Row | None = None
    at: Micros | None = None
    known_at: Micros | None = None
    at_least: Token | None = None
    wait_seconds: float = 0.0


class TableReader:
    """Reads records from the table and controls from their follower; refuses to believe either when
    it is old.
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
        """The answer to a question;

        STALE where freshness, or what the token asks for, is not proven in time.
        """
        until, pause = monotonic() + min(question.wait_seconds, WAIT_SECONDS_MAX), _LOOK_SECONDS
        while True:
            found = await asyncio.to_thread(self._look, question)
            if isinstance(found, DecisionAnswer):
                return found
            if monotonic() >= until:
                return DecisionAnswer(stale(found), None, (f"freshness is not proven: {found}",))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS_MAX)

    async def record(self, member: MemberId) -> Record | None:
        """The member's record as the table holds it now. Raises Unavailable where it is not
        whole.
        """
        return await asyncio.to_thread(self._record, member)

    async def version_of_opt_out(self, member: MemberId, purpose: str) -> int | None:
        """The version of the opt-out that stands for a purpose, where the table can be read and has
        one.
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
        """Return once every control that is in the log now is known here.

        Raises Unavailable after a bounded time.

        Whether a policy opens something is judged against the controls before it: against old ones
        it could undo, without a second person, what somebody had narrowed a moment ago.
        """
        asked_at, until = self._clock(), monotonic() + CONTROLS_SECONDS_MAX
        while self.controls.fresh_at < asked_at:
            if monotonic() >= until:
                raise _stale_controls(
                    self.stale_detail() or "the broker does not say where their log ends"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    def check_controls(self) -> None:
        """Return if the controls are as fresh as a decision needs them. Raises Unavailable."""
        detail = self.stale_detail()
        if detail:
            raise _stale_controls(detail)

    def controls_age_seconds(self) -> float:
        """How long ago, in seconds, all controls were known here."""
        return (self._clock() - self.controls.fresh_at) / 1e6

    def stale_detail(self) -> str:
        """Why the controls are not fresh; empty where they are."""
        age = self.controls_age_seconds()
        if age > self._staleness_seconds:
            return (
                f"the controls were known to be complete {age:.1f} s ago, the bound is "
                f"{self._staleness_seconds:g} s"
            )
        return ""

    def status(self) -> list[dict[str, object]]:
        """How far each partition of the table has come. Raises Unavailable."""
        now = self._clock()
        found: list[dict[str, object]] = []
        for partition in range(self.partitions):
            meta = self._table.meta(partition)
            age = None if meta.frontier_at is None else round((now - meta.frontier_at) / 1e6, 3)
            detail = self._partition_detail(partition, meta)
            found.append(
                {
                    "partition": partition,
                    "next_offset": meta.next_offset,
                    "generation": meta.generation,
                    "age_seconds": age,
                    "tainted": meta.tainted,
                    "fresh": not detail,
                }
            )
        return found

    def _look(self, question: DecisionQuestion) -> DecisionAnswer | str:
        """The answer, or why it cannot be fresh yet."""
        try:
            found = self._read(question.member)
            detail = _unbuilt(found) or self._detail(question, found)
            if detail:
                return detail
            meta = found[self._home(question.member)].meta
            if meta.tainted:
                return _held("an event of the member's partition has no readable key")
            # The controls are taken after the checks: they are at least what those saw.
            return self._answer(question, self._record_in(found, question.member), meta)
        except DamagedRecord:
            return _held("the member's record is damaged")
        except Unavailable as error:
            if error.code == "member.misplaced":
                return _held(
                    "events of the member came on a foreign partition, so they have no order"
                )
            return "the table does not answer"

    def _detail(self, question: DecisionQuestion, found: Mapping[int, Reading]) -> str:
        """What is not fresh, or not as fresh as the token asks; empty where all is."""
        partition, token = self._home(question.member), question.at_least
        meta = found[partition].meta
        if token is None:
            return self._partition_detail(partition, meta) or self.stale_detail()
        if token.log != self.log:
            return "the token is of a log that is not read here"
        ahead = (token.issued_at - self._clock()) / 1e6
        if ahead > CLOCKS_SECONDS_MAX:
            return f"the token was given out {ahead:.1f} s ahead of this machine's clock"
        # Events of other partitions are not this member's: only their own one is waited for.
        detail = (
            self._partition_detail(partition, meta, token.offsets.get(partition, 0))
            or self.stale_detail()
        )
        if not detail and self.controls.position < token.controls:
            detail = (
                f"the controls are read up to {self.controls.position}, the token asks for "
                f"{token.controls}"
            )
        return detail

    def _answer(
        self, question: DecisionQuestion, record: Record | None, meta: Meta
    ) -> DecisionAnswer:
        controls = self.controls.controls
        now = self._now(question, meta)
        asked = ExplainQuestion(
            record=record,
            row=question.row,
            controls=controls,
            purpose=question.purpose,
            at=now if question.at is None else question.at,
            known_at=_known_at(now, record, controls)
            if question.known_at is None
            else question.known_at,
        )
        explanation = explain(asked, name_of)
        version = 0 if record is None else record.version
        return DecisionAnswer(
            explanation.decision, version, tuple(explanation.because), explanation
        )

    def _now(self, question: DecisionQuestion, meta: Meta) -> Micros:
        """The latest of the clocks that are seen: what another machine stamped a moment ago is not
        in the future.

        Those ahead are at most CLOCKS_SECONDS_MAX ahead, or `_detail` had refused them; a token has
        whole seconds only.
        """
        issued = (
            Micros(0)
            if question.at_least is None
            else Micros(question.at_least.issued_at + 1_000_000)
        )
        return max(self._clock(), meta.frontier_at or Micros(0), issued)

    def _partition_detail(self, partition: int, meta: Meta, demanded: int = 0) -> str:
        if meta.generation is None or meta.frontier_at is None or meta.next_offset is None:
            return f"partition {partition} of the table is not built"
        age = (self._clock() - meta.frontier_at) / 1e6
        detail = stale_age(f"partition {partition}", age, self._staleness_seconds)
        if detail:
            return detail
        if meta.next_offset < demanded:
            return (
                f"partition {partition} is applied up to event {meta.next_offset}, the token "
                f"asks for {demanded}"
            )
        return ""

    def _home(self, member: MemberId) -> int:
        return partition_of(member.encode(), self.partitions)

    def _read(self, member: MemberId) -> dict[int, Reading]:
        """What every partition says of the member: a foreign one tells that their events have no
        order.
        """
        return self._table.read(member.encode(), range(self.partitions))

    def _record(self, member: MemberId) -> Record | None:
        found = self._read(member)
        detail = _unbuilt(found)
        if detail:
            raise Unavailable(
                f"The record of the member is not known: {detail}.",
                code="table.not_built",
                fix="check that the processor runs; it builds what is missing, then ask again",
            )
        return self._record_in(found, member)

    def _record_in(self, found: Mapping[int, Reading], member: MemberId) -> Record | None:
        """Raises Unavailable where the member's events have no order, DamagedRecord where the
        record is broken.
        """
        home = self._home(member)
        if any(reading.record for partition, reading in found.items() if partition != home):
            raise Unavailable(
                "Events of this member also came on a foreign partition, so they have no order: "
                "the member is quarantined.",
                code="member.misplaced",
                fix="give the producer the murmur2 partitioner",
            )
        raw = found[home].record
        return None if raw is None else read_record(raw, member.encode())


def _unbuilt(found: Mapping[int, Reading]) -> str:
    """Which partition is not built; a foreign one counts too, as it may lack what says that the
    member is misplaced.
    """
    for partition, reading in found.items():
        if reading.meta.generation is None:
            return f"partition {partition} of the table is not built"
    return ""


def _known_at(now: Micros, record: Record | None, controls: Controls) -> Micros:
    """A time by which all that is held here was recorded, whichever clock said when."""
    times = [control.recorded_at for control in controls.log]
    if record is not None:
        times += [record.folded_recorded_at, *(fact.recorded_at for fact in record.facts)]
    return max(now, max(times, default=now))


def _stale_controls(detail: str) -> Unavailable:
    return Unavailable(
        f"What is in force is not known well enough to change it: {detail}.",
        code="controls.stale",
        fix="check the broker, then send the request again",
    )


def _held(why: str) -> DecisionAnswer:
    decision = Decision(False, Reason.QUARANTINED, (Ground(Reason.QUARANTINED, why),))
    return DecisionAnswer(decision, None, (why,))
