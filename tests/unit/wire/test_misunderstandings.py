"""Controls that are not understood are noticed as such, and every code has a name to call it by."""

from __future__ import annotations

import pytest
from tests.strategies import WORLD, day, lift, new_catalog, pause, policy, terms

from consentry.domain.controls import Control
from consentry.kafka.controls_follower import misunderstanding
from consentry.wire.controls import read_control_or_pause
from consentry.wire.jurisdictions import iso_jurisdictions, name_of

UNREADABLE = read_control_or_pause(b"?", offset=7, appended_at=day(3), catalog=new_catalog())


@pytest.mark.parametrize(
    ("control", "kind"),
    [
        (UNREADABLE, "unreadable"),
        (pause(1, "ATLANTIS", on=1), "scope"),
        (pause(1, "HK", "ATLANTIS", on=1), "scope"),
        (pause(1, on=1), "scope"),
        (pause(1, on=1, name="unreadable-6"), "scope"),
        (pause(1, "HK", on=1), None),
        (pause(1, "*", on=1), None),
        (pause(1, "EEA", on=1), None),
        (lift(1, on=1), None),
        (policy(1, terms("ATLANTIS"), on=1), None),
    ],
)
def test_what_pauses_everything_for_want_of_understanding_is_told_apart(
    control: Control, kind: str | None
) -> None:
    """All training stands still, and the one line that says why is missing; or it cries at every
    pause.
    """
    assert misunderstanding(control, offset=7, jurisdictions=WORLD) == kind


def test_every_jurisdiction_has_a_name() -> None:
    """An officer who meets a code without a name has to guess at whose expense."""
    assert [code for code in iso_jurisdictions().codes if not name_of(code)] == []
    assert name_of("HK") == "Hong Kong"
    assert name_of("US-CA") == "California, United States"
    assert (name_of("EEA"), name_of("*"), name_of("ATLANTIS")) == (None, None, None)
