"""A control in a file: read as it stands, with what the desk left out said as left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from consentry.cli.controls.desk import read_draft
from consentry.domain.errors import InvalidInput
from consentry.forms.controls import parse_lift, parse_pause

PAUSE = "pause: hk-2024\njurisdictions: [HK]\nauthority: PCPD\nbasis: ORDER\n"


def test_a_pause_without_a_time_of_its_own_binds_when_it_is_recorded(tmp_path: Path) -> None:
    """A repetition of it must not look like a change of its time."""
    file = tmp_path / "pause.yaml"
    file.write_text(PAUSE)

    draft = read_draft(file, parse_pause)

    assert not draft.has_effective
    assert draft.control.effective_at == draft.control.recorded_at
    assert draft.control.pause == "hk-2024"


def test_a_time_in_the_file_is_the_controls_own(tmp_path: Path) -> None:
    """Hong Kong: in effect from 11 October, recorded on the 14th."""
    file = tmp_path / "lift.yaml"
    file.write_text("pause: hk-2024\nversion: 1\neffective: 2024-10-11\nopt_ins: VOID\n")

    draft = read_draft(file, parse_lift)

    assert draft.has_effective
    assert draft.control.effective_at < draft.control.recorded_at


def test_a_wrong_field_is_named_with_file_and_line(tmp_path: Path) -> None:
    """Whoever wrote fifty lines has to find the one that is meant."""
    file = tmp_path / "pause.yaml"
    file.write_text(PAUSE + "until: tomorrow\n")

    with pytest.raises(InvalidInput, match=r"pause\.yaml, line 5"):
        read_draft(file, parse_pause)
