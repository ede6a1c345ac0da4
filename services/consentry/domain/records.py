"""Rules of a member's record: how events fold into it. The log's order decides, never a clock.

Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from consentry.domain.events import (
    CHOICE_FACTS,
    RELOCATION_FACTS,
    EventUnreadable,
    Fact,
    FactKind,
    MemberEvent,
)
from consentry.domain.values import MemberId, Micros

FACTS_MAX: Final = 64
"""A record keeps this many facts; older ones are folded, and questions about their time are
refused.
"""

_EXCLUDING: Final = frozenset(
    {
        FactKind.ERASED,
        FactKind.QUARANTINED,
        FactKind.OPTED_OUT,
        FactKind.CHOICE_UNKNOWN,
        FactKind.UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The record of one member as the rules read it: folded facts in log order, newest last.

    Only an erasure dated ahead stays behind newer facts. `version` counts the distinct events
    folded so far. Questions with `at` before `folded_effective_at` or `known_at` before
    `folded_recorded_at` (0: nothing was folded) are beyond what the record still knows.
    """

    member: MemberId
    version: int = 0
    facts: tuple[Fact, ...] = ()
    folded_effective_at: Micros = Micros(0)
    folded_recorded_at: Micros = Micros(0)

    @property
    def erasure(self) -> Fact | None:
        """The member's erasure, which stays the last fact, or None.

        Nothing recorded from its effective time on is folded any more.
        """
        if self.facts and self.facts[-1].kind is FactKind.ERASED:
            return self.facts[-1]
        return None


def fold(record: Record | None, event: MemberEvent) -> Record:
    """Return by the rules a member's record after `event`, which follows it in the log.

    Deterministic, and the same record for any duplication of events. Raises nothing.
    Source: design rules 2, 3 and 10 (docs/architecture.md, "Rules").
    """
    return fold_fact(record, event.member, event.fact())


def fold_fact(record: Record | None, member: MemberId, fact: Fact) -> Record:
    """Return by the rules a member's record after the event behind `fact`; see `fold`.

    An event id that comes back with other content is a forgery or a bug: the member is quarantined.
    """
    if record is None:
        record = Record(member=member)
    erasure = record.erasure
    if erasure is not None and erasure.binds(fact):
        return record
    for known in record.facts:
        if known.tag == fact.tag:
            if known.says_the_same(fact):
                return record
            return fold(record, reused_event_id(member, fact))
    if fact.recorded_at <= record.folded_recorded_at and fact.kind not in _EXCLUDING:
        # It may repeat an event that was folded away. Letting it in could widen use a second time;
        # and a relocation that is new after all must not be lost, so where the member lives is then
        # unknown.
        if fact.kind in RELOCATION_FACTS:
            return fold(record, reused_event_id(member, fact))
        return record
    version = record.version + 1
    facts = _with(record.facts, erasure, fact._replace(version=version))
    after = Record(
        member=member,
        version=version,
        facts=facts,
        folded_effective_at=record.folded_effective_at,
        folded_recorded_at=record.folded_recorded_at,
    )
    return after if len(facts) <= FACTS_MAX else _fold_oldest(after)


def _with(facts: tuple[Fact, ...], erasure: Fact | None, fact: Fact) -> tuple[Fact, ...]:
    """Return the facts and one more.

    An erasure dated ahead stays behind facts that come before it takes effect; of two, the earlier
    one stays.
    """
    if erasure is None:
        return (*facts, fact)
    if fact.kind is FactKind.ERASED and fact.effective_at <= erasure.effective_at:
        return (*facts, fact)
    return (*facts[:-1], fact, erasure)


def reused_event_id(member: MemberId, fact: Fact) -> EventUnreadable:
    """Return by the rules the quarantine for an event id that came back with other content.

    Its own identity is derived from the content, so that repeating the offence changes nothing
    more.
    """
    digest = hashlib.blake2b(repr(tuple(fact[:6])).encode(), digest_size=16).digest()
    return EventUnreadable(event_id=digest, member=member, recorded_at=fact.recorded_at)


def _fold_oldest(record: Record) -> Record:
    """Return the record without facts that no later question needs, dropped oldest first.

    It drops until the bound holds. For every question after the two horizons all facts of the
    folded prefix count, so only those that still stand matter: the last relocation, the choice of
    each purpose that stands, a quarantine that was not ended.
    """
    for length in range(2, len(record.facts) + 1):
        prefix = record.facts[:length]
        kept = _still_standing(prefix)
        if len(kept) + len(record.facts) - length <= FACTS_MAX:
            return Record(
                member=record.member,
                version=record.version,
                facts=(*kept, *record.facts[length:]),
                folded_effective_at=max(
                    record.folded_effective_at, *(fact.effective_at for fact in prefix)
                ),
                folded_recorded_at=max(
                    record.folded_recorded_at, *(fact.recorded_at for fact in prefix)
                ),
            )
    # More standing facts than the bound (over 60 purposes with a choice each): keeping them all is
    # right.
    return record


def _still_standing(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """Return the facts of a prefix that later questions still need, in log order.

    Every one of the prefix counts for such a question.
    """
    kept: dict[str, Fact] = {}
    for fact in facts:
        if fact.kind in RELOCATION_FACTS:
            kept["relocation"] = fact
        elif fact.kind in CHOICE_FACTS:
            key = f"choice {fact.name}"
            standing = next_choice(kept.get(key), fact)
            if standing is None:
                kept.pop(key, None)
            else:
                kept[key] = standing
        elif fact.kind is FactKind.ERASED:
            kept["erasure"] = fact
        else:
            quarantine = next_quarantine(kept.get("quarantine"), fact)
            if quarantine is None:
                kept.pop("quarantine", None)
            else:
                kept["quarantine"] = quarantine
    return tuple(
        sorted(kept.values(), key=lambda fact: (fact.kind is FactKind.ERASED, fact.version))
    )


def next_choice(standing: Fact | None, fact: Fact) -> Fact | None:
    """Return by the rules the choice that stands after `fact`, given the one before.

    None stands for no choice.

    OPT_OUT always takes over. OPT_IN takes over an opt-out only if the person had seen it. UNKNOWN
    leaves an opt-out and takes an opt-in back. Source: rule 2; 11 CCR 7025(c)(3) names the same
    tie-break.
    """
    if fact.kind is FactKind.OPTED_OUT:
        return fact
    opted_out = standing is not None and standing.kind is FactKind.OPTED_OUT
    if fact.kind is FactKind.OPTED_IN:
        if (
            opted_out
            and standing is not None
            # A version that did not exist yet was seen by nobody: such a claim is a bug, or a
            # forgery.
            and (
                fact.observed_version is None
                or not standing.version <= fact.observed_version < fact.version
            )
        ):
            return standing
        return fact
    return standing if opted_out else None


def next_quarantine(standing: Fact | None, fact: Fact) -> Fact | None:
    """Return by the rules the quarantine that stands after `fact`, given the one before.

    None stands for no quarantine.

    `fact` is a quarantine or a release. Versions grow along the log, so the newest quarantine
    stands for all before it: a release that had seen it has seen them. A release says by
    `observed_version` which version its operator had looked at; one that claims a version which did
    not exist yet releases nothing. Source: rule 10.
    """
    if fact.kind is not FactKind.RELEASED:
        return fact
    if standing is None or fact.observed_version is None:
        return None
    if standing.version <= fact.observed_version < fact.version:
        return None
    return standing
