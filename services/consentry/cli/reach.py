"""`consentry reach`: the training runs that read a member, or members whom a pause covers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from consentry.cli.deciders import connect_client
from consentry.cli.options import BundleKeysOption, BundleOption, JsonOption
from consentry.cli.settings import load_settings
from consentry.cli.verify import bundle_of
from consentry.domain.controls import PauseImposed
from consentry.domain.errors import InvalidInput
from consentry.domain.explain import date_text
from consentry.domain.values import Micros, parse_member_id
from consentry.ops.clock import system_clock
from consentry.ops.logs import set_up_logs
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.runs.reach import (
    RunReads,
    pauses_named,
    reach_of_member,
    reach_of_pause,
    runs_in,
)
from consentry.trainer.runs.store import RunFolder

app = typer.Typer(add_completion=False)


@app.command()
def run(
    member: Annotated[str | None, typer.Argument(help="Pseudonym of the member.")] = None,
    pause: Annotated[str | None, typer.Option(help="Name of a pause, instead of a member.")] = None,
    runs: Annotated[
        list[str] | None, typer.Option(help="Store of runs, a path or a URL; repeatable.")
    ] = None,
    bundle: BundleOption = None,
    bundle_key: BundleKeysOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the training runs that read a member's data.

    With --pause: the runs that read data of the members whom a pause covers.

    Exit 0: nothing was read after it was excluded. 1: something was. 2: cannot tell, for example
    because a run was killed.
    """
    if (member is None) == (pause is None) or not runs:
        raise InvalidInput(
            "It is not clear which member or pause to look for, or in which runs.",
            code="input.reach",
            fix="name one member, or one pause with --pause, and run stores with --runs",
        )
    member_id = None
    if member is not None:
        member_id = parse_member_id(member)
    folders: list[RunFolder] = []
    for url in runs:
        folders.extend(runs_in(url))
    if not folders:
        raise InvalidInput(
            f"There is no run in {', '.join(map(repr, runs))}: nothing can be told from that.",
            code="input.runs",
            fix="name the store that training_run(store=…) was given",
        )
    reached: list[RunReads] = []
    with _open_snapshot(bundle, bundle_key) as snapshot:
        now = system_clock()
        pauses: list[PauseImposed] = []
        if pause is not None:
            pauses = pauses_named(snapshot, pause)
        for folder in folders:
            if member_id is None:
                reads = reach_of_pause(folder, snapshot, pause or "", now=now)
            else:
                reads = reach_of_member(folder, snapshot, member_id, now=now)
            if reads is not None:
                reached.append(reads)
    status = _status(reached)
    if as_json:
        typer.echo(json.dumps(_as_data(reached, pauses, len(folders), status), indent=2))
    else:
        _print(reached, pauses, len(folders))
    raise typer.Exit(status)


def _status(reached: Sequence[RunReads]) -> int:
    """Return 1 if a run read what was excluded, 2 if one cannot be told of, else 0."""
    if any(reads.violations for reads in reached):
        return 1
    if any(reads.unclear for reads in reached):
        return 2
    return 0


@contextmanager
def _open_snapshot(bundle: str | None, key: list[Path] | None) -> Iterator[Snapshot]:
    """Open what is known of members: by a bundle, or by Kafka. Raises Unavailable and Refused."""
    if bundle is not None:
        opened = bundle_of(bundle, key)
        bundle_id = opened.bundle.manifest.bundle_id
        keys = ", ".join(opened.key_ids)
        # On standard error: what is printed may be JSON.
        typer.echo(f"The bundle {bundle_id} is signed by the key {keys}.", err=True)
        yield opened.snapshot
        return
    settings = load_settings()
    set_up_logs(style=settings.log_format, level="warning")
    with connect_client(settings, "reach") as client:
        yield client.snapshot


def _as_data(
    reached: list[RunReads], pauses: list[PauseImposed], looked_at: int, status: int
) -> dict[str, Any]:
    pause_fields = [_pause_data(pause) for pause in pauses]
    run_fields = [_reads_data(reads, pauses) for reads in reached]
    return {
        "status": ("nothing wrong", "violation", "cannot tell")[status],
        "runs_looked_at": looked_at,
        "pauses": pause_fields,
        "runs": run_fields,
    }


def _pause_data(pause: PauseImposed) -> dict[str, Any]:
    times = {"effective_at": pause.effective_at, "recorded_at": pause.recorded_at}
    return {"pause": pause.pause, "version": pause.version, "reach": pause.reach.value, **times}


def _reads_data(reads: RunReads, pauses: list[PauseImposed]) -> dict[str, Any]:
    violations = {}
    for reason, number in sorted(reads.violations.items()):
        violations[reason.value] = number
    return {
        "run_id": reads.run_id,
        "url": reads.url,
        "dataset": reads.dataset,
        "dataset_version": reads.dataset_version,
        "purpose": reads.purpose,
        "subscriber": reads.subscriber,
        "state": reads.state,
        "members": reads.members,
        "rows": reads.rows,
        "first_read_at": reads.first_read_at,
        "last_read_at": reads.last_read_at,
        "excluded_now": reads.excluded_now,
        "excluded_since": reads.excluded_since,
        "when": reads.when,
        "to_be_purged": _is_to_be_purged(reads, pauses),
        "violations": violations,
        "unclear": reads.unclear,
    }


def _is_to_be_purged(reads: RunReads, pauses: list[PauseImposed]) -> bool:
    return bool(reads.rows) and any(pause.requires_purge for pause in pauses)


def _print(reached: list[RunReads], pauses: list[PauseImposed], looked_at: int) -> None:
    for pause in pauses:
        typer.echo(
            f"{pause.pause} version {pause.version}: {pause.reach.value}, effective "
            f"{_date(pause.effective_at)}, "
            f"recorded {_date(pause.recorded_at)}"
        )
    for reads in reached:
        typer.echo(
            f"{reads.run_id}  {reads.state}  {reads.dataset} {reads.dataset_version} "
            f"for {reads.purpose}"
        )
        if reads.rows:
            typer.echo(
                f"  {reads.rows:,} rows of {reads.members:,} members, first read "
                f"{_date(reads.first_read_at)}, "
                f"last {_date(reads.last_read_at)}"
            )
            typer.echo(f"  {_decisions(reads, pauses)}")
        for problem in reads.unclear:
            typer.echo(f"  cannot tell: {problem}")
    with_reads = sum(bool(reads.rows) for reads in reached)
    typer.echo(
        f"{with_reads} of {looked_at} runs read them. What a model learned from rows it was given "
        "stays learned."
    )


def _decisions(reads: RunReads, pauses: list[PauseImposed]) -> str:
    since = ""
    if reads.excluded_since is not None:
        since = f" {_date(reads.excluded_since)}"
    if reads.violations:
        counts = []
        for reason, number in sorted(reads.violations.items()):
            counts.append(f"{reason.value} {number:,}")
        return f"VIOLATION: read after they were excluded{since}: {', '.join(counts)}"
    if not reads.before:
        return "not excluded"
    if _is_to_be_purged(reads, pauses):
        return (
            f"before the exclusion{since}; the pause reaches back: what is stored of it is to "
            "be purged"
        )
    return f"before the exclusion{since}: it stands, going forward"


def _date(instant: Micros | None) -> str:
    if instant is None:
        return "never"
    return date_text(instant)
