"""Scenario files: what is read from them, and the line that is named when something is wrong with
one.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentry.domain.errors import InvalidInput
from consentry.domain.events import ConsentChanged
from consentry.domain.scenarios import history, run
from consentry.forms.scenarios import parse_scenario, read_scenario
from consentry.forms.yaml import CHARACTERS_MAX, line_of, read_form
from consentry.wire.jurisdictions import iso_jurisdictions

STORY = """\
name: story
timeline:
  - recorded: 2024-09-18
    policy_published:
      version: "1"
      effective: 2024-09-18
      terms:
        - {jurisdictions: [HK], purpose: genai_training, regime: DEFAULT_ON}
        - jurisdictions: ["*"]
          purpose: genai_training
          regime: OPT_IN
          notice_until: 2024-10-01
  - {recorded: 2024-09-19, member_relocated: {member: ana, jurisdiction: HK}}
  - {recorded: 2024-09-20, consent_changed: {member: ana, purpose: genai_training, choice: OPT_OUT}}
  - {recorded: 2024-09-21, consent_changed: {member: ana, purpose: genai_training, choice: OPT_IN, observed: 3}}
  - recorded: 2024-10-14
    pause_imposed:
      pause: hk-2024
      jurisdictions: [HK]
      purposes: [genai_training]
      effective: 2024-10-11
  - recorded: 2024-10-15
    pause_lifted: {pause: hk-2024}
expect:
  - {member: ana, purpose: genai_training, allowed: true, reason: DEFAULT_ON}
"""


def test_the_story_is_read_and_holds() -> None:
    """The changes below each break this one file."""
    assert run(read_scenario(STORY), iso_jurisdictions()) == ()


@pytest.mark.parametrize(
    ("right", "wrong", "line", "field"),
    [
        ("name: story", "nam: story", 1, "nam"),
        ("recorded: 2024-09-18", "recordet: 2024-09-18", 3, "timeline[0].recordet"),
        (
            "effective: 2024-09-18",
            "effektive: 2024-09-18",
            6,
            "timeline[0].policy_published.effektive",
        ),
        ("regime: OPT_IN", "regime: OPT IN", 11, "timeline[0].policy_published.terms[1].regime"),
        ("notice_until", "notice", 12, "timeline[0].policy_published.terms[1].notice"),
        (
            "notice_until: 2024-10-01",
            "notice_until: 2023-10-01",
            12,
            "policy_published.terms[1].notice_until",
        ),
        ('jurisdictions: ["*"]', "jurisdictions: []", 9, "policy_published.terms[1].jurisdictions"),
        (
            "member: ana, jurisdiction: HK",
            "member: ana, jurisdiction: XX",
            13,
            "member_relocated.jurisdiction",
        ),
        (
            "member: ana, jurisdiction: HK",
            "member: ana, jurisdiction: EEA",
            13,
            "member_relocated.jurisdiction",
        ),
        ("member: ana, jurisdiction: HK", "member: ana", 13, "member_relocated"),
        (
            "{member: ana, jurisdiction: HK}",
            "{member: a b, jurisdiction: HK}",
            13,
            "member_relocated.member",
        ),
        ("choice: OPT_OUT", "choice: OPTOUT", 14, "consent_changed.choice"),
        ("observed: 3", "observed: yes", 15, "consent_changed.observed"),
        ("observed: 3", "observed: 0", 15, "consent_changed.observed"),
        ("recorded: 2024-09-21", "recorded: 2024-09-17", 15, "timeline[3].recorded"),
        (
            "jurisdictions: [HK]\n      purposes",
            "jurisdictions: [Hongkong]\n      purposes",
            19,
            "pause_imposed.jurisdictions",
        ),
        (
            "jurisdictions: [HK]\n      purposes",
            "jurisdictions: []\n      purposes",
            19,
            "pause_imposed.jurisdictions",
        ),
        ("purposes: [genai_training]", "purposes: []", 20, "pause_imposed.purposes"),
        ("effective: 2024-10-11", "effective: 11.10.2024", 21, "pause_imposed.effective"),
        (
            "pause_lifted: {pause: hk-2024}",
            "pause_lifted: {pause: hk-2025}",
            23,
            "pause_lifted.pause",
        ),
        (
            "pause_lifted: {pause: hk-2024}",
            "pause_lifted: {pause: hk-2024, version: 0}",
            23,
            "pause_lifted.version",
        ),
        ("    pause_lifted: {pause", "    pause_ended: {pause", 23, "timeline[5].pause_ended"),
        ("allowed: true, ", "", 25, "expect[0]"),
        ("allowed: true", "allowed: maybe", 25, "expect[0].allowed"),
        ("reason: DEFAULT_ON}", "reason: BECAUSE}", 25, "expect[0].reason"),
        (
            "reason: DEFAULT_ON}",
            "reason: DEFAULT_ON, row: {country: HK}}",
            25,
            "expect[0].row.country",
        ),
        (
            "reason: DEFAULT_ON}",
            "reason: DEFAULT_ON, row: {jurisdiction: UK}}",
            25,
            "expect[0].row.jurisdiction",
        ),
    ],
)
def test_each_slip_names_its_line_and_field(right: str, wrong: str, line: int, field: str) -> None:
    """Whoever writes a story finds the slip where it is, not in a stack of our internals."""
    assert STORY.count(right) >= 1
    with pytest.raises(InvalidInput) as refused:
        read_scenario(STORY.replace(right, wrong, 1), file="story.yaml")

    assert refused.value.message.startswith(f"story.yaml, line {line}, ")
    assert f"{field}: " in refused.value.message
    assert refused.value.fix


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (STORY.replace('version: "1"', "version: 0x" + "f" * 6000), 5),
        (STORY.replace("name: story", "name: [a, b]"), 1),
        (STORY.replace("name: story", "name: {a: b}"), 1),
        (STORY.replace("member: ana, jurisdiction", "member: true, jurisdiction"), 13),
        (STORY.replace("member: ana, jurisdiction", "member: [ana], jurisdiction"), 13),
        (
            STORY.replace(
                "regime: DEFAULT_ON}", "regime: DEFAULT_ON, purge: {within: P99999999D}}", 1
            ),
            8,
        ),
        ("name: a\ntimeline: [", 2),
        ("name: a\nname: b", 2),
        ("name: a\ntimeline:\n  - {recorded: 2024-13-01, member_erased: {member: m}}", 3),
        ("\tname: a", 1),
        ("name: &a [*a]", 1),
        ("[" * 2000, 1),
        ("x" * (CHARACTERS_MAX + 1), 1),
        ("", 1),
        ("- 1", 1),
        ("name: a", 1),
        ("name: a\ntimeline: 5", 2),
        ("name: a\ntimeline: []", 1),
    ],
)
def test_what_is_no_scenario_is_refused_with_a_line(text: str, line: int) -> None:
    """Never a traceback, never a run that checked nothing."""
    with pytest.raises(InvalidInput, match=rf"line {line}\b"):
        read_scenario(text)


@given(st.text(max_size=200))
def test_any_text_is_a_scenario_or_refused(text: str) -> None:
    """Whatever a file holds."""
    try:
        read_scenario(text)
    except InvalidInput as error:
        assert re.search(r"line \d+", error.message)  # noqa: PT017 - either outcome is right


def test_an_observed_entry_becomes_the_version_that_the_member_had_then() -> None:
    """Entries are numbered over the whole timeline, a record's versions over one member's
    events.
    """
    events = history(read_scenario(STORY), iso_jurisdictions()).events
    [opt_in] = [
        event for event in events if isinstance(event, ConsentChanged) and event.choice == "OPT_IN"
    ]

    assert opt_in.observed_version == 2
    assert history(
        read_scenario(STORY.replace("observed: 3", "observed: 2")), iso_jurisdictions()
    ).events[-1] == replace(opt_in, observed_version=1)


def test_a_field_is_found_in_its_line() -> None:
    """A line of another entry would send a person to the wrong place."""
    assert line_of(STORY, "timeline[4].pause_imposed.effective") == 21
    assert line_of(STORY, "timeline[4].pause_imposed.missing") == 17
    assert line_of(STORY, "expect[0]") == 25
    assert line_of(STORY, "the scenario") == 1


def test_plain_values_are_read_as_a_file_is() -> None:
    """Tests and tools build documents without YAML."""
    document = read_form(STORY, lambda data: data, source="story")

    assert parse_scenario(document) == read_scenario(STORY)


def test_a_small_file_that_stands_for_a_huge_one_is_refused_at_once() -> None:
    """Four hundred bytes of references would take the desk's machine."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    text = "\n".join(levels) + "\n" + STORY.replace("name: story", "name: *a9")

    with pytest.raises(InvalidInput, match="is not a field of the scenario"):
        read_scenario(text)
    nested = "name: " + "[" * 3 + "*a9" + "]" * 3
    with pytest.raises(InvalidInput):
        read_scenario("\n".join(levels) + "\n" + STORY.replace("name: story", nested))


def test_data_may_have_been_collected_before_anything_was_recorded() -> None:
    """Old data is what a cut-off is for."""
    story = STORY.replace(
        "reason: DEFAULT_ON}", "reason: DEFAULT_ON, row: {collected: 1965-05-05}}"
    )

    assert run(read_scenario(story), iso_jurisdictions()) == ()
