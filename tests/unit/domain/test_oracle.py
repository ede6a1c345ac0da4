"""The rules against an oracle that was written from their text alone, over scenario documents drawn
by chance.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from tests.sizes import size
from tests.unit.domain import oracle

from consentry.domain.controls import PauseImposed
from consentry.domain.orders import PurgeOrder, PurgeReason, order_for_fact
from consentry.domain.records import fold
from consentry.domain.scenarios import Scenario, TimelineEntry, answers, history, open_orders
from consentry.forms.scenarios import parse_scenario
from consentry.wire.jurisdictions import iso_jurisdictions

WORLD = iso_jurisdictions()

PURPOSE = "genai_training"
PURPOSES = (*(PURPOSE,) * 9, "ads")
MEMBERS = (*("m1",) * 9, "m2")
KINDS = (
    *("consent_changed",) * 22,
    *("member_relocated",) * 12,
    *("policy_published",) * 14,
    *("pause_imposed",) * 9,
    *("pause_lifted",) * 11,
    *("unreadable", "released", "member_erased", "member_erased"),
)
THEMES = (
    *(
        KINDS,
        KINDS,
        (*KINDS, *("pause_imposed", "pause_lifted") * 30),
        (*KINDS, *("member_erased",) * 15),
    ),
    (*KINDS, *("unreadable", "released") * 30),
)
"""What happens how often: in some documents much more of one thing, so that it meets itself."""
PLACES = ("HK", "US", "US-CA", "GB", "GB-SCT", "DE", "CH")
SCOPES = (
    ["*"],
    ["*"],
    ["*"],
    ["US"],
    ["US-CA", "HK"],
    ["EEA", "CH"],
    ["GB"],
    ["GB-SCT"],
    ["DE", "US"],
    ["HK"],
)
STAND_IN, NOWHERE = "AQ", "XX"
"""No form takes a code that does not exist, but a data set or another producer may hold one: it is
put in later.
"""
PURGES = (
    None,
    None,
    {"on_opt_out": True, "within": "P7D"},
    {"on_opt_out": True},
    {"within": "PT12H"},
)
BANDS: tuple[dict[str, str], ...] = (
    {},
    {"age_band": "ADULT"},
    {"age_band": "ADULT"},
    {"age_band": "MINOR"},
    {"age_band": "UNKNOWN"},
)
NOBODYS = {"released": {"member": "nobody-asked"}}
SEED = 3
CHANCE = 17 * SEED
"""Bytes to draw: three for the questions and three for each of at most 16 entries."""


@cache
def day(number: int) -> str:
    """The midnight so many days after 1 January 2024, written in one of three ways."""
    date = datetime(2024, 1, 1) + timedelta(days=number)  # noqa: DTZ001 - the zone is written below
    formats = ("%Y-%m-%d", "%Y-%m-%dT00:00:00Z", "%Y-%m-%dT01:00:00+01:00")
    return date.strftime(formats[number % 3])


def document_by_chance(chance: bytes) -> dict[str, Any]:
    """A scenario of one entry for each seed but those that four divides, so that a failing one
    shrinks.
    """
    questions, *seeds = (
        int.from_bytes(chance[place : place + SEED], "big") for place in range(0, len(chance), SEED)
    )
    kinds = THEMES[questions % len(THEMES)]
    entries: list[dict[str, Any]] = []
    today = 10
    for random in (Random(seed) for seed in seeds if seed % 4):
        today += random.choice((0, 0, 1, 1, 2, 3))
        entries.append(
            {"recorded": day(today)} | entry_by_chance(random, kinds, len(entries) + 1, today)
        )
    imposed = {one["pause_imposed"]["pause"] for one in entries if "pause_imposed" in one}
    entries = [
        one if lifts_any_of(imposed, one) else {"recorded": one["recorded"]} | NOBODYS
        for one in entries
    ]
    random = Random(questions)
    return {
        "name": "by-chance",
        "timeline": entries or [{"recorded": day(today)} | NOBODYS],
        "expect": [question_by_chance(random, today) for _ in range(5)],
        "expect_orders": [],
    }


def lifts_any_of(imposed: set[str], entry: dict[str, Any]) -> bool:
    """Whether an entry is no lift, or one of a pause that is imposed somewhere; another could not
    be read.
    """
    return "pause_lifted" not in entry or entry["pause_lifted"]["pause"] in imposed


def entry_by_chance(
    random: Random, kinds: Sequence[str], number: int, today: int
) -> dict[str, Any]:
    """Any entry; the first ones are more likely a policy and a home, as nothing is answered
    without.
    """
    kind = {1: "policy_published", 2: "member_relocated"}.get(
        number + random.choice((0, 0, 9)), random.choice(kinds)
    )
    member = {"member": random.choice(MEMBERS)}
    effective = random.choice((*(None,) * 5, *range(today - 8, today + 5)))
    if kind == "member_erased":
        effective = random.choice((None, today - 2, *range(today, today + 10)))
    if kind == "unreadable":
        return {kind: member}
    says: dict[str, Any] = {} if effective is None else {"effective": day(effective)}
    match kind:
        case "consent_changed":
            says |= member | choice_by_chance(random, number)
        case "member_relocated":
            says |= member | {"jurisdiction": random.choice(PLACES)} | random.choice(BANDS)
        case "policy_published":
            first = today if effective is None else effective
            terms = [terms_by_chance(random, first) for _ in range(random.randrange(1, 4))]
            says |= {"version": f"{number}", "terms": terms}
        case "pause_imposed" | "pause_lifted":
            says |= {"pause": random.choice("ab"), "version": random.choice((1, 1, 2))}
            says |= (
                scope_by_chance(random)
                if kind == "pause_imposed"
                else {"opt_ins": random.choice(("VOID", "KEEP"))}
            )
        case "released":
            observed = random.choice(
                (None, number - 1, random.randrange(number), random.randrange(number + 3))
            )
            says |= member | random.choice(({}, {"observed": observed or None}))
        case _:
            says |= member
    return {kind: says}


def choice_by_chance(random: Random, number: int) -> dict[str, Any]:
    """What a member says, having seen any state before, or not telling which."""
    observed = random.choice(
        (None, number - 1, random.randrange(number), random.randrange(number + 3))
    )
    return {
        "purpose": random.choice(PURPOSES),
        "choice": random.choice(("OPT_OUT", "OPT_OUT", "OPT_IN", "OPT_IN", "OPT_IN", "UNKNOWN")),
    } | random.choice(({}, {"observed": observed or None}))


def scope_by_chance(random: Random) -> dict[str, Any]:
    """What a pause covers, how far back it reaches and who asked for it."""
    return {
        "jurisdictions": random.choice((*SCOPES * 4, ["HK", STAND_IN], [STAND_IN])),
        "purposes": random.choice((None, [PURPOSE], ["ads"], ["ads", PURPOSE])),
        "categories": random.choice((None, None, ["posts"], ["posts", "profile"])),
        "authority": "PCPD",
        "basis": "UNDERTAKING",
        "reach": random.choice((*("GOING_FORWARD",) * 3, "PRIOR_AND_FUTURE")),
    }


def terms_by_chance(random: Random, effective: int) -> dict[str, Any]:
    """One entry of a policy that takes effect on a day."""
    conditions = {
        "notice_until": random.choice((None, day(effective + random.randrange(12)))),
        "categories": random.choice((None, None, None, ["posts"], ["other"])),
        "collected_from": random.choice((None, None, None, day(random.randrange(5)))),
        "minors": random.choice((None, "ALLOW", "ALLOW", "EXCLUDE", "EXCLUDE_UNLESS_ADULT")),
        "purge": random.choice(PURGES),
    }
    return {
        "jurisdictions": random.choice(SCOPES),
        "purpose": random.choice(PURPOSES),
        "regime": random.choice(
            ("DEFAULT_ON", "DEFAULT_ON", "DEFAULT_ON", "OPT_IN", "OPT_IN", "NOT_OFFERED")
        ),
    } | {
        name: value
        for name, value in conditions.items()
        if value is not None or random.random() < 0.2
    }


def question_by_chance(random: Random, today: int) -> dict[str, Any]:
    """A question of any day of the timeline and around it; what is to be expected is only a
    placeholder.
    """
    asked: dict[str, Any] = {
        "member": random.choice((*MEMBERS * 2, "nobody")),
        "purpose": random.choice(PURPOSES),
    }
    asked |= {
        name: day(random.randrange(10, today + 5))
        for name in ("at", "known_at")
        if random.random() < 0.5
    }
    if random.random() < 0.5:
        row = {
            "jurisdiction": random.choice((None, *PLACES * 2, STAND_IN)),
            "category": random.choice((None, "posts", "profile")),
            "collected": random.choice((None, *map(day, range(5)))),
        }
        asked["row"] = {
            name: value for name, value in row.items() if value is not None or random.random() < 0.2
        }
    return asked | {"allowed": False, "reason": "ERASED"}


def as_the_oracle_reads(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The document with the code that does not exist, or with none in the place of it alone."""
    text = json.dumps(document)
    misspelt = text.replace(f'["{STAND_IN}"]', "[]").replace(f'"{STAND_IN}"', f'"{NOWHERE}"')
    return document if misspelt == text else dict(json.loads(misspelt))


def as_the_product_reads(document: Mapping[str, Any]) -> Scenario:
    """The scenario behind a document, with the same done to it."""
    scenario = parse_scenario(document)
    expect = (
        replace(one, row=replace(one.row, jurisdiction=NOWHERE))
        if one.row and one.row.jurisdiction == STAND_IN
        else one
        for one in scenario.expect
    )
    return replace(scenario, timeline=tuple(map(misspelt, scenario.timeline)), expect=tuple(expect))


def misspelt(entry: TimelineEntry) -> TimelineEntry:
    """An entry whose scope, if it names the stand-in, names what does not exist, or nothing."""
    what = entry.what
    if not isinstance(what, PauseImposed) or STAND_IN not in what.scope.jurisdictions:
        return entry
    known = tuple(code for code in what.scope.jurisdictions if code != STAND_IN)
    scope = replace(what.scope, jurisdictions=(*known, NOWHERE) if known else ())
    return entry._replace(what=replace(what, scope=scope))


def lines(orders: Iterable[Mapping[str, Any]]) -> list[str]:
    """Orders in an order of their own, one line each."""
    return sorted(json.dumps(order, sort_keys=True) for order in orders)


def told(order: PurgeOrder) -> dict[str, Any]:
    """An order of the product as the oracle tells it."""
    if order.pause is None or order.scope is None:
        return {"because": order.because, "member": order.member, "due": order.due_at}
    whose = {"pause": order.pause, "jurisdictions": list(order.scope.jurisdictions)}
    return {"because": order.because, "due": order.due_at} | whose


@pytest.mark.model
@pytest.mark.sized
@pytest.mark.timeout(900)
@settings(max_examples=size(small=4_000, full=20_000))
@given(st.binary(min_size=CHANCE, max_size=CHANCE))
def test_the_rules_and_the_oracle_agree_on_any_timeline(chance: bytes) -> None:
    """Hurt when this breaks: whoever is answered by the one of the two that is wrong."""
    document = document_by_chance(chance)
    plain, scenario = as_the_oracle_reads(document), as_the_product_reads(document)

    got = [(decision.allowed, decision.reason.value) for decision in answers(scenario, WORLD)]

    assert got == oracle.answers(plain), json.dumps(plain)
    assert lines(map(told, open_orders(scenario, WORLD))) == lines(oracle.orders(plain)), (
        json.dumps(plain)
    )


@settings(max_examples=1000)
@given(st.binary(min_size=CHANCE, max_size=CHANCE))
def test_a_timeline_that_is_read_again_changes_no_answer_and_opens_no_other_order(
    chance: bytes,
) -> None:
    """After a crash a worker reads on from an older place; nobody may then be used, or purged, who
    was not before.
    """
    first = history(as_the_product_reads(document_by_chance(chance)), WORLD)

    assert first.controls.after(*first.controls.log) == first.controls
    for event in first.events:
        record = first.records[event.member]
        assert fold(record, event) == record
        order = order_for_fact(event.member, event.fact(), record, first.controls)
        assert order is None or order in first.orders


def test_the_timelines_meet_every_reason_and_every_order() -> None:
    """Two programs that are only ever asked the easy questions agree on anything."""
    documents = [document_by_chance(Random(seed).randbytes(CHANCE)) for seed in range(500)]
    reasons = Counter(
        answer for document in documents for answer in oracle.answers(as_the_oracle_reads(document))
    )
    orders = Counter(
        order["because"] for document in documents for order in oracle.orders(document)
    )
    unmet = {(reason in oracle.ALLOWING, reason) for reason in oracle.ORDER} - set(reasons)

    assert not unmet
    assert min(reasons.values()) >= 20, reasons
    assert set(orders) == set(PurgeReason)
    assert min(orders.values()) >= 20, orders


def documents_of_the_house() -> list[Any]:
    """Every scenario that is shipped, its dates as they are written."""

    class Texts(SafeConstructor):
        """Leaves dates alone."""

    Texts.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = Texts
    shipped = sorted(
        files("consentry_schemas").joinpath("scenarios").iterdir(), key=lambda file: file.name
    )
    return [
        pytest.param(yaml.load(file.read_text()), id=file.name)
        for file in shipped
        if file.name.endswith(".yaml")
    ]


@pytest.mark.parametrize("document", documents_of_the_house())
def test_the_oracle_holds_what_the_scenarios_of_the_house_expect(document: dict[str, Any]) -> None:
    """They were reckoned by people who had read what the regulators said, not what a program
    does.
    """
    orders = [
        order | {"due": oracle.instant(order["due"])}
        for order in document.get("expect_orders") or []
    ]

    for one, (allowed, reason) in zip(document["expect"], oracle.answers(document), strict=True):
        if is_for_the_oracle(one):
            assert (allowed, reason) == (one["allowed"], one["reason"]), one
    assert "expect_orders" not in document or lines(oracle.orders(document)) == lines(orders)


def is_for_the_oracle(expectation: Mapping[str, Any]) -> bool:
    """Whether the oracle can know: it never forgets, and its European Economic Area is that of 2021
    and later.
    """
    return expectation["reason"] in oracle.ORDER and expectation.get("at", "2021") >= "2021"


def everywhere(effective: str | None = None, **more: Any) -> dict[str, Any]:
    """A policy whose terms hold everywhere."""
    terms = {"jurisdictions": ["*"], "purpose": PURPOSE, "regime": "DEFAULT_ON"} | more
    return {"policy_published": {"version": "1", "effective": effective, "terms": [terms]}}


def chose(choice: str, **more: Any) -> dict[str, Any]:
    """A choice of the member."""
    return {"consent_changed": {"member": "m1", "purpose": PURPOSE, "choice": choice} | more}


def moved(jurisdiction: str, **more: Any) -> dict[str, Any]:
    """A home of the member."""
    return {"member_relocated": {"member": "m1", "jurisdiction": jurisdiction} | more}


def paused(*jurisdictions: str, version: int = 1, **more: Any) -> dict[str, Any]:
    """A pause."""
    return {
        "pause_imposed": {"pause": "a", "version": version, "jurisdictions": list(jurisdictions)}
        | more
    }


def lifted(version: int = 1, opt_ins: str = "VOID", **more: Any) -> dict[str, Any]:
    """A lift of that pause."""
    return {"pause_lifted": {"pause": "a", "version": version, "opt_ins": opt_ins} | more}


def erased(**more: Any) -> dict[str, Any]:
    """An erasure of the member."""
    return {"member_erased": {"member": "m1"} | more}


def released(**more: Any) -> dict[str, Any]:
    """A release of the member."""
    return {"released": {"member": "m1"} | more}


def story(*timeline: dict[str, Any], **question: Any) -> dict[str, Any]:
    """A document whose entries are recorded on day 1, 2, 3 and so on, unless they say when, and one
    question.
    """
    entries = [{"recorded": day(number)} | one for number, one in enumerate(timeline, start=1)]
    return {"timeline": entries, "expect": [{"member": "m1", "purpose": PURPOSE} | question]}


POLICY, HOME, OUT, IN = everywhere(), moved("US"), chose("OPT_OUT"), chose("OPT_IN")
UNREADABLE, RELEASED = {"unreadable": {"member": "m1"}}, {"released": {"member": "m1"}}
AHEAD = erased(effective=day(6))
PURGING = everywhere(purge={"on_opt_out": True, "within": "P2D"})
BACK: dict[str, Any] = {"reach": "PRIOR_AND_FUTURE"}


class TestOracle:
    """Reckoned by hand, from the text: an oracle that is wrong in the product's way would notice
    nothing.
    """

    @pytest.mark.parametrize(
        ("document", "expected"),
        [
            (story(POLICY), "JURISDICTION_UNKNOWN"),
            (story(POLICY, row={"jurisdiction": "HK"}), "DEFAULT_ON"),
            (story(POLICY, HOME, row={"jurisdiction": "XX"}), "JURISDICTION_UNKNOWN"),
            (story(POLICY, HOME, UNREADABLE), "QUARANTINED"),
            (story(POLICY, HOME, UNREADABLE, RELEASED), "DEFAULT_ON"),
            (story(POLICY, HOME, RELEASED, UNREADABLE), "QUARANTINED"),
            (story(POLICY, HOME, UNREADABLE, released(observed=3)), "DEFAULT_ON"),
            (story(POLICY, HOME, UNREADABLE, UNREADABLE, released(observed=3)), "QUARANTINED"),
            (story(POLICY, HOME, UNREADABLE, UNREADABLE, released(observed=4)), "DEFAULT_ON"),
            (
                story(
                    POLICY, HOME, UNREADABLE, UNREADABLE, released(observed=4), released(observed=3)
                ),
                "DEFAULT_ON",
            ),
            (story(POLICY, HOME, UNREADABLE, released(observed=2)), "QUARANTINED"),
            (story(POLICY, HOME, OUT, IN), "OPTED_OUT"),
            (story(POLICY, HOME, OUT, chose("OPT_IN", observed=2)), "OPTED_OUT"),
            (story(POLICY, HOME, OUT, chose("OPT_IN", observed=3)), "OPTED_IN"),
            (story(POLICY, HOME, OUT, OUT, chose("OPT_IN", observed=3)), "OPTED_OUT"),
            (
                story(POLICY, HOME, OUT, chose("OPT_IN", observed=3), chose("UNKNOWN"), IN),
                "OPTED_IN",
            ),
            (story(POLICY, HOME, OUT, chose("UNKNOWN")), "OPTED_OUT"),
            (story(everywhere(regime="OPT_IN"), HOME, IN, chose("UNKNOWN")), "OPT_IN_REQUIRED"),
            (story(POLICY, HOME, chose("OPT_OUT", effective=day(9))), "DEFAULT_ON"),
            (story(POLICY, HOME, OUT, at=day(9), known_at=day(2)), "DEFAULT_ON"),
            (story(POLICY, HOME, AHEAD, OUT, at=day(5)), "OPTED_OUT"),
            (story(POLICY, HOME, AHEAD, OUT, at=day(6)), "ERASED"),
            (
                story(
                    POLICY,
                    HOME,
                    erased(),
                    chose("OPT_OUT", effective=day(2)),
                    at=day(2),
                    known_at=day(4),
                ),
                "DEFAULT_ON",
            ),
            (story(POLICY, HOME, lifted(), paused("US")), "DEFAULT_ON"),
            (story(POLICY, HOME, paused("US"), lifted(), paused("US")), "DEFAULT_ON"),
            (story(POLICY, HOME, paused("US"), lifted(), paused("US", version=2)), "PAUSED"),
            (story(POLICY, HOME, paused("HK"), paused("US")), "DEFAULT_ON"),
            (
                story(POLICY, HOME, paused("HK", effective=day(5)), paused("US"), at=day(4)),
                "PAUSED",
            ),
            (story(POLICY, HOME, paused("US-CA")), "DEFAULT_ON"),
            (story(POLICY, moved("US-CA"), paused("US")), "PAUSED"),
            (story(POLICY, moved("DE-BY"), paused("EEA")), "PAUSED"),
            (story(POLICY, moved("GB-SCT"), paused("EEA")), "DEFAULT_ON"),
            (
                story(POLICY, HOME, paused("HK", "XX", purposes=["ads"], categories=["posts"])),
                "PAUSED",
            ),
            (story(POLICY, HOME, paused("US", categories=["posts"])), "PAUSED"),
            (
                story(POLICY, HOME, paused("US", categories=["posts"]), row={"category": "ads"}),
                "DEFAULT_ON",
            ),
            (story(POLICY, HOME, IN, paused("US"), lifted()), "DEFAULT_ON"),
            (story(POLICY, HOME, IN, paused("US"), lifted(opt_ins="KEEP")), "OPTED_IN"),
            (story(POLICY, HOME, IN, paused("US", purposes=["ads"]), lifted()), "OPTED_IN"),
            (story(POLICY, HOME, IN, paused("US", version=2), lifted()), "PAUSED"),
            (story(POLICY, HOME, paused("US"), lifted(), IN | {"recorded": day(4)}), "DEFAULT_ON"),
            (story(POLICY, HOME, paused("US"), lifted(), IN), "OPTED_IN"),
            (story(POLICY, everywhere(regime="NOT_OFFERED", effective=day(0)), HOME), "DEFAULT_ON"),
            (
                story(POLICY, everywhere(regime="NOT_OFFERED", effective=day(1)), HOME),
                "NOT_OFFERED",
            ),
            (
                story(POLICY, everywhere(jurisdictions=["HK"], regime="NOT_OFFERED"), HOME),
                "DEFAULT_ON",
            ),
            (story(POLICY, HOME, purpose="ads"), "NO_TERMS"),
            (story(everywhere(minors="EXCLUDE"), HOME), "DEFAULT_ON"),
            (story(everywhere(minors="EXCLUDE_UNLESS_ADULT"), HOME), "OUTSIDE_TERMS"),
            (story(everywhere(collected_from=day(1)), HOME), "DEFAULT_ON"),
            (story(everywhere(collected_from=day(1)), HOME, row={}), "OUTSIDE_TERMS"),
            (
                story(everywhere(collected_from=day(1)), HOME, row={"collected": day(1)}),
                "DEFAULT_ON",
            ),
            (story(everywhere(notice_until=day(3)), HOME), "NOTICE_OPEN"),
            (story(everywhere(notice_until=day(2)), HOME), "DEFAULT_ON"),
            (
                story(
                    everywhere(notice_until=day(9)),
                    HOME,
                    IN,
                    paused("US"),
                    lifted(),
                    row={"jurisdiction": "HK"},
                ),
                "NOTICE_OPEN",
            ),
        ],
    )
    def test_answers(self, document: dict[str, Any], expected: str) -> None:
        """Each rule, and each place where two of them meet."""
        assert oracle.answers(document) == [(expected in oracle.ALLOWING, expected)]

    @pytest.mark.parametrize(
        ("document", "due"),
        [
            (story(POLICY, HOME, erased()), [33]),
            (story(PURGING, erased(), HOME), [32]),
            (story(PURGING, HOME, erased(), erased()), [5]),
            (story(PURGING, HOME, AHEAD, erased()), [5, 6]),
            (story(PURGING, HOME, erased(effective=day(4)), OUT), [5]),
            (
                story(PURGING, everywhere(purpose="ads", purge={"within": "P1D"}), HOME, erased()),
                [5],
            ),
            (story(HOME, erased(), PURGING | {"recorded": day(2)}), [4]),
            (story(HOME, erased(), PURGING), [32]),
            (story(POLICY, HOME, OUT), []),
            (story(PURGING, HOME, OUT, OUT), [5, 6]),
            (story(PURGING, OUT, HOME), []),
            (story(PURGING, HOME, chose("OPT_OUT", purpose="ads")), []),
            (story(PURGING, paused("US", reach="GOING_FORWARD")), []),
            (story(PURGING, paused("US", **BACK), paused("HK", **BACK), lifted()), [4]),
            (story(PURGING, paused("US", **BACK), paused("US", version=2, **BACK)), [4, 5]),
            (story(PURGING, paused("US", purposes=["ads"], **BACK)), [32]),
            (
                story(
                    POLICY,
                    everywhere(jurisdictions=["NO"], purge={"within": "P1D"}),
                    paused("EEA", **BACK),
                ),
                [4],
            ),
            (
                story(
                    POLICY,
                    everywhere(jurisdictions=["GB"], purge={"within": "P1D"}),
                    paused("EEA", **BACK),
                ),
                [33],
            ),
            (
                story(
                    POLICY,
                    everywhere(jurisdictions=["GB"], purge={"within": "P1D"}),
                    paused("*", **BACK),
                ),
                [4],
            ),
        ],
    )
    def test_orders(self, document: dict[str, Any], due: list[int]) -> None:
        """Who must delete by when is told to the member, and to the regulator."""
        assert sorted(order["due"] for order in oracle.orders(document)) == [
            oracle.instant(day(one)) for one in due
        ]
