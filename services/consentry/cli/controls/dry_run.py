"""What a control would change: every member of the consent table, asked with and without it.

Nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from consentry.domain.errors import Unavailable

if TYPE_CHECKING:
    from consentry.domain.controls import Control, Controls, PauseImposed
    from consentry.domain.impact import Census, Impact, TermsChange
    from consentry.domain.orders import PurgeOrder
    from consentry.ops.settings import Settings
    from consentry.table.protocol import ConsentTable

_CHUNK = 2000


class _Walk(NamedTuple):
    """What a walk over the whole table found beside readable records."""

    quarantined: int
    age_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunReport:
    """Everything that a dry run tells;

    `impacts` are at the moment the control binds and as each notice ends.
    """

    control: Control
    before: Controls
    after: Controls
    impacts: tuple[Impact, ...]
    terms: tuple[TermsChange, ...]
    order: PurgeOrder | None
    datasets: tuple[tuple[str, str], ...]
    freed: Mapping[str, list[str]]
    quarantined: int
    age_seconds: float

    @property
    def opens_use(self) -> bool:
        """Whether anybody's data would be let in, or new terms would let in what the old ones kept
        out.
        """
        in_terms = any(change.opens for change in self.terms)
        return bool(self.freed) or in_terms or any(impact.opened() for impact in self.impacts)

    @property
    def changes_nothing(self) -> bool:
        """Whether all answers and all terms stay what they are, and nothing has to be purged."""
        is_same = not self.terms and not any(impact.changes for impact in self.impacts)
        return is_same and not self.freed and not self.opens_order

    @property
    def opens_order(self) -> bool:
        """Whether a purge order is opened that is not open since an earlier imposition of the same
        version.
        """
        known = {f"pause:{pause.pause}:{pause.version}" for pause in self.before.pauses}
        return self.order is not None and self.order.order_id not in known


def make_report(control: Control, settings: Settings, log: Sequence[Control]) -> DryRunReport:
    """Count the members of the table under the controls so far, and with this one after them."""
    from consentry.domain.controls import Controls, PauseImposed, PauseLifted, PolicyPublished
    from consentry.domain.impact import (
        Census,
        freed,
        moments_of,
        purposes_of,
        scope_of,
        terms_changes,
    )
    from consentry.domain.orders import order_for_pause
    from consentry.wire.jurisdictions import iso_jurisdictions

    before = Controls(iso_jurisdictions()).after(*log)
    after = before.after(control)
    known_at = control.recorded_at
    moments = moments_of(control, now=known_at)
    purposes = purposes_of(control, after)
    censuses = [Census(after, purposes=purposes, at=at, known_at=known_at) for at in moments]
    walk = count_members(settings, censuses)
    scope = scope_of(control, after)
    terms: tuple[TermsChange, ...] = ()
    if isinstance(control, PolicyPublished):
        terms = terms_changes(control, before, after, at=moments[0], known_at=known_at)
    return DryRunReport(
        control=control,
        before=before,
        after=after,
        impacts=tuple(census.compare(before, after, scope) for census in censuses),
        terms=terms,
        order=order_for_pause(_first(control, after), after)
        if isinstance(control, PauseImposed)
        else None,
        datasets=settings.declared_subscribers(),
        freed=freed(control, before, after, at=moments[0], known_at=known_at)
        if isinstance(control, PauseLifted)
        else {},
        quarantined=walk.quarantined,
        age_seconds=walk.age_seconds,
    )


def _first(pause: PauseImposed, controls: Controls) -> PauseImposed:
    """The imposition of this version that opens its order: that of a repeated one is open since the
    first.
    """
    same = (
        known
        for known in controls.pauses
        if (known.pause, known.version) == (pause.pause, pause.version)
    )
    return next(same, pause)


def count_members(settings: Settings, censuses: Sequence[Census]) -> _Walk:
    """Give every member of the table to the censuses; those whose record cannot be read or trusted
    count as held.

    Raises Unavailable, naming the partition, where the table is stale, tainted, not built, or
    rebuilt meanwhile.
    """
    from consentry.cli.connections import count_partitions, open_table
    from consentry.cli.explain import check_partition

    partitions = count_partitions(settings)
    with open_table(settings, partitions) as table:
        started = [check_partition(table, partition, settings) for partition in range(partitions)]
        held = count_table(table, partitions, censuses)
        for partition, (generation, _) in enumerate(started):
            if check_partition(table, partition, settings)[0] != generation:
                raise Unavailable(
                    f"Partition {partition} of the table was rebuilt while it was read.",
                    code="table.rebuilt",
                    fix="run the command again",
                )
    return _Walk(held, max(age for _, age in started))


def count_table(table: ConsentTable, partitions: int, censuses: Sequence[Census]) -> int:
    """Give every member of a table to the censuses; returns how many are held instead, as theirs
    cannot be trusted.
    """
    damaged: set[bytes] = set()
    misplaced: set[bytes] = set()
    for partition in range(partitions):
        for chunk in _chunks(table.scan(partition)):
            _count_chunk(chunk, partition, partitions, censuses, damaged, misplaced)
    _take_back(table, partitions, misplaced - damaged, censuses)
    return len(damaged | misplaced)


def _chunks(items: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    chunk: list[tuple[bytes, bytes]] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _count_chunk(
    chunk: Sequence[tuple[bytes, bytes]],
    partition: int,
    partitions: int,
    censuses: Sequence[Census],
    damaged: set[bytes],
    misplaced: set[bytes],
) -> None:
    from consentry.wire.partitions import partitions_of
    from consentry.wire.records import DamagedRecord, read_record

    homes = partitions_of([key for key, _ in chunk], partitions).tolist()
    for (key, raw), home in zip(chunk, homes, strict=True):
        if home != partition:
            misplaced.add(key)
            continue
        try:
            record = read_record(raw, key)
        except DamagedRecord:
            damaged.add(key)
            continue
        for census in censuses:
            census.add(record)


def _take_back(
    table: ConsentTable, partitions: int, misplaced: set[bytes], censuses: Sequence[Census]
) -> None:
    """A member with events on a foreign partition is held, and was counted where their other events
    are.
    """
    from consentry.wire.partitions import partition_of
    from consentry.wire.records import DamagedRecord, read_record

    for key in misplaced:
        partition = partition_of(key, partitions)
        [raw] = table.load({partition: [key]})[partition]
        if raw is None:
            continue
        try:
            record = read_record(raw, key)
        except DamagedRecord:
            continue
        for census in censuses:
            census.add(record, -1)
