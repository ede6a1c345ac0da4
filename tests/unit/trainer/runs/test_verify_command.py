"""`consentry verify`: whose word is believed of what."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from tests.strategies import chose, moved, policy, terms
from tests.unit.bundles import world as bundles
from tests.unit.trainer.runs.conftest import LOG, PARTITIONS, SmallWorld
from typer.testing import CliRunner

from consentry.bundles import BundleStore, SigningKey
from consentry.bundles.keys import make_key_files
from consentry.cli.app import app
from consentry.domain.errors import ConsentryError
from consentry.domain.values import Choice, Micros
from consentry.wire.frontiers import Frontier


def _publish(world: SmallWorld, place: Path, key: SigningKey, *, with_opt_out: bool) -> str:
    """A bundle that knows of the time a thousand seconds after the run."""
    log, later = bundles.Log(), Micros(world.now + 1_000_000_000)
    log.control(policy(900, terms("*"), on=0))
    if with_opt_out:
        log.member(
            "b", moved("US", 1, on=1, member="b"), chose(Choice.OPT_OUT, 3, on=2, member="b")
        )
    for partition in range(PARTITIONS):
        log.state.freshness.apply(
            Frontier(
                partition=partition,
                generation="g1",
                frontier_at=later,
                next_offset=99,
                records_offset=log.state.records_offset(partition),
                controls_offset=1,
                tainted=False,
                log=LOG,
            )
        )
    log.state.settle_frontiers()
    bundles.published(BundleStore(place), log.state, key, created_at=later)
    return str(place)


@pytest.fixture
def asked(small: SmallWorld, tmp_path: Path) -> tuple[str, str, str]:
    """A run that read who had opted out, the true bundle, and one that the trainer made to say
    otherwise.
    """
    for name in ("trainer.key", "bundler.key"):
        make_key_files(tmp_path / name)
    trainer, bundler = (
        SigningKey.read(tmp_path / "trainer.key"),
        SigningKey.read(tmp_path / "bundler.key"),
    )
    with small.run(tmp_path / "runs", signing_key=trainer) as run:
        run.filter(pa.table({"member_id": ["a", "b"], "jurisdiction": ["US"] * 2}))
    true = _publish(small, tmp_path / "true", bundler, with_opt_out=True)
    forged = _publish(small, tmp_path / "forged", trainer, with_opt_out=False)
    return str(tmp_path / "runs" / run.run_id), true, forged


def test_who_signs_certificates_cannot_sign_the_bundle_that_acquits_them(
    asked: tuple[str, str, str], tmp_path: Path
) -> None:
    """Then VIOLATED would become HOLDS by the hand of the one who is accused."""
    folder, true, forged = asked
    keys = (
        "--key",
        str(tmp_path / "trainer.key.pub"),
        "--bundle-key",
        str(tmp_path / "bundler.key.pub"),
    )
    told = CliRunner().invoke(app, ["verify", folder, "--bundle", true, *keys, "--json"])
    assert told.exit_code == 1, told.output
    found = json.loads(told.stdout)
    assert found["bundle_keys"] == [SigningKey.read(tmp_path / "bundler.key").key_id]
    assert found["key"] == SigningKey.read(tmp_path / "trainer.key").key_id
    refused = CliRunner().invoke(app, ["verify", folder, "--bundle", forged, *keys])
    assert isinstance(refused.exception, ConsentryError)
    assert refused.exception.code == "bundle.key_unknown"


def test_a_bundle_is_not_believed_by_the_key_of_the_certificate(
    asked: tuple[str, str, str], tmp_path: Path
) -> None:
    """Whoever gives one key only has said nothing of the bundle, or nothing of the certificate."""
    folder, true, _ = asked
    key = ("--key", str(tmp_path / "trainer.key.pub"))
    refused = CliRunner().invoke(app, ["verify", folder, "--bundle", true, *key])
    assert isinstance(refused.exception, ConsentryError)
    assert refused.exception.code == "input.key"
    wrong = (
        "--key",
        str(tmp_path / "bundler.key.pub"),
        "--bundle-key",
        str(tmp_path / "bundler.key.pub"),
    )
    told = CliRunner().invoke(app, ["verify", folder, "--bundle", true, *wrong, "--json"])
    assert not json.loads(told.stdout)["is_verified"]


def test_of_several_certificates_the_worst_counts(
    asked: tuple[str, str, str], tmp_path: Path
) -> None:
    """`consentry verify runs/*` is what a pipeline runs: one run that may not stand must not hide
    behind the others.
    """
    folder, true, _ = asked
    keys = (
        "--key",
        str(tmp_path / "trainer.key.pub"),
        "--bundle-key",
        str(tmp_path / "bundler.key.pub"),
    )

    told = CliRunner().invoke(app, ["verify", folder, folder, "--bundle", true, *keys, "--json"])
    alone = CliRunner().invoke(app, ["verify", folder, folder, "--key", keys[1]])

    assert told.exit_code == 1
    assert len(json.loads(told.stdout)) == 2
    assert alone.exit_code == 2


def test_a_run_without_a_certificate_keeps_no_other_from_being_judged(
    asked: tuple[str, str, str], tmp_path: Path
) -> None:
    """A run that was aborted stands first in its store as often as not."""
    folder, true, _ = asked
    keys = (
        "--key",
        str(tmp_path / "trainer.key.pub"),
        "--bundle-key",
        str(tmp_path / "bundler.key.pub"),
    )
    aborted = str(tmp_path / "aborted")

    both = CliRunner().invoke(app, ["verify", aborted, folder, "--bundle", true, *keys, "--json"])
    alone = CliRunner().invoke(app, ["verify", aborted, "--bundle", true, *keys])

    assert [one["status"] for one in json.loads(both.stdout)] == ["cannot tell", "violated"]
    assert both.exit_code == 1
    assert isinstance(alone.exception, ConsentryError)
    assert alone.exception.code == "certificate.none"


def test_a_store_without_runs_says_nothing_of_who_was_read(tmp_path: Path) -> None:
    """A store that was named wrongly would read as: nobody was trained on."""
    told = CliRunner().invoke(app, ["reach", "m:1", "--runs", str(tmp_path)])

    assert isinstance(told.exception, ConsentryError)
    assert told.exception.code == "input.runs"
