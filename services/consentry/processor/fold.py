"""The processor's fold step: from a batch's facts to members' records, in the log's order."""

from __future__ import annotations

from typing import NamedTuple

from consentry.domain.errors import TableWentBack
from consentry.domain.events import FactKind, event_tag
from consentry.domain.records import fold_fact, reused_event_id
from consentry.domain.values import MemberId
from consentry.processor.batches import PartitionBatch
from consentry.processor.ports import MemberChange, Obligations
from consentry.wire.event_batches import FastFact
from consentry.wire.records import (
    DamagedRecord,
    append_fact,
    body_fact,
    first_record,
    read_record,
    write_record,
)


class _Conflict(NamedTuple):
    """A well-formed event that quarantined its member: its row in the batch, its error class."""

    row: int
    error_class: str


class BatchFolder:
    """The processor's fold step: applies the facts of batches to their members' records.

    `record_frame` is put before the bytes of each.
    """

    def __init__(self, record_frame: bytes, obligations: Obligations) -> None:
        self._record_frame = record_frame
        self._obligations = obligations

    def fold(self, batch: PartitionBatch) -> None:
        """Fold a batch's facts onto the loaded records; count what became of each event.

        A record that is damaged makes the batch refused: its partition is to be rebuilt.
        """
        try:
            self._fold_facts(batch)
        except TableWentBack as refusal:
            batch.result.refused = refusal

    def _fold_facts(self, batch: PartitionBatch) -> None:
        # This loop runs per event: what it uses is in locals.
        events = batch.events
        current, changed, newest_ms = batch.current, batch.changed, batch.newest_ms
        next_offset = batch.owned.next_offset
        fold_one = self._fold_one
        # The controls in force are looked at once a batch: within its few milliseconds either
        # answer is right.
        order_kinds = {int(kind) for kind in FactKind if self._obligations.wants(kind)}
        conflicts: list[_Conflict] = []
        applied = repeated = replayed = 0
        for index, offset, key, fact, appended_ms in zip(
            range(len(events.offsets)),
            events.offsets,
            events.keys,
            batch.facts,
            events.appended_ms,
            strict=True,
        ):
            if fact is None or key is None:
                continue
            newest_ms[key] = appended_ms
            before = current[key]
            if offset < next_offset:
                # The table holds it already. Its record is only published again.
                replayed += 1
                _note_conflict(conflicts, index, key, fact, before)
            else:
                after = fold_one(key, before, fact, index, conflicts)
                if after is before:
                    repeated += 1
                else:
                    current[key] = changed[key] = after
                    applied += 1
            if fact.kind in order_kinds:
                batch.changes.append(_member_change(key, fact, current[key]))
        result = batch.result
        result.applied = applied
        result.repeated = repeated
        result.replayed = replayed
        for conflict in conflicts:
            result.refusals.append(events.refusal(conflict.row, conflict.error_class))

    def _fold_one(
        self,
        key: bytes,
        before: bytes | None,
        fact: FastFact,
        index: int,
        conflicts: list[_Conflict],
    ) -> bytes:
        """Return the member's record bytes after one fact; the very same object if unchanged.

        A fact that the record cannot take in quarantines the member, and is added to `conflicts`.
        """
        if before is None:
            return first_record(key, fact.body, self._record_frame)
        try:
            after = append_fact(before, key, fact.body, fact.tag)
            if after is not None:
                return after
            # The fact cannot simply be put at the end of the bytes: fold the whole record.
            record = read_record(before, key)
            folded = fold_fact(record, record.member, body_fact(fact.body))
        except DamagedRecord as error:
            # The table's bytes are not what was stored. What followers hold is better: take that
            # back.
            raise _damaged(str(error)) from error
        after = before if folded is record else write_record(folded, self._record_frame)
        _note_conflict(conflicts, index, key, fact, after)
        return after


def _member_change(key: bytes, fact: FastFact, raw: bytes | None) -> MemberChange:
    if raw is None:
        raise _damaged("The table lost a record that it had stored.")
    try:
        record = read_record(raw, key)
    except DamagedRecord as error:
        raise _damaged(str(error)) from error
    return MemberChange(record.member, body_fact(fact.body), record)


def _note_conflict(
    conflicts: list[_Conflict], index: int, key: bytes, fact: FastFact, raw: bytes | None
) -> None:
    """Note a conflict if this well-formed event made its record a quarantine.

    `raw` is the record that the event was folded into, also when that was earlier. So a batch that
    comes again after a crash finds the same conflicts, and a message that should go to quarantine
    is never forgotten.
    """
    if raw is None:
        return
    reuse = reused_event_id(MemberId(key.decode("ascii")), body_fact(fact.body))
    if event_tag(reuse.event_id) in raw:
        error_class = "event_id_reused" if fact.tag in raw else "beyond_history"
        conflicts.append(_Conflict(index, error_class))


def _damaged(detail: str) -> TableWentBack:
    return TableWentBack(detail, code="table.damaged", fix="nothing: the partition is rebuilt")
