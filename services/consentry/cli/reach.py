"""`consentry reach`: which training runs read a member, or those whom a pause covers, before and
after it bound.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from consentry.cli.connections import load_settings
from consentry.cli.verify import bundle_of
from consentry.domain.controls import PauseImposed
from consentry.domain.errors import InvalidInput
from consentry.domain.explain import date_text
from consentry.domain.values import Micros, parse_member_id
from consentry.ops.clock import system_clock
from consentry.ops.logs import set_up_logs
from consentry.trainer.bundled import snapshot_of
from consentry.trainer.client import Client
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.reach import (
    RunReads,
    pauses_named,
    reach_of_member,
    reach_of_pause,
    runs_in,
)

app = typer.Typer(add_completion=False)


@app.command()
def run(
    member: Annotated[str | None, typer.Argument(help="Pseudonym of the member.")] = None,
    pause: Annotated[
        str | None, typer.Option(help="Instead of a member: the name of a pause.")
    ] = None,
    runs: Annotated[
        list[str] | None, typer.Option(help="Run store, a path or a URL; repeatable.")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Decide by this store of bundles, without Kafka.")
    ] = None,
    bundle_key: Annotated[
        list[Path] | None, typer.Option(help="File of the bundler's public key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """List the training runs that read a member's data.

    With --pause: the runs that read data of the members whom a pause covers.

    Exit 0: nothing was read after it was excluded. 1: something was. 2: cannot tell, for example
    because a run was killed.
    """
    if (member is None) == (pause is None) or not runs:
        raise InvalidInput(
            "Who is to be looked for is not clear, or where.",
            code="input.reach",
            fix="name one member, or one pause with --pause, and run stores with --runs",
        )
    asked = None if member is None else parse_member_id(member)
    found: list[RunReads] = []
    folders = [folder for url in runs for folder in runs_in(url)]
    if not folders:
        raise InvalidInput(
            f"There is no run in {', '.join(map(repr, runs))}: nothing can be told from that.",
            code="input.runs",
            fix="name the store that training_run(store=…) was given",
        )
    with _open_view(bundle, bundle_key) as snapshot:
        now = system_clock()
        pauses = [] if pause is None else pauses_named(snapshot, pause)
        for folder in folders:
            one = (
                reach_of_pause(folder, snapshot, pause or "", now=now)
                if asked is None
                else reach_of_member(folder, snapshot, asked, now=now)
            )
            found += [] if one is None else [one]
    status = (
        1 if any(one.violations for one in found) else 2 if any(one.unclear for one in found) else 0
    )
    if as_json:
        typer.echo(json.dumps(_as_data(found, pauses, len(folders), status), indent=2))
    else:
        _print(found, pauses, len(folders))
    raise typer.Exit(status)


@contextmanager
def _open_view(bundle: str | None, key: list[Path] | None) -> Iterator[Snapshot]:
    """What is known: of a bundle, or of Kafka, fresh. Raises Unavailable and Refused."""
    if bundle is not None:
        opened, signers = bundle_of(bundle, key)
        told = f"The bundle {opened.manifest.bundle_id} is signed by the key {', '.join(signers)}."
        typer.echo(told, err=True)  # what is printed may be JSON
        yield snapshot_of(opened)
        return
    settings = load_settings()
    set_up_logs(style=settings.log_format, level="warning")
    with Client.connect(
        settings.kafka(),
        name=f"reach-{os.getpid()}",
        registry_url=settings.registry_url,
        registry=settings.registry(),
        namespace=settings.namespace,
        staleness_seconds=settings.staleness_seconds,
    ) as client:
        yield client.snapshot


def _as_data(
    found: list[RunReads], pauses: list[PauseImposed], looked_at: int, status: int
) -> dict[str, Any]:
    return {
        "status": ("nothing wrong", "violation", "cannot tell")[status],
        "runs_looked_at": looked_at,
        "pauses": [_pause_data(pause) for pause in pauses],
        "runs": [_reach_data(one, pauses) for one in found],
    }


def _pause_data(pause: PauseImposed) -> dict[str, Any]:
    times = {"effective_at": pause.effective_at, "recorded_at": pause.recorded_at}
    return {"pause": pause.pause, "version": pause.version, "reach": pause.reach.value, **times}


def _reach_data(one: RunReads, pauses: list[PauseImposed]) -> dict[str, Any]:
    return {
        "run_id": one.run_id,
        "url": one.url,
        "dataset": one.dataset,
        "dataset_version": one.dataset_version,
        "purpose": one.purpose,
        "subscriber": one.subscriber,
        "state": one.state,
        "members": one.members,
        "rows": one.rows,
        "first_read_at": one.first_read_at,
        "last_read_at": one.last_read_at,
        "excluded_now": one.excluded_now,
        "excluded_since": one.excluded_since,
        "when": one.when,
        "to_be_purged": _is_to_be_purged(one, pauses),
        "violations": {reason.value: number for reason, number in sorted(one.violations.items())},
        "unclear": one.unclear,
    }


def _is_to_be_purged(one: RunReads, pauses: list[PauseImposed]) -> bool:
    return bool(one.rows) and any(pause.takes_back for pause in pauses)


def _print(found: list[RunReads], pauses: list[PauseImposed], looked_at: int) -> None:
    for pause in pauses:
        typer.echo(
            f"{pause.pause} version {pause.version}: {pause.reach.value}, effective "
            f"{_date(pause.effective_at)}, "
            f"recorded {_date(pause.recorded_at)}"
        )
    for one in found:
        typer.echo(
            f"{one.run_id}  {one.state}  {one.dataset} {one.dataset_version} for {one.purpose}"
        )
        if one.rows:
            typer.echo(
                f"  {one.rows:,} rows of {one.members:,} members, first read "
                f"{_date(one.first_read_at)}, "
                f"last {_date(one.last_read_at)}"
            )
            typer.echo(f"  {_decisions(one, pauses)}")
        for text in one.unclear:
            typer.echo(f"  cannot tell: {text}")
    with_reads = sum(bool(one.rows) for one in found)
    typer.echo(
        f"{with_reads} of {looked_at} runs read them. What a model learned from rows it was given "
        "stays learned."
    )


def _decisions(one: RunReads, pauses: list[PauseImposed]) -> str:
    since = "" if one.excluded_since is None else f" {_date(one.excluded_since)}"
    if one.violations:
        told = ", ".join(
            f"{reason.value} {number:,}" for reason, number in sorted(one.violations.items())
        )
        return f"VIOLATION: read after they were excluded{since}: {told}"
    if not one.before:
        return "not excluded"
    if _is_to_be_purged(one, pauses):
        return (
            f"before the exclusion{since}; the pause reaches back: what is stored of it is to "
            "be purged"
        )
    return f"before the exclusion{since}: it stands, going forward"


def _date(instant: Micros | None) -> str:
    return "never" if instant is None else date_text(instant)
