"""The check of certificates: it runs what an auditor runs, and says so when somebody planted is not
found.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import __main__ as command
from bench.bundles import ids_of
from bench.verify import PLANTED_MAX, VerifySizes, document, honest_rows, make_roles

AT = datetime(2026, 11, 22, tzinfo=UTC)
SIZES = VerifySizes(reads=2_000, planted=7)


def honest(**more: Any) -> dict[str, Any]:
    """What is told of the run that heeded the bundle."""
    return {"reads": 5, "reads_allowed": 5, "exit_status": 0, "wrong": []} | more


def told(**more: Any) -> dict[str, Any]:
    """Results in which all is as promised, but for what is told."""
    planted: dict[str, Any] = {
        "planted": 2,
        "found": 2,
        "named": 2,
        "named_wrongly": 0,
        "violations": {"OPTED_OUT": 2},
    }
    planted |= {"exit_status": 1, "wrong": [], "unclear": [], "run_itself_found": 0} | more.pop(
        "planted", {}
    )
    found: dict[str, Any] = {"planted": planted, "honest": honest()}
    return found | {"altered": {"rows_read": True}} | more


def test_everybody_has_one_part_and_the_honest_run_is_offered_the_planted() -> None:
    """Whoever is planted and excluded at once would be left out by the filter, and never be
    read.
    """
    roles = make_roles(SIZES, seed=1)
    parts = np.concatenate([roles.excluded, roles.planted, roles.late, roles.known])
    assert len(np.unique(parts)) == len(parts) == 20 + 7 + 7 + 200
    assert np.sort(roles.rows).tolist() == list(range(2_020))
    assert set(roles.planted) <= set(honest_rows(roles, seed=1))
    assert ids_of(np.array([7, 10**13])).to_pylist() == [
        "urn:m:00000000000007",
        "urn:m:10000000000000",
    ]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"planted": {"found": 1, "named": 1}}, "all_planted_found"),
        ({"planted": {"exit_status": 2}}, "all_planted_found"),
        ({"planted": {"violations": {"OPTED_OUT": 3}}}, "all_planted_found"),
        ({"planted": {"named_wrongly": 1}}, "nobody_else_found"),
        ({"planted": {"unclear": ["1 reads"]}}, "nobody_else_found"),
        ({"honest": honest(exit_status=1)}, "honest_run_holds"),
        ({"honest": honest(wrong=["1 reads"])}, "honest_run_holds"),
        ({"honest": honest(reads=6)}, "honest_run_reads_the_allowed"),
        ({"altered": {"rows_read": True, "ended_at": False}}, "altered_certificates_refused"),
    ],
)
def test_what_is_not_as_promised_is_said(more: dict[str, Any], name: str) -> None:
    """A check that cannot fail shows nothing."""
    assert document({}, told(), at=AT)["ok"] == dict.fromkeys(
        document({}, told(), at=AT)["ok"], True
    )
    ok = document({}, told(**more), at=AT)["ok"]
    assert [check for check, is_so in ok.items() if not is_so] == [name]


@pytest.mark.parametrize(("found", "status"), [(2, 0), (1, 1)])
def test_the_command_fails_where_one_is_not_found_and_keeps_the_results(
    found: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs it in a pipeline looks at its exit status, and afterwards at what was found."""
    sizes: list[VerifySizes] = []
    seconds: dict[str, Any] = {
        "sizes": {"reads": 2, "rows": 2},
        "seconds": {},
        "reads_per_second": {},
    }

    def measured(asked: VerifySizes, *, seed: int) -> dict[str, Any]:
        sizes.append(asked)
        return told(planted={"found": found, "named": found}) | seconds

    monkeypatch.setattr(command, "measure_verify", measured)
    monkeypatch.setattr(command, "set_up_logs", lambda **_: None)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    assert command.main(["verify"]) == status
    assert sizes == [VerifySizes(10_000_000, 100)]
    assert len(list(tmp_path.glob("*.json"))) == 1


@pytest.mark.parametrize("planted", [0, PLANTED_MAX + 1])
def test_more_than_verify_names_are_not_planted(
    planted: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their ids could not be compared."""
    with pytest.raises(SystemExit):
        command.parse(["verify", "--planted", str(planted)])
    assert "planted has to be" in capsys.readouterr().err
