"""The index of controls against plain scans: whatever order, batches and times, both say the same
of every use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import PURPOSE, WORLD, any_control, day, lift, pause, policy, terms

from consentry.domain import controls as indexed
from consentry.domain.controls import (
    PURGE_WITHIN_DEFAULT,
    ApplicableControls,
    Control,
    Controls,
    OptIns,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Reach,
    Scope,
    Terms,
)
from consentry.domain.jurisdictions import Jurisdictions, Membership
from consentry.domain.values import Micros

DATED: Final = Jurisdictions(
    codes=WORLD.codes,
    groups={
        "EEA": (Membership(country="DE"), Membership(country="GB", until=day(6))),
        "CLUB": (
            Membership(country="GB", since=day(3), until=day(9)),
            Membership(country="HK", since=day(5)),
        ),
    },
)
"""Countries join and leave groups in the days in which controls come."""
CODES: Final = sorted(DATED.codes)
SCOPES: Final = ("*", "EEA", "CLUB", *CODES)
PURPOSES: Final = (PURPOSE, "ads")
CATEGORIES: Final = (None, "posts", "profile")
DAYS: Final = tuple(range(11))


class Asked(NamedTuple):
    """One question to the controls."""

    jurisdiction: str
    purpose: str
    category: str | None
    at: Micros
    known_at: Micros


NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def counting(log: Iterable[Control], asked: Asked) -> list[Any]:
    """The controls that count, in log order. Source: rule 1."""
    return [
        one for one in log if one.effective_at <= asked.at and one.recorded_at <= asked.known_at
    ]


def covers(jurisdictions: Jurisdictions, scope: Iterable[str], asked: Asked) -> bool:
    """Whether any entry of a scope holds the jurisdiction at the time asked about. Source: rule
    4.
    """
    country = asked.jurisdiction.split("-")[0]
    return any(
        entry in ("*", asked.jurisdiction, country)
        or any(
            member.country == country and member.since <= asked.at < member.until
            for member in jurisdictions.groups.get(entry, ())
        )
        for entry in scope
    )


def imposed(log: Iterable[Control], asked: Asked) -> list[PauseImposed]:
    """The pauses that count, each version by the first that says it. Source: rule 5."""
    found: dict[tuple[str, int], PauseImposed] = {}
    for one in counting(log, asked):
        if isinstance(one, PauseImposed):
            found.setdefault((one.pause, one.version), one)
    return list(found.values())


def lifts_of(log: Iterable[Control], one: PauseImposed, asked: Asked) -> list[PauseLifted]:
    """The counting lifts of this version of a pause. Source: rule 5."""
    return [
        other
        for other in counting(log, asked)
        if isinstance(other, PauseLifted)
        and other.pause == one.pause
        and other.version >= one.version
    ]


def plain_pause(
    jurisdictions: Jurisdictions, log: Iterable[Control], asked: Asked
) -> PauseImposed | None:
    """The first pause in force on this use. Source: rule 5."""
    for one in imposed(log, asked):
        scope = one.scope
        if (
            covers(jurisdictions, scope.jurisdictions, asked)
            and (scope.purposes is None or asked.purpose in scope.purposes)
            and (
                scope.categories is None
                or asked.category is None
                or asked.category in scope.categories
            )
            and not lifts_of(log, one, asked)
        ):
            return one
    return None


def plain_terms(
    jurisdictions: Jurisdictions, log: Iterable[Control], asked: Asked
) -> tuple[PolicyPublished | None, Terms | None]:
    """The terms that bind. Source: rule 6."""
    best: tuple[PolicyPublished | None, Terms | None] = (None, None)
    for one in counting(log, asked):
        if isinstance(one, PolicyPublished) and (
            best[0] is None or one.effective_at >= best[0].effective_at
        ):
            matching = [
                entry
                for entry in one.terms
                if entry.purpose == asked.purpose
                and covers(jurisdictions, entry.jurisdictions, asked)
            ]
            best = (one, matching[0]) if matching else best
    return best


def plain_voiding_lifts(
    jurisdictions: Jurisdictions, log: Iterable[Control], asked: Asked
) -> list[PauseLifted]:
    """The lifts that void opt-ins of this jurisdiction and purpose, those recorded last.

    Source: rule 7.
    """
    found = [
        other
        for one in imposed(log, asked)
        if covers(jurisdictions, one.scope.jurisdictions, asked)
        and (one.scope.purposes is None or asked.purpose in one.scope.purposes)
        for other in lifts_of(log, one, asked)
        if other.opt_ins is not OptIns.KEEP
    ]
    latest = max((other.recorded_at for other in found), default=None)
    return [other for other in found if other.recorded_at == latest]


def plain_scope(jurisdictions: Jurisdictions, scope: Scope) -> Scope:
    """A scope as it is read: whatever cannot be understood in it covers everything. Source: rule
    5.
    """
    known = {*jurisdictions.codes, *jurisdictions.groups, "*"}
    if not scope.jurisdictions or not known.issuperset(scope.jurisdictions):
        return Scope(jurisdictions=("*",))
    purposes, categories = (
        names
        if names and all(re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) for name in names)
        else None
        for names in (scope.purposes, scope.categories)
    )
    return Scope(jurisdictions=scope.jurisdictions, purposes=purposes, categories=categories)


def plain_log(jurisdictions: Jurisdictions, controls: Iterable[Control]) -> list[Control]:
    """The controls that change anything: no repeated event id, except of a pause that says
    something else.
    """
    log: list[Control] = []
    for one in controls:
        if isinstance(one, PauseImposed):
            one = replace(one, scope=plain_scope(jurisdictions, one.scope))
        is_known = any(other.event_id == one.event_id for other in log)
        if not is_known or (isinstance(one, PauseImposed) and one not in log):
            log.append(one)
    return log


def check(controls: Controls, log: Sequence[Control], asked: Asked) -> None:
    """Assert that the index says what the scans say, by each way of asking."""
    jurisdiction, purpose, category, at, known_at = asked
    jurisdictions = controls.jurisdictions
    pausing = plain_pause(jurisdictions, log, asked)
    policy_and_terms = plain_terms(jurisdictions, log, asked)
    lifts = plain_voiding_lifts(jurisdictions, log, asked)
    applicable = controls.applicable(jurisdiction, purpose, category, at=at, known_at=known_at)

    assert applicable[:3] == (pausing, *policy_and_terms)
    assert applicable.voiding_lift in lifts or (applicable.voiding_lift is None and not lifts)
    assert (
        controls.pause_in_force(jurisdiction, purpose, category, at=at, known_at=known_at)
        == pausing
    )
    assert (
        controls.terms_for(jurisdiction, purpose, at=at, known_at=known_at) or (None, None)
    ) == policy_and_terms
    assert (
        controls.last_voiding_lift(jurisdiction, purpose, at=at, known_at=known_at)
        == applicable.voiding_lift
    )


def control_by_chance(random: Random, number: int) -> Control:
    """Any control of a small world, so that they bear on each other; some ids come back."""
    recorded = day(random.choice(DAYS))
    effective = random.choice([recorded, day(random.choice(DAYS))])
    fields: dict[str, Any] = {
        "event_id": random.choice([number] * 8 + [number // 2]).to_bytes(16, "big"),
        "effective_at": effective,
        "recorded_at": recorded,
    }
    drawn = random.random()
    if drawn < 0.3:
        entries = tuple(
            terms(
                *random.sample(SCOPES, random.randrange(1, 4)),
                purpose=random.choice(PURPOSES),
                basis=f"{place}",
            )
            for place in range(random.randrange(4))
        )
        return PolicyPublished(version=f"{number}", terms=entries, **fields)
    fields |= {"pause": random.choice("pqr"), "version": random.randrange(1, 4)}
    if drawn < 0.65:
        scope = Scope(
            jurisdictions=tuple(
                random.choice([*SCOPES, "ZZ"]) for _ in range(random.choice([0, 1, 1, 1, 2]))
            ),
            purposes=random.choice([None, (PURPOSE,), ("ads",), (), ("Ads",)]),
            categories=random.choice([None, None, ("posts",), (), ("posts", "")]),
        )
        return PauseImposed(scope=scope, **fields)
    return PauseLifted(opt_ins=random.choice(list(OptIns)), **fields)


def controls_by_chance(random: Random, size_max: int = 30) -> list[Control]:
    """Some controls in the order of a log, which is not that of their times."""
    return [control_by_chance(random, number) for number in range(random.randrange(size_max))]


def times_of(jurisdictions: Jurisdictions, log: Iterable[Control]) -> list[Micros]:
    """Every time at which anything may change, and the instants around it."""
    times = {time for one in log for time in (one.effective_at, one.recorded_at)} | {day(5)}
    times |= {
        time
        for members in jurisdictions.groups.values()
        for one in members
        for time in (one.since, one.until)
    }
    return [Micros(time + step) for time in sorted(times) for step in (-1, 0, 1)]


def question_by_chance(random: Random, times: Sequence[Micros]) -> Asked:
    """Any question about any use."""
    at, known_at = random.choice(times), random.choice([*times, Micros(1 << 62)])
    return Asked(
        random.choice(CODES), random.choice(PURPOSES), random.choice(CATEGORIES), at, known_at
    )


def in_batches(
    random: Random, log: Sequence[Control], jurisdictions: Jurisdictions = DATED
) -> Controls:
    """The controls extended by some at a time, sometimes by none, and asked in between."""
    controls, start = Controls(jurisdictions), 0
    while start < len(log):
        end = start + random.choice([0, 1, 1, 2, 5, 20])
        controls = controls.after(*log[start:end])
        controls.applicable("GB", PURPOSE, None, at=day(5), known_at=day(5))
        start = end
    return controls


class TestAgainstPlainScans:
    @settings(max_examples=1000, deadline=None)
    @given(st.integers(0, 2**48))
    def test_every_use_gets_the_pause_the_terms_and_the_lift_that_the_rules_give_it(
        self, seed: int
    ) -> None:
        """An index that overlooks one control is a regulator that nobody hears."""
        random = Random(seed)
        given_controls = controls_by_chance(random)
        controls = Controls(DATED).after(*given_controls)
        log = plain_log(DATED, given_controls)
        times = times_of(DATED, log)

        assert list(controls.log) == log
        for _ in range(20):
            check(controls, log, question_by_chance(random, times))

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, 2**48))
    def test_it_does_not_matter_in_how_many_pieces_controls_arrive(self, seed: int) -> None:
        """A trainer that follows and one that starts today must not decide differently."""
        random = Random(seed)
        given_controls = controls_by_chance(random)
        at_once = Controls(DATED).after(*given_controls)
        one_by_one = Controls(DATED)
        for control in given_controls:
            one_by_one = one_by_one.after(control)
        ways = [at_once, one_by_one, in_batches(random, given_controls)]
        times = times_of(DATED, at_once.log)

        assert ways == [at_once] * 3
        for _ in range(15):
            code, purpose, category, at, known_at = question_by_chance(random, times)
            found = {
                repr(way.applicable(code, purpose, category, at=at, known_at=known_at))
                for way in ways
            }
            assert len(found) == 1
        for name in ("pauses", "policies", "collection_cut_offs", "purges_on_opt_out", "purposes"):
            assert len({repr(getattr(way, name)) for way in ways}) == 1

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**48))
    def test_no_answer_is_remembered_across_a_boundary(self, seed: int) -> None:
        """A pause begins, a lift becomes known, a country leaves its group: from that microsecond,
        and not before.
        """
        random = Random(seed)
        controls = Controls(DATED).after(*controls_by_chance(random, 8))
        times = times_of(DATED, controls.log)
        moments = list(product(times, repeat=2))
        use = (random.choice(CODES), random.choice(PURPOSES), random.choice(CATEGORIES))

        for at, known_at in random.sample(moments, min(len(moments), 150)) * 2:
            check(controls, controls.log, Asked(*use, at, known_at))

    @settings(max_examples=60, deadline=None)
    @given(st.lists(any_control(), max_size=12), st.integers(0, 2**48))
    def test_controls_of_any_content_are_answered_for(
        self, given_controls: list[Control], seed: int
    ) -> None:
        """Whatever a regulator's desk sends, also with instants far away and versions far up."""
        random = Random(seed)
        controls = in_batches(random, given_controls, WORLD)
        log = plain_log(WORLD, given_controls)
        times = times_of(WORLD, log)
        names = [
            name
            for one in log
            if isinstance(one, PolicyPublished)
            for name in (t.purpose for t in one.terms)
        ]
        names += [
            name
            for one in log
            if isinstance(one, PauseImposed)
            for name in one.scope.purposes or ()
        ]
        categories = [
            name
            for one in log
            if isinstance(one, PauseImposed)
            for name in one.scope.categories or ()
        ]

        assert list(controls.log) == log
        for _ in range(20):
            asked = question_by_chance(random, times)
            asked = asked._replace(purpose=random.choice([PURPOSE, *names]))
            check(
                controls, log, asked._replace(category=random.choice([None, "posts", *categories]))
            )

    def test_answers_beyond_those_that_are_remembered_are_given_all_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows may name a million categories; letting go of answers costs time, never an answer."""
        monkeypatch.setattr(indexed, "_KNOWN_MAX", 2)
        controls = Controls(DATED).after(
            policy(1, terms("*"), on=0), pause(2, "US", on=1, categories=("posts",))
        )

        for _ in range(3):
            for code, category in product(("US", "HK"), ("posts", "profile", None)):
                check(controls, controls.log, Asked(code, PURPOSE, category, day(2), day(2)))
        assert len(controls._known) <= 2


NOW: Final = {"at": day(10), "known_at": day(10)}


def pausing(controls: Controls, jurisdiction: str = "US", **question: Any) -> int | None:
    """The number of the pause in force on a use, or None."""
    use = {"purpose": PURPOSE, "category": None} | NOW | question
    found = controls.pause_in_force(jurisdiction, **use)
    return None if found is None else int.from_bytes(found.event_id, "big")


def voiding(controls: Controls, jurisdiction: str = "US", **question: Any) -> int | None:
    """The number of the lift that voids opt-ins, or None."""
    found = controls.last_voiding_lift(jurisdiction, **({"purpose": PURPOSE} | NOW | question))
    return None if found is None else int.from_bytes(found.event_id, "big")


def binding(
    controls: Controls, jurisdiction: str = "US", **question: Any
) -> tuple[str, str] | None:
    """The version of the policy that binds, and the basis of its terms, or None."""
    found = controls.terms_for(jurisdiction, **({"purpose": PURPOSE} | NOW | question))
    return None if found is None else (found[0].version, found[1].basis)


def told(*controls: Control) -> Controls:
    """These controls in the dated world."""
    return Controls(DATED).after(*controls)


class TestRepetition:
    def test_a_repeated_control_changes_nothing_at_all(self) -> None:
        """A broker and a replay give the same message again and again; memory must not grow by
        it.
        """
        everything: list[Control] = [
            policy(1, terms("*"), on=0),
            pause(2, "US", on=1),
            lift(3, on=2),
        ]
        controls = told(*everything)

        assert controls.after(*everything, *reversed(everything)) is controls
        assert controls.after() is controls
        assert told(*everything, *everything).log == controls.log

    def test_a_pause_with_the_event_id_of_another_control_is_heard(self) -> None:
        """Whoever uses an id twice must not thereby leave a regulator unheard."""
        controls = told(policy(1, terms("*"), on=0), pause(1, "US", on=1))
        again = controls.after(pause(1, "US", on=1))

        assert pausing(controls) == 1
        assert again is controls

    def test_of_a_pause_that_comes_twice_at_once_under_a_taken_id_one_is_kept(self) -> None:
        """It says the same both times."""
        assert (
            len(told(policy(1, terms("*"), on=0), pause(1, "US", on=1), pause(1, "US", on=1)).log)
            == 2
        )

    @pytest.mark.parametrize(
        "other", [lift(2, on=3), policy(2, terms("US", basis="CONSENT"), on=3)]
    )
    def test_another_control_with_a_known_event_id_is_not(self, other: Control) -> None:
        """It could only widen what may be used."""
        controls = told(policy(1, terms("*"), on=0), pause(2, "US", on=1))

        assert controls.after(other) is controls

    def test_equal_logs_are_equal_controls(self) -> None:
        """Two trainers compare what they hold."""
        first, second = pause(1, "US", on=1), lift(2, on=2)

        assert told(first, second) == told(first).after(second)
        assert told(first, second) != told(second, first)


class TestPauses:
    def test_the_first_in_the_log_that_is_in_force_is_told(self) -> None:
        """An operator lifts what they are told of."""
        controls = told(
            pause(1, "US", on=3, name="a"), pause(2, "*", on=1, name="b"), lift(3, on=4, name="a")
        )

        assert pausing(controls, at=day(3), known_at=day(3)) == 1
        assert pausing(controls) == 2

    @pytest.mark.parametrize(("version", "lifted"), [(1, False), (2, True), (3, True)])
    def test_only_a_lift_of_an_equal_or_higher_version_lifts(
        self, version: int, lifted: bool
    ) -> None:
        """A lift that was under way when the pause was imposed anew must not end the new one."""
        controls = told(pause(1, "US", on=1, version=2), lift(2, on=2, version=version))

        assert pausing(controls) == (None if lifted else 1)
        assert controls.is_lifted(controls.pauses[0], at=day(10), known_at=day(10)) is lifted

    def test_a_lift_of_another_pause_lifts_nothing(self) -> None:
        """Two authorities pause the same use, and one of them is content."""
        assert pausing(told(pause(1, "US", on=1), lift(2, on=2, name="another"))) == 1

    def test_a_lift_that_comes_first_still_lifts(self) -> None:
        """Two writers race."""
        assert pausing(told(lift(1, on=2), pause(2, "US", on=1))) is None

    @pytest.mark.parametrize("times", [{"effective_at": day(20)}, {"recorded_at": day(20)}])
    def test_controls_of_later_do_not_count_yet(self, times: dict[str, Any]) -> None:
        """Neither a pause nor a lift works before its time, nor before anybody knew."""
        assert pausing(told(pause(1, "US", on=1, **times))) is None
        assert pausing(told(pause(1, "US", on=1), lift(2, on=2, **times))) == 1

    def test_of_one_version_the_first_that_counts_gives_the_scope(self) -> None:
        """A later one of the same version cannot move the pause elsewhere, nor one bind that does
        not count yet.
        """
        controls = told(
            pause(1, "HK", on=1, effective_at=day(6)), pause(2, "US", on=2), pause(3, "DE", on=3)
        )

        assert [pausing(controls, code, at=day(5)) for code in ("HK", "US", "DE")] == [
            None,
            2,
            None,
        ]
        assert [pausing(controls, code) for code in ("HK", "US", "DE")] == [1, None, None]
        assert controls.pauses == (controls.log[0],)

    @pytest.mark.parametrize("scope", [(), ("ZZ",), ("HK", "ZZ")])
    def test_a_scope_that_cannot_be_understood_covers_everything(
        self, scope: tuple[str, ...]
    ) -> None:
        """It must never cover too little."""
        controls = told(pause(1, *scope, on=1, purposes=("ads",), categories=("posts",)))

        assert pausing(controls, "US", category="profile") == 1

    @pytest.mark.parametrize(
        ("scope", "use", "covered"),
        [
            ({"purposes": ("ads",)}, {}, False),
            ({"purposes": None}, {}, True),
            ({"purposes": ()}, {}, True),
            ({"purposes": ("GenAI Training",)}, {}, True),
            ({"categories": ()}, {"category": "profile"}, True),
            ({"categories": ("posts", "")}, {"category": "profile"}, True),
            ({"categories": ("posts",)}, {"category": "profile"}, False),
            ({"categories": ("posts",)}, {"category": "posts"}, True),
            ({"categories": ("posts",)}, {"category": None}, True),
            ({"categories": None}, {"category": "profile"}, True),
        ],
    )
    def test_a_pause_covers_its_purposes_and_categories(
        self, scope: dict[str, Any], use: dict[str, Any], covered: bool
    ) -> None:
        """A row without a category may be of the paused one."""
        assert (pausing(told(pause(1, "US", on=1, **scope)), **use) == 1) is covered


class TestGroups:
    @pytest.mark.parametrize(
        ("group", "code", "since", "until"),
        [
            ("EEA", "GB", None, day(6)),
            ("EEA", "GB-SCT", None, day(6)),
            ("CLUB", "GB", day(3), day(9)),
            ("CLUB", "HK", day(5), None),
        ],
    )
    def test_a_group_holds_its_countries_while_they_are_in_it(
        self, group: str, code: str, since: Micros | None, until: Micros | None
    ) -> None:
        """Whether a pause on the EEA binds Britain depends on the day that is asked about, on no
        control.
        """
        controls = told(
            pause(1, group, on=0),
            policy(2, terms(group), on=0),
            lift(3, on=0, effective_at=day(20)),
        )
        late = {"known_at": day(30)}
        moments = {
            Micros(time + step): (since is None or time + step >= since)
            and (until is None or time + step < until)
            for time in (since or day(1), until or day(10))
            for step in (-1, 0, 1)
        }

        for _ in range(2):
            for at, inside in moments.items():
                assert (pausing(controls, code, at=at, **late) == 1) is inside
                assert (binding(controls, code, at=at, **late) is not None) is inside
                applicable = controls.applicable(code, PURPOSE, None, at=at, known_at=day(30))
                assert (applicable.pause is not None, applicable.terms is not None) == (
                    inside,
                    inside,
                )

    def test_boundaries_of_groups_hold_also_where_controls_came_one_by_one(self) -> None:
        """They are taken in with the first control, whichever that is."""
        controls = Controls(DATED)
        for control in (lift(9, on=0, name="none"), pause(1, "EEA", on=0)):
            controls = controls.after(control)

        moments = [Micros(day(6) + step) for step in (-1, 0)]
        found = [
            controls.applicable("GB", PURPOSE, None, at=at, known_at=day(10)).pause
            for at in moments
        ]

        assert [pause is not None for pause in found] == [True, False]


class TestTerms:
    def test_those_of_the_policy_that_took_effect_last_bind_and_of_two_the_later_in_the_log(
        self,
    ) -> None:
        """A correction of the same day replaces what it corrects."""
        controls = told(
            policy(1, terms("US"), on=1, effective=5),
            policy(2, terms("US"), on=2, effective=4),
            policy(3, terms("US"), on=3, effective=5),
        )

        assert binding(controls) == ("3", "OTHER")
        assert binding(controls, known_at=day(2)) == ("1", "OTHER")
        assert binding(controls, at=day(4)) == ("2", "OTHER")
        assert binding(controls, at=day(3)) is None

    def test_a_policy_without_a_matching_entry_leaves_the_one_before_in_force(self) -> None:
        """A policy for Hong Kong says nothing of the United States, nor one for advertising of
        training.
        """
        controls = told(
            policy(1, terms("US"), on=1),
            policy(2, terms("HK"), terms("US", purpose="ads"), on=2),
            policy(3, on=3),
        )

        assert binding(controls) == ("1", "OTHER")
        assert binding(controls, "HK") == ("2", "OTHER")
        assert binding(controls, "US", purpose="ads") == ("2", "OTHER")
        assert binding(controls, "DE") is None

    @pytest.mark.parametrize(
        "order", [("US-CA", "US", "*"), ("*", "US", "US-CA"), ("US", "US-CA", "*")]
    )
    def test_the_first_entry_that_matches_wins_however_wide_it_is(
        self, order: tuple[str, ...]
    ) -> None:
        """The writer of a policy puts exceptions first, and is taken at their word."""
        entries = [terms(code, basis=code) for code in order]

        assert binding(told(policy(1, *entries, on=1)), "US-CA") == ("1", order[0])
        assert binding(told(policy(1, *entries, on=1)), "HK") == ("1", "*")

    def test_of_two_entries_for_one_jurisdiction_the_first_wins(self) -> None:
        """The second was left over from an earlier text."""
        entries = terms("US", basis="first"), terms("HK", "US", basis="second")
        controls = told(policy(1, *entries, on=1))

        assert binding(controls) == ("1", "first")
        assert binding(controls, "HK") == ("1", "second")


class TestVoidingLifts:
    def test_the_one_recorded_last_is_told_whichever_took_effect_last(self) -> None:
        """An opt-in is compared with when the lift was recorded."""
        controls = told(
            pause(1, "US", on=1),
            lift(2, on=5, effective_at=day(2)),
            lift(3, on=4, effective_at=day(6)),
            lift(4, on=3, effective_at=day(7)),
        )

        assert voiding(controls) == 2
        assert voiding(controls, known_at=day(4)) == 3
        assert voiding(controls, at=day(6), known_at=day(4)) == 3
        assert voiding(controls, at=Micros(day(6) - 1), known_at=day(4)) is None

    @pytest.mark.parametrize("scopes", [("US", "US"), ("*", "US"), ("US", "*")])
    def test_of_two_recorded_at_once_the_later_in_the_log_is_told(
        self, scopes: tuple[str, str]
    ) -> None:
        """Both void the same opt-ins; whoever asks twice is to be given one and the same ground."""
        controls = told(
            pause(1, scopes[0], on=1, name="a"),
            pause(2, scopes[1], on=1, name="b"),
            lift(3, on=2, name="b"),
            lift(4, on=2, name="a"),
        )

        assert voiding(controls) == 4

    @pytest.mark.parametrize(
        ("opt_ins", "voids"), [(OptIns.VOID, True), (OptIns.UNKNOWN, True), (OptIns.KEEP, False)]
    )
    def test_a_lift_voids_unless_it_says_that_it_keeps(self, opt_ins: OptIns, voids: bool) -> None:
        """A word that is not understood is read as the stricter one."""
        assert voiding(told(pause(1, "US", on=1), lift(2, on=2, opt_ins=opt_ins))) == (
            2 if voids else None
        )

    @pytest.mark.parametrize(
        ("imposition", "voids"),
        [
            (pause(1, "HK", on=1), False),
            (pause(1, "US", on=1, purposes=("ads",)), False),
            (pause(1, "US", on=1, version=2), False),
            (pause(1, "US", on=1, name="another"), False),
            (pause(1, "US", on=20), False),
            (pause(1, "US", on=1, categories=("posts",)), True),
            (pause(1, "*", on=1, purposes=None), True),
        ],
    )
    def test_it_voids_opt_ins_of_what_its_pause_covered(
        self, imposition: PauseImposed, voids: bool
    ) -> None:
        """Elsewhere nobody was asked to choose again; and an opt-in is for a purpose, whatever the
        categories.
        """
        assert voiding(told(imposition, lift(2, on=2))) == (2 if voids else None)

    def test_it_counts_for_each_version_up_to_its_own(self) -> None:
        """The pause was imposed twice, in two places; one lift ends both."""
        controls = told(
            pause(1, "HK", on=1), pause(2, "US", on=2, version=2), lift(3, on=3, version=2)
        )

        assert [voiding(controls, code) for code in ("HK", "US", "DE")] == [3, 3, None]


class TestWhatIsSaidOfAll:
    def test_it_is_gathered_from_every_control(self) -> None:
        """What the purge and the trainers ask for beforehand."""
        first = policy(1, terms("US", purpose="ads"), terms("HK", collected_from=day(5)), on=1)
        second = policy(2, terms("*", collected_from=day(2), purge_on_opt_out=True), on=20)
        controls = told(
            first,
            pause(3, "US", on=1),
            second,
            pause(4, "HK", on=1),
            pause(5, "HK", on=1, version=2),
        )

        assert controls.policies == (first, second)
        assert controls.purposes == ("ads", PURPOSE)
        assert controls.collection_cut_offs == (day(2), day(5))
        assert controls.purges_on_opt_out
        assert not told(first).purges_on_opt_out
        assert [one.event_id[-1] for one in controls.pauses] == [3, 5]

    def test_the_shortest_time_to_purge_of_all_terms_in_the_scope_is_allowed(self) -> None:
        """A deadline is for all who have to keep it: it is that of whoever has the least time."""
        hour = 3_600_000_000
        controls = told(
            policy(1, terms("US", purge_within=Micros(3 * hour)), on=1),
            policy(2, terms("EEA", purge_within=Micros(2 * hour)), on=1),
            policy(3, terms("DE", purpose="ads", purge_within=Micros(hour)), on=1),
        )

        assert controls.purge_within(["US"], None, **NOW) == 3 * hour
        assert controls.purge_within(["US", "DE"], [PURPOSE], **NOW) == 2 * hour
        assert controls.purge_within(["US", "DE"], None, **NOW) == hour
        assert controls.purge_within(["HK"], None, **NOW) == PURGE_WITHIN_DEFAULT
        assert controls.purge_within(["US"], [], **NOW) == PURGE_WITHIN_DEFAULT

    @pytest.mark.parametrize(
        ("reach", "back"), [(Reach.GOING_FORWARD, False), (Reach.UNKNOWN, True)]
    )
    def test_a_reach_that_is_not_understood_takes_back(self, reach: Reach, back: bool) -> None:
        """Data is deleted too often rather than never."""
        assert pause(1, "US", on=1, reach=reach).requires_purge is back

    def test_without_controls_nothing_is_said(self) -> None:
        """Not even of a time before everything."""
        nothing = ApplicableControls(None, None, None, None)

        assert (
            Controls(DATED).applicable("US", PURPOSE, None, at=Micros(0), known_at=Micros(0))
            == nothing
        )
        assert Controls(DATED).pauses == ()
        assert Controls(DATED).purposes == ()
