"""Training runs against the real stack: registered, certified, verified offline, and searched."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.stack import PURPOSE, World, lives_in, now, opted_out, pause, reason, wait_for
from typer.testing import CliRunner

from consentry.bundler.build import build
from consentry.bundles import BundleStore, SigningKey
from consentry.cli.app import app
from consentry.domain.controls import Reach
from consentry.domain.errors import ConsentryError
from consentry.trainer.runs import TrainingRun
from consentry.trainer.runs.certificates.reads import SCHEMA, distinct_reads

pytestmark = pytest.mark.stack

LEASE_SECONDS = 5.0


def run_here(*arguments: str) -> tuple[int, str]:
    """Run a command that needs no settings in this process; return its exit status and output."""
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, ConsentryError):
        return 2, str(result.exception)
    return result.exit_code, result.output


def batch(*members: str) -> pa.Table:
    """Rows of these members, without a jurisdiction: that of the member counts."""
    return pa.table({"member_id": list(members)})


def test_a_run_is_certified_verified_by_a_bundle_and_found_again(
    world: World, tmp_path: Path
) -> None:
    """The whole way, to an auditor without Kafka and a member who asks where they were read."""
    world.processor()
    world.open_policy()
    world.produce(
        *(lives_in(member) for member in ("a", "b", "c")), lives_in("hk", "HK"), opted_out("c")
    )
    client = world.client("ranker")
    wait_for(lambda: reason(client, "c") == "OPTED_OUT", "the opt-out", seconds=40)
    key, store = SigningKey.generate(), tmp_path / "runs"
    public, foreign = tmp_path / "key.pub", tmp_path / "foreign.pub"
    public.write_bytes(key.public_text())
    foreign.write_bytes(SigningKey.generate().public_text())

    def loader() -> Iterator[pa.Table]:
        yield batch("a", "b", "c", "hk")
        world.produce(opted_out("a"))
        wait_for(lambda: reason(client, "a") == "OPTED_OUT", "the opt-out mid-epoch")
        # A read within the bound may have been too early to know of it; later reads are not.
        time.sleep(LEASE_SECONDS)
        yield batch("a", "b", "c", "hk")

    with TrainingRun(
        client,
        dataset="posts-2026-10",
        purpose=PURPOSE,
        store=f"file://{store}",
        subscriber="ranker",
        lease_seconds=LEASE_SECONDS,
        stale="wait",
        signing_key=key,
    ) as run:
        read = [part["member_id"].to_pylist() for part in run.filter(loader(), shard="part-0")]
    assert read == [["a", "b", "hk"], ["b", "hk"]]

    world.control(pause("hk-2024", "HK", reach=Reach.PRIOR_AND_FUTURE))
    wait_for(lambda: reason(client, "hk") == "PAUSED", "the pause")
    bundles = str(tmp_path / "bundles")
    build(
        BundleStore(bundles),
        world.kafka,
        world.catalog,
        key=key,
        namespace=world.namespace,
        clock=now,
    )
    folder = store / run.run_id
    reach_by = ("--bundle", bundles, "--bundle-key", str(public))
    by_bundle = (*reach_by, "--key", str(public))

    verified = world.cli("verify", str(folder), *by_bundle, "--json")
    report = json.loads(verified.stdout)
    assert (verified.returncode, report["status"], report["unclear"]) == (0, "holds", []), report
    assert report["is_verified"]
    assert run_here("verify", str(folder / "certificate.json"), *by_bundle)[0] == 0
    for arguments in (
        [],
        ["--key", str(public)],
        ["--key", str(foreign)],
        ["--bundle", bundles],
        reach_by,
    ):
        assert run_here("verify", str(folder), *arguments)[0] == 2, arguments

    planted = str(_plant_read(folder / "reads.parquet", tmp_path / "planted.parquet"))
    status, output = run_here(
        "verify", str(folder), "--reads", planted, *by_bundle, "--show-members"
    )
    assert status == 1
    assert "1 reads were excluded when they were read: OPTED_OUT" in output
    assert "\n    c\n" in output
    assert "\n    c\n" not in run_here("verify", str(folder), "--reads", planted, *by_bundle)[1]
    raw = (folder / "certificate.json").read_bytes()
    (tmp_path / "tampered.json").write_bytes(
        raw.replace(b'"purpose":"genai_training"', b'"purpose":"safety_training"')
    )
    status, output = run_here("verify", str(tmp_path / "tampered.json"), *by_bundle)
    assert status == 2
    assert "[certificate.tampered]" in output

    _check_reach(world, store, reach_by)


def _plant_read(reads: Path, to: Path) -> Path:
    """Add a read of a member who had opted out before, and return the path of the new file."""
    table = pq.read_table(reads)
    last = table.slice(table.num_rows - 1).to_pylist()[0]
    more = pa.Table.from_pylist([{**last, "member_id": "c"}], schema=SCHEMA)
    pq.write_table(distinct_reads(pa.concat_tables([table.cast(SCHEMA), more])), to)
    return to


def _check_reach(world: World, store: Path, by_bundle: tuple[str, ...]) -> None:
    def reach(*arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(
            app, ["reach", *arguments, "--runs", str(store), "--json", *by_bundle]
        )
        assert result.exit_code == 0, result.output
        report: dict[str, Any] = json.loads(result.stdout)
        return report

    (run,) = reach("a")["runs"]
    assert (run["when"], run["excluded_now"], run["rows"], run["dataset"]) == (
        "before",
        "OPTED_OUT",
        1,
        "posts-2026-10",
    )
    assert json.loads(world.ok("reach", "a", "--runs", str(store), "--json"))["runs"] == [run], (
        "by Kafka, the same"
    )
    assert reach("c")["runs"] == []
    (paused,) = reach("--pause", "hk-2024")["runs"]
    assert (paused["members"], paused["rows"], paused["when"], paused["to_be_purged"]) == (
        1,
        2,
        "before",
        True,
    )
    output = run_here("reach", "--pause", "hk-2024", "--runs", str(store), *by_bundle)[1]
    assert "PRIOR_AND_FUTURE" in output
    assert "is to be purged" in output
    for wrong in (
        [],
        ["a", "--pause", "hk-2024", "--runs", str(store)],
        ["--pause", "no", "--runs", str(store)],
    ):
        assert run_here("reach", *wrong, *by_bundle)[0] == 2
