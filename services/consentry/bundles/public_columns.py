"""What a record says, as columns that anybody can query.

It is what the member told, not the decision about a row.

Each value is a function of the record's bytes alone, so that a row stays true until the member's
record changes: what is dated ahead counts as told, and excludes from when it was told.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from consentry.domain.decisions import MemberState, member_state
from consentry.domain.events import FactKind
from consentry.domain.records import Record
from consentry.domain.values import AgeBand, Choice, Micros
from consentry.wire.records import DamagedRecord, read_record

_EVER: Final = Micros(1 << 62)


class PublicRow(NamedTuple):
    """What one record says;

    `choices` and `own_exclusions` are in the order of the purposes that were asked about.
    """

    jurisdiction: str | None
    age_band: str
    is_erased: bool
    is_quarantined: bool
    choices: tuple[str | None, ...]
    own_exclusions: tuple[bool, ...]


def told(
    member: bytes, raw: bytes | None, purposes: tuple[str, ...], *, is_quarantined: bool
) -> PublicRow:
    """What a record says for each of some purposes;

    `is_quarantined` where its member is quarantined for a reason outside of it.

    An own exclusion is one by the member's own facts, whatever row is asked about: erased, held,
    opted out, or with facts that were folded away. It stands if there is any moment, from when the
    record last changed on, at which the facts exclude: an opt-in dated ahead does not include yet,
    an opt-out dated ahead excludes already.
    """
    if raw is None:
        return _unknown(purposes, is_quarantined=is_quarantined)
    try:
        record = read_record(raw, member)
    except DamagedRecord:
        return _unknown(purposes, is_quarantined=True)
    return _told(record, purposes, is_quarantined=is_quarantined)


def _unknown(purposes: tuple[str, ...], *, is_quarantined: bool) -> PublicRow:
    none = (None,) * len(purposes)
    return PublicRow(
        None, AgeBand.UNKNOWN.value, False, is_quarantined, none, (is_quarantined,) * len(purposes)
    )


def _told(record: Record, purposes: tuple[str, ...], *, is_quarantined: bool) -> PublicRow:
    changed_at = max((fact.recorded_at for fact in record.facts), default=Micros(0))
    ahead = {fact.effective_at for fact in record.facts if fact.effective_at > changed_at}
    if record.folded_effective_at > changed_at:
        ahead.add(record.folded_effective_at)
    moments = sorted({changed_at, *ahead})
    found = [
        [member_state(record, purpose=purpose, at=at, known_at=_EVER) for at in moments]
        for purpose in purposes or ("",)
    ]
    last = found[0][-1]
    return PublicRow(
        jurisdiction=last.jurisdiction,
        age_band=last.age_band.value,
        is_erased=last.erasure is not None,
        is_quarantined=is_quarantined or last.quarantine is not None,
        choices=tuple(_choice(one[-1]) for one in found[: len(purposes)]),
        own_exclusions=tuple(
            is_quarantined or any(own.is_excluded_by_own_facts for own in one)
            for one in found[: len(purposes)]
        ),
    )


def _choice(own: MemberState) -> str | None:
    if own.choice is None:
        return None
    return Choice.OPT_IN.value if own.choice.kind is FactKind.OPTED_IN else Choice.OPT_OUT.value
