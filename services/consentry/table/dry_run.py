"""A dry run of a control: what it would change for every member of the consent table.

Nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consentry.domain.controls import Control, Controls, PauseImposed, PauseLifted, PolicyPublished
from consentry.domain.impact import Census, Impact, moments_of, purposes_of, scope_of
from consentry.domain.openings import TermsChange, freed, terms_changes
from consentry.domain.orders import PurgeOrder, order_for_pause
from consentry.ops.clock import Clock
from consentry.table.census import count_members
from consentry.table.protocol import ConsentTable
from consentry.wire.jurisdictions import iso_jurisdictions


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunReport:
    """The report of a dry run over the consent table: all that a control would change.

    `impacts` holds one impact for the moment at which the control binds, and one for the end of
    each notice. `datasets` are pairs of subscriber and data set. `freed` is purpose → the
    jurisdictions whose rows may be used again.
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
        """True if the control would let in a member's data, or data that old terms kept out."""
        terms_open = any(change.opens for change in self.terms)
        members_open = any(impact.opened() for impact in self.impacts)
        return bool(self.freed) or terms_open or members_open

    @property
    def changes_nothing(self) -> bool:
        """True if the control changes no answer and no terms, and nothing has to be purged."""
        members_change = any(impact.changes for impact in self.impacts)
        return not (self.terms or members_change or self.freed or self.opens_order)

    @property
    def opens_order(self) -> bool:
        """True if the control opens a purge order that its version has not opened before."""
        opened = {f"pause:{pause.pause}:{pause.version}" for pause in self.before.pauses}
        return self.order is not None and self.order.order_id not in opened


def make_report(
    control: Control,
    log: Sequence[Control],
    table: ConsentTable,
    *,
    partitions: int,
    datasets: tuple[tuple[str, str], ...],
    clock: Clock,
    staleness_seconds: float,
) -> DryRunReport:
    """Return the dry run of a control over the consent table: members before and after it.

    The members are counted under the controls of `log`, and with `control` after them. Raises
    Unavailable where the table cannot be trusted.
    """
    before = Controls(iso_jurisdictions()).after(*log)
    after = before.after(control)
    known_at = control.recorded_at
    moments = moments_of(control, now=known_at)
    purposes = purposes_of(control, after)
    censuses = [Census(after, purposes=purposes, at=at, known_at=known_at) for at in moments]
    count = count_members(
        table, partitions, censuses, clock=clock, staleness_seconds=staleness_seconds
    )
    scope = scope_of(control, after)
    terms: tuple[TermsChange, ...] = ()
    order: PurgeOrder | None = None
    freed_jurisdictions: Mapping[str, list[str]] = {}
    if isinstance(control, PolicyPublished):
        terms = terms_changes(control, before, after, at=moments[0], known_at=known_at)
    elif isinstance(control, PauseImposed):
        order = order_for_pause(_first_imposition(control, after), after)
    elif isinstance(control, PauseLifted):
        freed_jurisdictions = freed(control, before, after, at=moments[0], known_at=known_at)
    return DryRunReport(
        control=control,
        before=before,
        after=after,
        impacts=tuple(census.compare(before, after, scope) for census in censuses),
        terms=terms,
        order=order,
        datasets=datasets,
        freed=freed_jurisdictions,
        quarantined=count.quarantined,
        age_seconds=count.age_seconds,
    )


def _first_imposition(pause: PauseImposed, controls: Controls) -> PauseImposed:
    """Return the first imposition of this version: a repeated one opens no order of its own."""
    for earlier in controls.pauses:
        if (earlier.pause, earlier.version) == (pause.pause, pause.version):
            return earlier
    return pause
