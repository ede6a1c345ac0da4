"""Controls as people write them: what does not fit is refused with the field's name, never
guessed.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import day, instants

from consentry.domain.controls import Minors, PolicyPublished, Regime
from consentry.domain.errors import InvalidInput
from consentry.domain.values import DAY_MICROS, Micros, micros
from consentry.domain.wording import moment_of
from consentry.forms.controls import parse_policy, parse_policy_file
from consentry.forms.fields import parse_duration, parse_instant, parse_scope

GOOD: dict[str, Any] = {"jurisdictions": ["HK"], "purpose": "genai_training", "regime": "OPT_IN"}


def policy_of(**changed: Any) -> PolicyPublished:
    """A policy with one entry, changed."""
    entry = {name: value for name, value in (GOOD | changed).items() if value is not ...}
    return parse_policy(
        {"version": "1", "terms": [entry]}, event_id=bytes(16), recorded_at=day(1), source="test"
    )


FIELDS = st.sampled_from([*GOOD, "terms", "version", "purge", "within", "categories"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
)


class TestInstants:
    @pytest.mark.parametrize(
        "value",
        [
            "2024-01-02",
            "2024-01-02T00:00:00Z",
            "2024-01-02T08:00:00+08:00",
            date(2024, 1, 2),
            datetime(2024, 1, 2, tzinfo=UTC),
        ],
    )
    def test_a_date_is_midnight_utc_however_it_is_written(self, value: object) -> None:
        """Two desks in two zones have to mean one moment."""
        assert parse_instant(value, what="effective") == day(1)

    @pytest.mark.parametrize(
        "value", ["tomorrow", "", None, 5, "2024-13-01", "14.10.2024", "0001-01-01", "9999-12-31"]
    )
    def test_what_is_no_date_of_our_time_is_refused_by_field(self, value: object) -> None:
        """A slip in a year would move a pause out of sight."""
        with pytest.raises(InvalidInput, match="In effective:"):
            parse_instant(value, what="effective")

    @given(instants)
    def test_an_instant_is_exactly_the_moment_it_names(self, instant: Micros) -> None:
        """Floats would lose microseconds, and ties are decided by them."""
        assert micros(moment_of(instant)) == instant
        assert moment_of(instant).tzinfo is UTC


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "days"),
        [("P30D", 30), ("P2W", 14), ("PT12H", 0.5), ("P1DT1440M", 2), ("P1W1D", 8)],
    )
    def test_a_duration_is_read(self, text: str, days: float) -> None:
        """It becomes the deadline that members are told."""
        assert parse_duration(text, what="within") == days * DAY_MICROS

    @pytest.mark.parametrize(
        "text", ["30", "P", "PT", "P1Y", "P1M", "-P1D", "P1.5D", "", None, "P99999999999D"]
    )
    def test_what_is_no_duration_is_refused_by_field(self, text: object) -> None:
        """A month has no length, and a guess becomes a missed deadline."""
        with pytest.raises(InvalidInput, match="In within:"):
            parse_duration(text, what="within")


class TestScopes:
    def test_known_codes_groups_and_everywhere_are_taken(self) -> None:
        """These are the words of the regulators' orders."""
        assert parse_scope(["HK", "US-CA", "EEA", "*"]).jurisdictions == ("HK", "US-CA", "EEA", "*")

    @pytest.mark.parametrize("scope", [[], ["UK"], ["hk"], ["HK", "Atlantis"], [""]])
    def test_an_empty_or_unknown_scope_is_refused_at_the_desk(self, scope: list[str]) -> None:
        """In the log it would pause everything; the desk can still correct it."""
        with pytest.raises(InvalidInput, match="In --jurisdiction:"):
            parse_scope(scope, what="--jurisdiction")

    def test_a_purpose_that_is_no_name_is_refused(self) -> None:
        """It would cover nothing."""
        with pytest.raises(InvalidInput, match="purpose"):
            parse_scope(["HK"], ["GenAI Training"])


class TestPolicies:
    def test_a_policy_is_read_with_protective_defaults_stated(self) -> None:
        """What the file does not say has one meaning."""
        text = """
            version: "2024-09-18"
            effective: 2024-09-18
            terms:
              - {jurisdictions: [NO, EEA], purpose: genai_training, regime: NOT_OFFERED}
              - jurisdictions: ["*"]
                purpose: genai_training
                regime: DEFAULT_ON
                minors: EXCLUDE
                categories: [posts]
                collected_from: 2020-01-01
                purge: {on_opt_out: true, within: P7D}
        """

        found = parse_policy_file(text, event_id=bytes(16), recorded_at=day(1), source="test")

        assert found.version == "2024-09-18"
        assert found.effective_at == parse_instant("2024-09-18", what="")
        norway, rest = found.terms
        assert norway.jurisdictions == ("NO", "EEA")
        assert (norway.regime, norway.minors, norway.categories) == (
            Regime.NOT_OFFERED,
            Minors.ALLOW,
            None,
        )
        assert (rest.minors, rest.categories, rest.purge_on_opt_out) == (
            Minors.EXCLUDE,
            ("posts",),
            True,
        )
        assert rest.purge_within == 7 * DAY_MICROS

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({"jurisdictions": ...}, "jurisdictions"),
            ({"jurisdictions": []}, r"terms\[0\].jurisdictions"),
            ({"jurisdictions": ["UK"]}, r"terms\[0\].jurisdictions: 'UK'"),
            ({"jurisdictions": "HK"}, r"terms\[0\].jurisdictions"),
            ({"jurisdictions": 5}, r"terms\[0\].jurisdictions"),
            ({"purpose": ...}, "purpose"),
            ({"purpose": "GenAI"}, "purpose 'GenAI'"),
            ({"regime": ...}, "regime"),
            ({"regime": "default_on"}, r"terms\[0\].regime"),
            ({"regime": "UNKNOWN"}, r"terms\[0\].regime"),
            ({"basis": "BECAUSE"}, r"terms\[0\].basis"),
            ({"notice_until": "soon"}, r"terms\[0\].notice_until"),
            ({"collected_from": "soon"}, r"terms\[0\].collected_from"),
            ({"categories": "posts"}, r"terms\[0\].categories"),
            ({"categories": 5}, r"terms\[0\].categories"),
            ({"categories": ["Posts!"]}, "category 'Posts!'"),
            ({"minors": "NO"}, r"terms\[0\].minors"),
            ({"minors": False}, r"terms\[0\].minors"),
            ({"minors": ""}, r"terms\[0\].minors"),
            ({"purge": 5}, r"terms\[0\].purge"),
            ({"purge": {"within": "soon"}}, r"terms\[0\].purge.within"),
            ({"purge": {"in": "P1D"}}, r"terms\[0\].purge"),
            ({"notice_untill": "2024-01-01"}, "notice_untill"),
        ],
    )
    def test_each_slip_is_refused_with_the_name_of_its_field(
        self, changed: dict[str, Any], named: str
    ) -> None:
        """A policy that is read otherwise than it was meant is trained on for months."""
        with pytest.raises(InvalidInput, match=named):
            policy_of(**changed)

    @pytest.mark.parametrize(
        "data",
        [None, [], "text", {"version": "1"}, {"version": "1", "terms": []}, {"terms": [GOOD]}],
    )
    def test_what_is_no_policy_is_refused(self, data: object) -> None:
        """An empty file must not become a policy that allows nothing, or everything, in silence."""
        with pytest.raises(InvalidInput):
            parse_policy(data, event_id=bytes(16), recorded_at=day(1), source="test")

    @pytest.mark.parametrize(
        "text", ["a: [1\nb", "a: 1\na: 2", "a: \x00", "effective: 2024-02-30", "\t- a: b: c"]
    )
    def test_a_file_that_is_no_yaml_is_refused(self, text: str) -> None:
        """The desk sees where, not a stack of our internals."""
        with pytest.raises(InvalidInput):
            parse_policy_file(text, event_id=bytes(16), recorded_at=day(1), source="test")

    @given(anything)
    def test_any_value_is_a_policy_or_refused(self, data: object) -> None:
        """Whatever a file holds, the command says what is wrong with it."""
        try:
            parse_policy(
                {"version": "1", "terms": [data]}, event_id=bytes(16), recorded_at=day(1), source=""
            )
            parse_policy(data, event_id=bytes(16), recorded_at=day(1), source="")
        except InvalidInput as error:
            assert error.code.startswith("input.")  # noqa: PT017 - either outcome is right
