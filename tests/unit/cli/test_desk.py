"""The checks before a control of a regulator desk is sent: conflicts, files, and notes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.strategies import day, lift, pause, policy, terms

from consentry.cli.controls.desk import (
    ControlFile,
    read_file,
    refuse,
    warn_of_voided_opt_ins,
)
from consentry.domain.control_checks import (
    conflict_of_lift,
    conflict_of_pause,
    conflict_of_policy,
    is_published,
)
from consentry.domain.controls import Control, OptIns, PauseLifted, Reach
from consentry.domain.errors import InvalidInput

HK = pause(1, "HK", on=5)


class TestConflicts:
    @pytest.mark.parametrize(
        ("again", "has_effective", "log", "said"),
        [
            (pause(2, "HK", on=9), False, [HK], None),
            (pause(2, "HK", on=9), True, [HK], "imposed otherwise"),
            (pause(2, "HK", on=9, effective_at=day(5)), True, [HK], None),
            (pause(2, "US", on=9), False, [HK], "imposed otherwise"),
            (pause(2, "HK", on=9, reach=Reach.PRIOR_AND_FUTURE), False, [HK], "imposed otherwise"),
            (pause(2, "HK", on=9), False, [HK, lift(3, on=6)], "was lifted"),
            (pause(2, "HK", on=9), False, [lift(3, on=6, version=2)], "was lifted"),
            (pause(2, "HK", on=9, version=2), False, [HK, lift(3, on=6)], None),
        ],
    )
    def test_a_pause_that_would_change_nothing_is_a_conflict(
        self, again: object, has_effective: bool, log: list[Control], said: str | None
    ) -> None:
        """*Accepted* would be read as *paused*."""
        conflict = conflict_of_pause(again, log, has_effective=has_effective)  # type: ignore[arg-type]

        assert (conflict is None) == (said is None)
        assert said is None or said in conflict.problem  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("ending", "has_effective", "code"),
        [
            (lift(3, on=9), False, None),
            (lift(3, on=9, name="other"), False, "input.pause_unknown"),
            (lift(3, on=9, effective_at=day(4)), True, "input.dates_inverted"),
            (lift(3, on=9, effective_at=day(5)), True, None),
            (lift(3, on=4, effective_at=day(4)), False, None),
        ],
    )
    def test_a_lift_of_nothing_or_from_before_the_pause_is_a_conflict(
        self, ending: object, has_effective: bool, code: str | None
    ) -> None:
        """It would say that the pause never held, and every answer of that time be wrong
        afterwards.

        Without a time of its own a lift may come before an announced pause: that is how one is
        withdrawn.
        """
        conflict = conflict_of_lift(ending, [HK], has_effective=has_effective)  # type: ignore[arg-type]

        assert (conflict and conflict.code) == code

    def test_a_conflict_names_the_line_of_the_file_or_reads_as_a_sentence(self) -> None:
        """Whoever wrote fifty lines has to find the one that is meant."""
        conflict = conflict_of_pause(pause(2, "US", on=9), [HK], has_effective=False)
        assert conflict is not None

        with pytest.raises(
            InvalidInput, match=r"^hk\.yaml, line 3, version: version 1 of pause 'pause-1' was"
        ):
            refuse(
                conflict,
                ControlFile("hk.yaml", "pause: pause-1\njurisdictions: [US]\nversion: 1\n"),
            )
        with pytest.raises(
            InvalidInput, match=r"^Version 1 of pause 'pause-1' was .* changes nothing\. \["
        ):
            refuse(conflict, None)

    def test_a_file_that_is_no_text_is_refused_by_name(self, tmp_path: Path) -> None:
        """A traceback tells the desk nothing."""
        (tmp_path / "pause.yaml").write_bytes(b"\xff\xfe\x00")

        for path in (tmp_path / "pause.yaml", tmp_path, tmp_path / "none.yaml"):
            with pytest.raises(InvalidInput, match=path.name):
                read_file(path)


class TestNotes:
    @pytest.mark.parametrize(
        ("ending", "log", "said"),
        [
            (lift(3, on=9), [HK], ""),
            (lift(3, on=9), [HK, lift(2, on=6)], "was lifted before"),
            (lift(3, on=9, version=2), [HK, lift(2, on=6)], ""),
            (lift(3, on=9, opt_ins=OptIns.KEEP), [HK, lift(2, on=6)], ""),
            (lift(3, on=9, name="unreadable-17"), [HK], "opt-ins everywhere"),
            (lift(3, on=9, name="unreadable-17", opt_ins=OptIns.KEEP), [HK], ""),
        ],
    )
    def test_a_lift_that_ends_opt_ins_for_nothing_is_noted(
        self, ending: PauseLifted, log: list[Control], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Members who opted in would have to do so again because of a slip."""
        warn_of_voided_opt_ins(ending, log)

        noted = capsys.readouterr().err
        assert said in noted
        assert bool(noted) == bool(said)


class TestPublishing:
    FORM = ControlFile("policy.yaml", "version: '1'")

    def published(self, effective: float, *, has_effective: bool) -> bool:
        """Whether a policy of the same version and terms, with another time, counts as published
        already.
        """
        known = policy(1, terms("*"), on=5)
        again = replace(policy(2, terms("*"), on=9, effective=effective), version=known.version)
        conflict = conflict_of_policy(again, [known], has_effective=has_effective)
        if conflict is not None:
            refuse(conflict, self.FORM)
        return is_published(again, [known], has_effective=has_effective)

    def test_the_same_file_again_changes_nothing(self) -> None:
        """A pipeline may publish the same file every night."""
        assert self.published(9, has_effective=False)
        assert self.published(5, has_effective=True)

    def test_the_same_version_brought_forward_is_refused(self) -> None:
        """The desk would believe that stricter terms bind already."""
        with pytest.raises(InvalidInput, match="another effective time"):
            self.published(3, has_effective=True)
