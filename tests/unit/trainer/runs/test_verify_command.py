"""`consentry verify`: which key is believed for the certificate, and which for the bundle."""

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
    """Publish a bundle of a thousand seconds after the run."""
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
    """A run that read an opted-out member, the true bundle, and one forged by the trainer."""
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


def test_the_key_of_the_certificate_cannot_sign_the_bundle_used_to_verify_it(
    asked: tuple[str, str, str], tmp_path: Path
) -> None:
    """Otherwise the accused trainer could turn VIOLATED into HOLDS."""
    folder, true, forged = asked
    keys = (
        "--key",
        str(tmp_path / "trainer.key.pub"),
        "--bundle-key",
        str(tmp_path / "bundler.key.pub"),
    )
    result = CliRunner().invoke(app, ["verify", folder, "--bundle", true, *keys, "--json"])
    assert result.exit_code == 1, result.output
    report = json.loads(result.stdout)
    assert report["bundle_keys"] == [SigningKey.read(tmp_path / "bundler.key").key_id]
    assert report["key"] == SigningKey.read(tmp_path / "trainer.key").key_id
    refused = CliRunner().invoke(app, ["verify", folder, "--bundle", forged, *keys])
    assert isinstance(refused.exception, ConsentryError)
    assert refused.exception.code == "bundle.key_unknown"


def test_a_bundle_is_not_believed_by_the_key_of_the_certificate(
    asked: tuple[str, str, str], tmp_path: Path
) -> None:
    """Whoever gives only one key has named no key for the other of the two."""
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
    result = CliRunner().invoke(app, ["verify", folder, "--bundle", true, *wrong, "--json"])
    assert not json.loads(result.stdout)["is_verified"]


def test_the_worst_of_several_certificates_counts(
    asked: tuple[str, str, str], tmp_path: Path
) -> None:
    """A pipeline checks `runs/*`: one violated run must not hide behind the others."""
    folder, true, _ = asked
    keys = (
        "--key",
        str(tmp_path / "trainer.key.pub"),
        "--bundle-key",
        str(tmp_path / "bundler.key.pub"),
    )

    result = CliRunner().invoke(app, ["verify", folder, folder, "--bundle", true, *keys, "--json"])
    alone = CliRunner().invoke(app, ["verify", folder, folder, "--key", keys[1]])

    assert result.exit_code == 1
    assert len(json.loads(result.stdout)) == 2
    assert alone.exit_code == 2


def test_a_run_without_a_certificate_does_not_stop_the_check_of_others(
    asked: tuple[str, str, str], tmp_path: Path
) -> None:
    """The first run of a store may well be one that was aborted."""
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

    assert [report["status"] for report in json.loads(both.stdout)] == ["cannot tell", "violated"]
    assert both.exit_code == 1
    assert isinstance(alone.exception, ConsentryError)
    assert alone.exception.code == "certificate.none"


def test_a_store_without_runs_is_refused(tmp_path: Path) -> None:
    """With a misspelt store the answer would be that nobody was read."""
    result = CliRunner().invoke(app, ["reach", "m:1", "--runs", str(tmp_path)])

    assert isinstance(result.exception, ConsentryError)
    assert result.exception.code == "input.runs"
