"""`consentry scenario …` as a person or a script meets it: status, lines, files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from consentry.cli.app import app

GOOD = """
name: small
timeline:
  - recorded: 2024-09-18
    policy_published:
      version: "1"
      terms: [{jurisdictions: ["*"], purpose: genai_training, regime: DEFAULT_ON}]
  - {recorded: 2024-09-19, member_relocated: {member: ana, jurisdiction: NO, age_band: ADULT}}
  - {recorded: 2024-09-20, member_erased: {member: ben}}
expect:
  - {member: ana, purpose: genai_training, allowed: true, reason: DEFAULT_ON}
  - {member: ben, purpose: genai_training, allowed: false, reason: ERASED}
expect_orders:
  - {because: ERASURE, member: ben, due: 2024-10-20}
"""


def typed(*arguments: object) -> Result:
    """What the command printed and how it ended."""
    return CliRunner().invoke(app, ["scenario", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A scenario that holds."""
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    return path


def last_line(result: Result) -> dict[str, Any]:
    """The JSON at the end of standard output."""
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


class TestRun:
    def test_what_holds_ends_with_0(self, file: Path) -> None:
        """A release pipeline goes by the status alone."""
        result = typed("run", file, "--json")

        assert result.exit_code == 0
        assert last_line(result) == {"scenarios": 1, "expectations": 2, "failed": []}

    @pytest.mark.parametrize(
        ("right", "wrong", "line", "expected"),
        [
            (
                "allowed: true, reason: DEFAULT_ON",
                "allowed: false, reason: DEFAULT_ON",
                11,
                "excluded, DEFAULT_ON",
            ),
            (
                "allowed: true, reason: DEFAULT_ON",
                "allowed: true, reason: OPTED_IN",
                11,
                "allowed, OPTED_IN",
            ),
            ("due: 2024-10-20", "due: 2024-10-21", 14, "ERASURE of ben, due 21 Oct 2024"),
            ("member: ben, due", "member: ana, due", 14, "ERASURE of ana, due 20 Oct 2024"),
        ],
    )
    def test_what_does_not_hold_ends_with_1_and_is_told(
        self, file: Path, right: str, wrong: str, line: int, expected: str
    ) -> None:
        """A privacy officer must find the line, see both answers, and read why."""
        file.write_text(GOOD.replace(right, wrong))

        result, told = typed("run", file, "--json"), typed("run", file)

        assert (result.exit_code, told.exit_code) == (1, 1)
        [failed] = last_line(result)["failed"]
        assert (failed["line"], failed["expected"], failed["scenario"]) == (line, expected, "small")
        assert f"{file}, line {line}" in told.stdout
        assert f"expected  {expected}" in told.stdout
        assert failed["got"] in told.stdout
        assert all(sentence in told.stdout for sentence in failed["because"])

    def test_an_order_that_nobody_expects_is_told(self, file: Path) -> None:
        """A purge order by mistake deletes data that may be kept."""
        file.write_text(GOOD[: GOOD.index("expect_orders")] + "expect_orders: []\n")

        result = typed("run", file, "--json")

        assert result.exit_code == 1
        assert last_line(result)["failed"][0]["got"] == "ERASURE of ben, due 20 Oct 2024"

    def test_a_folder_stands_for_its_files(self, file: Path) -> None:
        """Nobody types fifty names."""
        (file.parent / "again.yaml").write_text(GOOD)

        assert last_line(typed("run", file.parent, "--json"))["scenarios"] == 2

    def test_an_empty_folder_is_no_success(self, tmp_path: Path) -> None:
        """A pipeline with a wrong path would be green for ever."""
        assert typed("run", tmp_path).exit_code == 2

    @pytest.mark.parametrize("name", ["missing.yaml", "binary.yaml"])
    def test_a_file_that_cannot_be_read_ends_with_2(self, tmp_path: Path, name: str) -> None:
        """It says so in a sentence."""
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")

        result = typed("run", tmp_path / name)

        assert result.exit_code == 2
        assert "cannot be read" in result.stderr

    def test_one_file_that_is_wrong_stops_the_run_and_every_such_file_is_named(
        self, file: Path
    ) -> None:
        """Half a run that ends in success would hide the half that nobody understood."""
        for number in (1, 2):
            (file.parent / f"wrong-{number}.yaml").write_text(GOOD.replace("NO,", "Norway,"))

        result = typed("run", file.parent, "--json")

        assert result.exit_code == 2
        assert "holds" not in result.stderr
        for number in (1, 2):
            assert (
                f"wrong-{number}.yaml, line 8, timeline[1].member_relocated.jurisdiction: 'Norway'"
                in result.stderr
            )
        assert len(last_line(result)["errors"]) == 2


class TestNew:
    def test_what_it_writes_holds(self, tmp_path: Path) -> None:
        """The first thing a person sees must be green, and then theirs to change."""
        path = tmp_path / "mine.yaml"

        assert typed("new", "mine", "--output", path).exit_code == 0

        assert last_line(typed("run", path, "--json")) == {
            "scenarios": 1,
            "expectations": 4,
            "failed": [],
        }
        assert "name: mine\n" in path.read_text()

    def test_an_existing_file_is_never_overwritten(self, file: Path) -> None:
        """Somebody's work would be gone."""
        assert typed("new", "small", "--output", file).exit_code != 0
        assert file.read_text() == GOOD

    def test_the_schema_is_json(self) -> None:
        """An editor reads it as it is."""
        assert json.loads(typed("schema").stdout)["$schema"].startswith("https://json-schema.org/")
