"""What tests are made of: a small world, events and controls in a word, and histories for
Hypothesis to vary.
"""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import strategies as st

from consentry.domain.controls import (
    Control,
    Minors,
    OptIns,
    PauseBasis,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Reach,
    Regime,
    Scope,
    Terms,
)
from consentry.domain.events import (
    ConsentChanged,
    EventUnreadable,
    Fact,
    FactKind,
    MemberErased,
    MemberEvent,
    MemberReleased,
    MemberRelocated,
    SentEvent,
)
from consentry.domain.jurisdictions import Jurisdictions, Membership
from consentry.domain.records import Record, fold
from consentry.domain.values import DAY_MICROS, AgeBand, Choice, MemberId, Micros
from consentry.wire.catalog import Catalog, InMemoryRegistry, load_catalog, register_all

JANUARY_2024 = 1_704_067_200_000_000
PURPOSE = "genai_training"
MEMBER = MemberId("member-1")
NAMESPACE = "consentry"


def day(number: float) -> Micros:
    """The instant so many days after 1 January 2024."""
    return Micros(JANUARY_2024 + int(number * DAY_MICROS))


WORLD = Jurisdictions(
    codes=frozenset({"HK", "US", "US-CA", "DE", "GB", "GB-SCT", "CH"}),
    groups={"EEA": (Membership(country="DE"), Membership(country="GB", until=day(20)))},
)
"""A world small enough for collisions; Britain leaves its group on day 20."""


def identity(number: int) -> bytes:
    """An event id that no other number has, nor its tag."""
    return number.to_bytes(16, "big")


def chose(
    choice: Choice,
    number: int,
    *,
    on: float,
    observed: int | None = None,
    member: str = MEMBER,
    **more: Any,
) -> ConsentChanged:
    """A choice recorded on a day, and effective then unless told otherwise."""
    fields: dict[str, Any] = {"purpose": PURPOSE, "effective_at": day(on), "recorded_at": day(on)}
    fields |= {"observed_version": observed} | more
    return ConsentChanged(
        event_id=identity(number), member=MemberId(member), choice=choice, **fields
    )


def moved(
    jurisdiction: str,
    number: int,
    *,
    on: float,
    age_band: AgeBand = AgeBand.ADULT,
    member: str = MEMBER,
    **more: Any,
) -> MemberRelocated:
    """A relocation recorded on a day."""
    fields: dict[str, Any] = {"effective_at": day(on), "recorded_at": day(on)} | more
    return MemberRelocated(
        event_id=identity(number),
        member=MemberId(member),
        jurisdiction=jurisdiction,
        age_band=age_band,
        **fields,
    )


def erased(number: int, *, on: float, member: str = MEMBER) -> MemberErased:
    """An erasure recorded on a day."""
    return MemberErased(
        event_id=identity(number),
        member=MemberId(member),
        effective_at=day(on),
        recorded_at=day(on),
        source="desk",
    )


def unreadable(number: int, *, on: float) -> EventUnreadable:
    """A message that could not be read, on a day."""
    return EventUnreadable(event_id=identity(number), member=MEMBER, recorded_at=day(on))


def released(number: int, *, on: float, observed: int | None = None) -> MemberReleased:
    """The end of a quarantine, on a day."""
    return MemberReleased(
        event_id=identity(number),
        member=MEMBER,
        effective_at=day(on),
        recorded_at=day(on),
        observed_version=observed,
    )


def terms(*jurisdictions: str, regime: Regime = Regime.DEFAULT_ON, **more: Any) -> Terms:
    """Terms for the one purpose."""
    return Terms(
        jurisdictions=jurisdictions, purpose=more.pop("purpose", PURPOSE), regime=regime, **more
    )


def policy(
    number: int, *entries: Terms, on: float, effective: float | None = None
) -> PolicyPublished:
    """A policy recorded on a day."""
    return PolicyPublished(
        event_id=identity(number),
        version=str(number),
        terms=entries,
        effective_at=day(on if effective is None else effective),
        recorded_at=day(on),
    )


def pause(
    number: int,
    *jurisdictions: str,
    on: float,
    name: str = "pause-1",
    version: int = 1,
    **more: Any,
) -> PauseImposed:
    """A pause recorded on a day, for the one purpose, going forward, unless told otherwise."""
    scope = Scope(
        jurisdictions=jurisdictions,
        purposes=more.pop("purposes", (PURPOSE,)),
        categories=more.pop("categories", None),
    )
    fields: dict[str, Any] = {
        "effective_at": day(on),
        "recorded_at": day(on),
        "reach": Reach.GOING_FORWARD,
    } | more
    return PauseImposed(
        event_id=identity(number), pause=name, version=version, scope=scope, **fields
    )


def lift(
    number: int, *, on: float, name: str = "pause-1", version: int = 1, **more: Any
) -> PauseLifted:
    """A lift recorded on a day."""
    fields: dict[str, Any] = {"effective_at": day(on), "recorded_at": day(on)} | more
    return PauseLifted(event_id=identity(number), pause=name, version=version, **fields)


def folded(*events: MemberEvent) -> Record | None:
    """The record after these events."""
    record: Record | None = None
    for event in events:
        record = fold(record, event)
    return record


def new_catalog(registry: InMemoryRegistry | None = None) -> Catalog:
    """The ids of all schemas in a registry of their own."""
    registry = registry or InMemoryRegistry()
    register_all(registry, NAMESPACE)
    return load_catalog(registry, NAMESPACE)


# Instants that Avro writes in eight bytes, some of them close together so that order and ties
# matter.
near_instants = st.integers(0, 30).map(lambda number: day(number))
instants = near_instants | st.integers(1 << 48, (1 << 55) - 1).map(Micros)
member_ids = st.from_regex(r"[A-Za-z0-9:_-]{1,64}", fullmatch=True).map(MemberId)
names = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True)
texts = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=30)
event_ids = st.binary(min_size=16, max_size=16)


def random_event(random: Random, number: int, *, recorded_at: Micros | None = None) -> MemberEvent:
    """Any event of the one member by chance: much quicker than drawing each of its fields."""
    recorded = day(random.randrange(30)) if recorded_at is None else recorded_at
    effective = recorded if random.random() < 0.5 else day(random.randrange(30))
    identified: dict[str, Any] = {
        "event_id": identity(number),
        "member": MEMBER,
        "recorded_at": recorded,
    }
    drawn = random.random()
    if drawn < 0.55:
        return ConsentChanged(
            purpose=random.choice([PURPOSE, PURPOSE, "ads"]),
            choice=random.choice(list(Choice)),
            observed_version=random.choice([None, random.randrange(12), number - 1]),
            effective_at=effective,
            **identified,
        )
    if drawn < 0.9:
        return MemberRelocated(
            jurisdiction=random.choice(["HK", "US", "US-CA", "DE", "GB", "GB-SCT"]),
            age_band=random.choice(list(AgeBand)),
            effective_at=effective,
            **identified,
        )
    if drawn < 0.94:
        return EventUnreadable(**identified)
    if drawn < 0.997:
        observed = random.choice([None, random.randrange(12), number - 1])
        return MemberReleased(effective_at=effective, observed_version=observed, **identified)
    return MemberErased(effective_at=effective, **identified)


def histories(*, size_max: int = 12) -> st.SearchStrategy[list[MemberEvent]]:
    """What may be recorded of one member, in log order; times in any order.

    Shrinks by leaving events out.
    """
    seeds = st.lists(st.integers(0, 2**32), min_size=1, max_size=size_max)
    return seeds.map(
        lambda found: [
            random_event(Random(seed), place) for place, seed in enumerate(found, start=1)
        ]
    )


@st.composite
def repeated(draw: st.DrawFn, history: list[MemberEvent]) -> list[MemberEvent]:
    """The history with any of its events given again, later or whole prefixes at once, as a broker
    or a replay does.
    """
    again: list[MemberEvent] = []
    for place, event in enumerate(history):
        again.append(event)
        if draw(st.booleans()):
            start = draw(st.integers(0, place))
            again.extend(history[start : draw(st.integers(start, place)) + 1])
    return again


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    """Any fact, as a record keeps it before it has a version."""
    return Fact(
        kind=draw(st.sampled_from(FactKind)),
        effective_at=draw(instants),
        recorded_at=draw(instants),
        tag=draw(st.binary(min_size=8, max_size=8)),
        observed_version=draw(st.none() | st.integers(0, 1 << 40)),
        name=draw(st.sampled_from(["", "HK", "US-CA", PURPOSE, "ads"])),
    )


_scopes = st.lists(
    st.sampled_from(["HK", "US", "US-CA", "EEA", "GB", "DE", "*"]), min_size=1, max_size=3
).map(tuple)
_many_names = st.none() | st.lists(names, max_size=3).map(tuple)


def any_control() -> st.SearchStrategy[Control]:
    """Any control, as a regulator's desk may send it."""
    times = {"effective_at": instants, "recorded_at": instants}
    scopes = st.builds(Scope, jurisdictions=_scopes, purposes=_many_names, categories=_many_names)
    entries = st.builds(
        Terms,
        jurisdictions=_scopes,
        purpose=names,
        regime=st.sampled_from(Regime),
        basis=st.sampled_from(["CONSENT", "LEGITIMATE_INTEREST", "OTHER"]),
        notice_until=st.none() | instants,
        categories=_many_names,
        collected_from=st.none() | instants,
        minors=st.sampled_from(Minors),
        purge_on_opt_out=st.booleans(),
        purge_within=st.integers(0, 10**9).map(lambda seconds: Micros(seconds * 1_000_000)),
    )
    return st.one_of(
        st.builds(
            PauseImposed,
            event_id=event_ids,
            pause=names,
            version=st.integers(1, 2**31 - 1),
            scope=scopes,
            authority=texts,
            basis=st.sampled_from(PauseBasis),
            reach=st.sampled_from(Reach),
            source=texts,
            **times,
        ),
        st.builds(
            PauseLifted,
            event_id=event_ids,
            pause=names,
            version=st.integers(0, 2**31 - 1),
            opt_ins=st.sampled_from(OptIns),
            source=texts,
            **times,
        ),
        st.builds(
            PolicyPublished,
            event_id=event_ids,
            version=texts,
            terms=st.lists(entries, max_size=3).map(tuple),
            source=texts,
            **times,
        ),
    )


def member_events_on_the_wire() -> st.SearchStrategy[SentEvent]:
    """Any event that a producer may send and nobody may refuse."""
    common: dict[str, Any] = {
        "event_id": event_ids,
        "member": member_ids,
        "effective_at": instants,
        "recorded_at": instants,
        "source": texts,
    }
    return st.one_of(
        st.builds(
            ConsentChanged,
            purpose=names,
            choice=st.sampled_from(Choice),
            observed_version=st.none() | st.integers(0, 1 << 40),
            legal_basis=st.sampled_from(["CONSENT", "LEGITIMATE_INTEREST", "OTHER", "UNKNOWN"]),
            notice_version=texts,
            evidence=st.none() | texts,
            **common,
        ),
        st.builds(
            MemberRelocated,
            jurisdiction=st.sampled_from(["HK", "US", "US-CA", "DE", "GB-SCT"]),
            age_band=st.sampled_from(AgeBand),
            **common,
        ),
        st.builds(MemberErased, **common),
        st.builds(MemberReleased, observed_version=st.none() | st.integers(0, 1 << 40), **common),
    )
