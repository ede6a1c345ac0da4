"""Rules of purge orders: what erasure, opt-out or pause obliges to delete, and by when."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from consentry.domain.controls import Controls, PauseImposed, Scope
from consentry.domain.events import RELOCATION_FACTS, Fact, FactKind
from consentry.domain.records import Record
from consentry.domain.values import MemberId, Micros


class PurgeReason(enum.StrEnum):
    """The reason for a purge order: why stored data must go."""

    ERASURE = "ERASURE"
    PAUSE = "PAUSE"
    OPT_OUT = "OPT_OUT"


class Result(enum.StrEnum):
    """The act of a subscriber on a purge order for one data set.

    FAILED leaves the obligation open.
    """

    FAILED = "FAILED"
    EXEMPT = "EXEMPT"
    NOT_FOUND = "NOT_FOUND"
    DELETED = "DELETED"


FINAL_RESULTS = frozenset({Result.DELETED, Result.NOT_FOUND, Result.EXEMPT})


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeOrder:
    """A duty to delete by the rules: for one member, or for the whole scope of a pause.

    Times in microseconds.
    """

    order_id: str
    because: PurgeReason
    recorded_at: Micros
    due_at: Micros
    member: MemberId | None = None
    pause: str | None = None
    scope: Scope | None = None
    is_settled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A subscriber's answer to a purge order for one data set, its version before and after.

    Times in microseconds.
    """

    order_id: str
    subscriber: str
    dataset: str
    result: Result
    rows_removed: int
    version_before: str
    version_after: str
    completed_at: Micros
    detail: str = ""


def order_for_fact(
    member: MemberId, fact: Fact, record: Record | None, controls: Controls
) -> PurgeOrder | None:
    """The purge order that an erasure, or an opt-out if terms ask for it, opens by the rules.

    None for any other fact.

    `record` is the member's, after the fact; what followed it in the log does not matter, so that
    reading the event again after a crash opens the same order. The identity comes from the event.
    Source: rules 3 and 9.
    """
    at = fact.recorded_at
    jurisdictions: tuple[str, ...] = ()
    for known in _facts_before(fact, record):
        if known.kind is FactKind.ERASED and known.binds(fact):
            return None  # nothing that is recorded after an erasure changes anything
        if known.kind in RELOCATION_FACTS and known.effective_at <= at:
            jurisdictions = (known.name,)
    purposes: tuple[str, ...] | None = None
    scope: Scope | None = None
    if fact.kind is FactKind.ERASED:
        because = PurgeReason.ERASURE
    elif fact.kind is FactKind.OPTED_OUT:
        if not _asks_on_opt_out(controls, jurisdictions, fact.name, at):
            return None
        because = PurgeReason.OPT_OUT
        purposes = (fact.name,)
        scope = Scope(jurisdictions=(), purposes=purposes)
    else:
        return None
    within = controls.purge_within(jurisdictions, purposes, at=at, known_at=at)
    return PurgeOrder(
        order_id=f"{because.lower()}:{fact.tag.hex()}:{member}",
        because=because,
        recorded_at=fact.recorded_at,
        due_at=Micros(fact.recorded_at + within),
        member=member,
        scope=scope,
    )


def _facts_before(fact: Fact, record: Record | None) -> list[Fact]:
    """Return the facts of a record with a lower version than this fact made in it.

    All of them where the record does not have this fact.
    """
    if record is None:
        return []
    version = record.version + 1
    for known in record.facts:
        if known.tag == fact.tag:
            version = known.version
            break
    return [known for known in record.facts if known.version < version]


def _asks_on_opt_out(
    controls: Controls, jurisdictions: Iterable[str], purpose: str, at: Micros
) -> bool:
    for code in jurisdictions:
        binding = controls.terms_for(code, purpose, at=at, known_at=at)
        if binding is None:
            continue
        _, terms = binding
        if terms.purge_on_opt_out:
            return True
    return False


def order_for_pause(pause: PauseImposed, controls: Controls) -> PurgeOrder | None:
    """The one purge order that a pause of past training opens for its whole scope.

    None if it only goes forward.
    """
    if not pause.requires_purge:
        return None
    at = pause.recorded_at
    codes = controls.codes_in(pause.scope.jurisdictions, at=at)
    within = controls.purge_within(codes, pause.scope.purposes, at=at, known_at=at)
    return PurgeOrder(
        order_id=f"pause:{pause.pause}:{pause.version}",
        because=PurgeReason.PAUSE,
        recorded_at=pause.recorded_at,
        due_at=Micros(pause.recorded_at + within),
        pause=pause.pause,
        scope=pause.scope,
    )


def owed(
    order: PurgeOrder,
    receipts: Mapping[tuple[str, str], Receipt],
    declared: Iterable[tuple[str, str]],
) -> tuple[tuple[str, str], ...]:
    """The (subscriber, data set) pairs that still owe a final receipt for the purge order.

    `receipts` holds the last receipt for this order per pair; `declared` is who must answer. An
    order that nobody is declared for stays open: nobody can say that it was kept.
    """
    open_pairs: list[tuple[str, str]] = []
    for pair in declared:
        receipt = receipts.get(pair)
        if receipt is None or receipt.result not in FINAL_RESULTS:
            open_pairs.append(pair)
    return tuple(open_pairs)
