"""`consentry check`: whether data files hold rows that may not be used, for CI of data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from consentry.cli.deciders import connect_client, open_bundle_decider
from consentry.cli.options import (
    BundleKeyOption,
    BundleOption,
    CategoryColumnOption,
    CollectedColumnOption,
    JsonOption,
    JurisdictionColumnOption,
    PurposeOption,
)
from consentry.cli.settings import load_settings, load_token_keys
from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.values import Reason, parse_name
from consentry.ops.logs import set_up_logs
from consentry.ops.settings import Settings
from consentry.trainer.checking.check import EXIT_STATUS, Check, CheckReport, FileReport
from consentry.trainer.checking.data_files import find_files
from consentry.trainer.deciding.columns import ColumnSpec
from consentry.trainer.deciding.decider import Decider, SnapshotDecider
from consentry.wire.tokens import read_token

app = typer.Typer(add_completion=False)


_SHOWN_MAX = 10_000


AtLeastOption = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN", help="Consistency token: wait until its event is taken into account."
    ),
]


@app.command()
def run(
    files: Annotated[
        list[Path],
        typer.Argument(help="Parquet, CSV, JSONL or Arrow IPC files, or directories of them."),
    ],
    member_col: Annotated[str, typer.Option(help="Column of member ids.")] = "member_id",
    purpose: PurposeOption = "genai_training",
    jurisdiction_col: JurisdictionColumnOption = None,
    category_col: CategoryColumnOption = None,
    collected_col: CollectedColumnOption = None,
    at_least: AtLeastOption = None,
    bundle: BundleOption = None,
    bundle_key: BundleKeyOption = None,
    bundle_max_age: Annotated[
        float, typer.Option(min=1, help="Seconds for which a bundle counts as fresh.")
    ] = 3600.0,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of file names in directories to leave out; repeatable."),
    ] = None,
    as_json: JsonOption = False,
    show_members: Annotated[
        int, typer.Option(min=0, max=_SHOWN_MAX, help="Name up to this many excluded members.")
    ] = 0,
) -> None:
    """Check data files for rows that may not be used.

    Exit 0: every row may be used. 1: some may not. 2: cannot tell, for example because the
    decisions are not fresh.
    """
    parse_name(purpose, what="purpose")
    columns = ColumnSpec(
        member=member_col,
        jurisdiction=jurisdiction_col,
        category=category_col,
        collected=collected_col,
    )
    data_files = list(find_files(files, ignored=ignore or ()))
    if not data_files:
        raise InvalidInput(
            "There is no data file there.", code="input.file", fix="name other files or directories"
        )
    # Standard output is for the answer alone.
    set_up_logs(style="text", level="error")
    on_file: Callable[[FileReport], None] = _print_file
    if as_json:
        on_file = _ignore_file
    with _open_decider(bundle, bundle_key, bundle_max_age, at_least) as decider:
        check = Check(decider, purpose=purpose, show_max=show_members, on_file=on_file)
        report = check.files(data_files, columns)
    if as_json:
        typer.echo(json.dumps(report.as_data(), indent=2))
    else:
        _print_outcome(report)
    raise typer.Exit(EXIT_STATUS[report.outcome])


@contextmanager
def _open_decider(
    bundle: str | None, bundle_key: Path | None, max_age_seconds: float, at_least: str | None
) -> Iterator[Decider]:
    """Open a client that is ready, or a bundle; each knows what the token asks for.

    Raises Unavailable and Refused.
    """
    if (bundle is None) != (bundle_key is None):
        raise InvalidInput(
            "A bundle and the key that it is signed with belong together.",
            code="input.bundle",
            fix="give both --bundle and --bundle-key, or neither to ask Kafka",
        )
    if bundle is not None and bundle_key is not None:
        decider = open_bundle_decider(bundle, bundle_key, max_age_seconds=max_age_seconds)
        if at_least is not None:
            _require_token(decider, at_least)
        yield decider
        return
    settings = load_settings()
    token_keys = load_token_keys(settings)
    with connect_client(settings, "check", token_keys=token_keys, at_least=at_least) as client:
        yield client


def _require_token(decider: SnapshotDecider, at_least: str) -> None:
    """Raise Unavailable where a bundle does not hold what the token asks for."""
    token = read_token(at_least, load_token_keys(Settings.parse()))
    missing = decider.snapshot.missing(token)
    if missing:
        raise Unavailable(
            f"The bundle does not hold what the token asks for: {missing}.",
            code="check.bundle_not_yet",
            fix="check again by the next bundle",
        )


def _ignore_file(_file: FileReport) -> None:
    """Print nothing of a file: the report at the end has it."""


def _print_file(file: FileReport) -> None:
    outcome = file.outcome.value.replace("_", " ")
    typer.echo(f"{outcome:<11}  {file.name}  {file.rows:,} rows{_counts_text(file)}")
    if file.problem is not None:
        typer.echo(f"             {file.problem}")


def _counts_text(file: FileReport) -> str:
    counts = {**file.violations, Reason.STALE: file.counts[Reason.STALE]}
    text = ""
    for reason, rows in counts.items():
        if rows:
            text += f"  {reason} {rows:,}"
    return text


def _print_outcome(report: CheckReport) -> None:
    for row in report.shown:
        typer.echo(f"  {row.member}  {row.reason}  {row.file}, row {row.row}")
    violations = sum(file.violations.total() for file in report.files)
    outcome = report.outcome.value.replace("_", " ")
    typer.echo(
        f"{outcome}: {len(report.files)} files, {report.counts.total():,} rows, "
        f"{violations:,} of them may not be used for {report.purpose}"
    )
    if report.stale_detail:
        typer.echo(f"Not fresh: {report.stale_detail}")
