"""The columns of a bundle's record files that anybody can query: what the member said.

It is not the decision about a row. Each value depends on the record's bytes alone, so that a row
stays true until the member's record changes: a fact dated ahead counts as soon as it is recorded,
and excludes from then on.
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
    """The columns of one record in a bundle that anybody can query.

    `choices` and `own_exclusions` are in the order of the purposes that were asked about.
    """

    jurisdiction: str | None
    age_band: str
    is_erased: bool
    is_quarantined: bool
    choices: tuple[str | None, ...]
    own_exclusions: tuple[bool, ...]


def public_row(
    member: bytes, raw: bytes | None, purposes: tuple[str, ...], *, is_quarantined: bool
) -> PublicRow:
    """Return the columns of a record in a bundle that anybody can query, for some purposes.

    `is_quarantined` says that the member is quarantined for a reason outside of the record.

    An own exclusion is one by the member's own facts, whatever row is asked about: erased,
    quarantined, opted out, or with facts that were folded away. It stands if there is any moment,
    from when the record last changed on, at which the facts exclude: an opt-in dated ahead does not
    include yet, an opt-out dated ahead excludes already.
    """
    if raw is None:
        return _unknown(purposes, is_quarantined=is_quarantined)
    try:
        record = read_record(raw, member)
    except DamagedRecord:
        return _unknown(purposes, is_quarantined=True)
    return _row_of(record, purposes, is_quarantined=is_quarantined)


def _unknown(purposes: tuple[str, ...], *, is_quarantined: bool) -> PublicRow:
    none = (None,) * len(purposes)
    return PublicRow(
        None, AgeBand.UNKNOWN.value, False, is_quarantined, none, (is_quarantined,) * len(purposes)
    )


def _row_of(record: Record, purposes: tuple[str, ...], *, is_quarantined: bool) -> PublicRow:
    changed_at = max((fact.recorded_at for fact in record.facts), default=Micros(0))
    ahead = {fact.effective_at for fact in record.facts if fact.effective_at > changed_at}
    if record.folded_effective_at > changed_at:
        ahead.add(record.folded_effective_at)
    moments = sorted({changed_at, *ahead})
    # Without a purpose there still are the columns that need none.
    states_by_purpose = [
        [member_state(record, purpose=purpose, at=at, known_at=_EVER) for at in moments]
        for purpose in purposes or ("",)
    ]
    last = states_by_purpose[0][-1]
    choices: list[str | None] = []
    own_exclusions: list[bool] = []
    for states in states_by_purpose[: len(purposes)]:
        choices.append(_choice(states[-1]))
        is_excluded = any(state.is_excluded_by_own_facts for state in states)
        own_exclusions.append(is_quarantined or is_excluded)
    return PublicRow(
        jurisdiction=last.jurisdiction,
        age_band=last.age_band.value,
        is_erased=last.erasure is not None,
        is_quarantined=is_quarantined or last.quarantine is not None,
        choices=tuple(choices),
        own_exclusions=tuple(own_exclusions),
    )


def _choice(state: MemberState) -> str | None:
    if state.choice is None:
        return None
    choice = Choice.OPT_IN if state.choice.kind is FactKind.OPTED_IN else Choice.OPT_OUT
    return choice.value
