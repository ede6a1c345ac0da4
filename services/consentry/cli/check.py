"""`consentry check`: do these files hold rows that may not be used?

For CI of data sets, and before a commit of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from consentry.bundles import PublicKeys
from consentry.cli.connections import load_settings, load_token_keys
from consentry.domain.errors import InvalidInput, Unavailable
from consentry.domain.values import Reason, parse_name
from consentry.ops.logs import set_up_logs
from consentry.ops.settings import Settings
from consentry.trainer.bundled import bundle_decider
from consentry.trainer.checking.check import EXIT_STATUS, Check, CheckReport, FileReport
from consentry.trainer.checking.data_files import find_files
from consentry.trainer.client import TOKEN_WAIT_SECONDS, Client
from consentry.trainer.deciding.columns import ColumnSpec
from consentry.trainer.deciding.decider import Decider
from consentry.wire.tokens import read_token

app = typer.Typer(add_completion=False)


_SHOWN_MAX = 10_000


@app.command()
def run(
    files: Annotated[
        list[Path],
        typer.Argument(help="Parquet, CSV, JSONL or Arrow IPC files, or directories of them."),
    ],
    member_col: Annotated[str, typer.Option(help="Column of member ids.")] = "member_id",
    purpose: Annotated[str, typer.Option(help="What the data is used for.")] = "genai_training",
    jurisdiction_col: Annotated[
        str | None, typer.Option(help="Default: jurisdiction, where there is one.")
    ] = None,
    category_col: Annotated[
        str | None, typer.Option(help="Default: category, where there is one.")
    ] = None,
    collected_col: Annotated[
        str | None, typer.Option(help="Default: collected_at, where there is one.")
    ] = None,
    at_least: Annotated[
        str | None, typer.Option(help="Consistency token: know at least what was accepted with it.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Check by this bundle, without Kafka.")] = None,
    bundle_key: Annotated[
        Path | None, typer.Option(help="File with the public key that the bundle is signed by.")
    ] = None,
    bundle_max_age: Annotated[
        float, typer.Option(min=1, help="Seconds since the bundle was proven fresh.")
    ] = 3600.0,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Pattern of names in directories that are no data.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    show_members: Annotated[
        int, typer.Option(min=0, max=_SHOWN_MAX, help="Name so many excluded members.")
    ] = 0,
) -> None:
    """Check data files for rows that may not be used.

    Exit 0: every row may be used. 1: some may not. 2: cannot tell, for example because the
    decisions are not fresh.
    """
    parse_name(purpose, what="purpose")
    asked = ColumnSpec(
        member=member_col,
        jurisdiction=jurisdiction_col,
        category=category_col,
        collected=collected_col,
    )
    found = list(find_files(files, ignored=ignore or ()))
    if not found:
        raise InvalidInput(
            "There is no data file there.", code="input.file", fix="name other files or directories"
        )
    # Standard output is for the answer alone.
    set_up_logs(style="text", level="error")
    with _open_judge(bundle, bundle_key, bundle_max_age, at_least) as decider:
        check = Check(
            decider,
            purpose=purpose,
            show_max=show_members,
            told=(lambda _: None) if as_json else _tell_file,
        )
        report = check.files(found, asked)
    if as_json:
        typer.echo(json.dumps(report.as_data(), indent=2))
    else:
        _tell_end(report)
    raise typer.Exit(EXIT_STATUS[report.outcome])


@contextmanager
def _open_judge(
    bundle: str | None, bundle_key: Path | None, max_age_seconds: float, at_least: str | None
) -> Iterator[Decider]:
    """Who answers: a client that is ready, or a bundle; each as fresh as the token.

    Raises Unavailable and Refused.
    """
    if bundle is None and bundle_key is None:
        yield from _following(at_least)
    elif bundle is not None and bundle_key is not None:
        yield _bundle_judge(bundle, bundle_key, max_age_seconds, at_least)
    else:
        raise InvalidInput(
            "A bundle and the key that it is signed by belong together.",
            code="input.bundle",
            fix="give both --bundle and --bundle-key, or neither to ask Kafka",
        )


def _following(at_least: str | None) -> Iterator[Decider]:
    settings = load_settings()
    with Client.connect(
        settings.kafka(),
        name=f"check-{os.getpid()}",
        registry_url=settings.registry_url,
        registry=settings.registry(),
        namespace=settings.namespace,
        staleness_seconds=settings.staleness_seconds,
        token_keys=load_token_keys(settings),
    ) as client:
        if at_least is not None:
            client.wait_for(at_least, TOKEN_WAIT_SECONDS)
        yield client


def _bundle_judge(
    url: str, key_file: Path, max_age_seconds: float, at_least: str | None
) -> Decider:
    """A judge by the newest bundle of a store.

    Raises BundleRefused, and Unavailable where the token asks for more.
    """
    settings = Settings.parse()  # a bundle needs no addresses
    keys = PublicKeys.read(key_file)
    decider = bundle_decider(
        url, keys=keys, namespace=settings.namespace, max_age_seconds=max_age_seconds
    )
    if at_least is not None:
        missing = decider.snapshot.missing(read_token(at_least, load_token_keys(settings)))
        if missing:
            raise Unavailable(
                f"The bundle does not hold what the token asks for: {missing}.",
                code="check.bundle_not_yet",
                fix="check again by the next bundle",
            )
    return decider


def _tell_file(file: FileReport) -> None:
    typer.echo(
        f"{file.outcome.value.replace('_', ' '):<11}  {file.name}  {file.rows:,} "
        f"rows{_reasons(file)}"
    )
    if file.problem is not None:
        typer.echo(f"             {file.problem}")


def _reasons(file: FileReport) -> str:
    told = {**file.violations, Reason.STALE: file.counts[Reason.STALE]}
    return "".join(f"  {reason} {number:,}" for reason, number in told.items() if number)


def _tell_end(report: CheckReport) -> None:
    for one in report.shown:
        typer.echo(f"  {one.member}  {one.reason}  {one.file}, row {one.row}")
    violations = sum(file.violations.total() for file in report.files)
    typer.echo(
        f"{report.outcome.value.replace('_', ' ')}: {len(report.files)} files, "
        f"{report.counts.total():,} rows, "
        f"{violations:,} of them may not be used for {report.purpose}"
    )
    if report.stale_detail:
        typer.echo(f"Not fresh: {report.stale_detail}")
