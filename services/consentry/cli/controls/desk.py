"""A control's way from a command of the desk to the log: file, conflicts, dry run, topic."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Generic, NamedTuple, NoReturn, TypeVar

import typer
from confluent_kafka import Producer

from consentry.cli.approval import print_proposed
from consentry.cli.connections import count_partitions, open_catalog, read_controls
from consentry.cli.gateway_client import GatewayClient
from consentry.cli.settings import load_settings
from consentry.domain.control_checks import ControlConflict
from consentry.domain.controls import (
    Control,
    Controls,
    PauseImposed,
    PauseLifted,
    PolicyPublished,
    Scope,
)
from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.openings import openings
from consentry.forms.yaml import line_of, read_form
from consentry.kafka.clients import producer_config, send
from consentry.ops.clock import system_clock
from consentry.ops.settings import Settings
from consentry.wire.controls import control_key, write_control
from consentry.wire.jurisdictions import iso_jurisdictions
from consentry.wire.schemas import CONTROLS, topic_name

INT_MAX: Final = (1 << 31) - 1
_SOURCE: Final = "cli"

DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what it would change, member by member. Nothing is sent."),
]

AnyControl = TypeVar("AnyControl", PauseImposed, PauseLifted, PolicyPublished)


class ControlFile(NamedTuple):
    """The file that somebody gave to `consentry pause` or `policy` with a control in it."""

    path: str
    text: str


class DeskDraft(NamedTuple, Generic[AnyControl]):
    """A control as somebody asked for it on the command line, and the file it is in.

    It also says whether it gives an effective time.
    """

    control: AnyControl
    has_effective: bool
    file: ControlFile | None


def read_file(path: Path) -> ControlFile:
    """Read the text file that a command's option names. Raises InvalidInput.

    It does so where the file cannot be read.
    """
    try:
        return ControlFile(str(path), path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"The file {str(path)!r} cannot be read ({type(error).__name__}).",
            code="input.file",
            fix="name a readable text file",
        ) from error


def read_draft(path: Path, parser: Callable[..., AnyControl]) -> DeskDraft[AnyControl]:
    """Read a control from the file that a command's option names.

    One of the parsers of forms/controls reads it. Raises InvalidInput naming file, line and field.
    """
    file = read_file(path)
    now = system_clock()

    def parse(data: object) -> DeskDraft[AnyControl]:
        control = parser(data, event_id=uuid.uuid4().bytes, recorded_at=now, source=_SOURCE)
        has_effective = isinstance(data, dict) and data.get("effective") is not None
        return DeskDraft(control, has_effective, file)

    return read_form(file.text, parse, source=file.path)


def refuse_both_ways(context: typer.Context) -> None:
    """Raise InvalidInput where both a file and command-line options describe a control.

    One of them would be ignored.
    """
    beside_a_file = {"file", "dry_run", "as_json"}
    options: list[str] = []
    for name in context.params:
        source = getattr(context.get_parameter_source(name), "name", "")
        if name not in beside_a_file and source == "COMMANDLINE":
            options.append(name.replace("_", "-"))
    if options:
        verb = "do"
        if len(options) == 1:
            verb = "does"
        names = ", ".join(sorted(options))
        raise InvalidInput(
            f"--file says what is to be sent, and so {verb} {names}.",
            code="input.file_and_options",
            fix="write everything into the file, or leave --file out",
        )


def refuse(conflict: ControlConflict, file: ControlFile | None) -> NoReturn:
    """Raise InvalidInput for a conflict of the control on the command line.

    It names file and line where the control is in a file.
    """
    if file is None:
        message = f"{conflict.problem[0].upper()}{conflict.problem[1:]}."
    else:
        line = line_of(file.text, conflict.field)
        message = f"{file.path}, line {line}, {conflict.field}: {conflict.problem}."
    raise InvalidInput(message, code=conflict.code, fix=conflict.fix)


def warn_of_voided_opt_ins(lift: PauseLifted, log: Sequence[Control]) -> None:
    """Warn on standard error that the command's lift voids opt-ins which nobody meant.

    That is a second lift, or the lift of a control that could not be read.
    """
    if not lift.voids_opt_ins:
        return
    if _was_lifted_before(lift, log):
        typer.echo(
            f"note: {lift.pause} was lifted before; this also voids the opt-ins made since then",
            err=True,
        )
    elif lift.pause.startswith("unreadable-"):
        typer.echo("note: opt-ins everywhere become void; --opt-ins KEEP keeps them", err=True)


def _was_lifted_before(lift: PauseLifted, log: Sequence[Control]) -> bool:
    """Return True if the log has a lift of the same pause, of this version or a later one."""
    for control in log:
        if not isinstance(control, PauseLifted) or control.pause != lift.pause:
            continue
        if control.version >= lift.version:
            return True
    return False


def warn_of_unknown_purposes(scope: Scope, log: Sequence[Control]) -> None:
    """Warn on standard error that the command's pause names a purpose which no policy has."""
    for purpose in scope.purposes or ():
        warn_of_unknown_purpose(purpose, log)


def warn_of_unknown_purpose(purpose: str, log: Sequence[Control]) -> None:
    """Warn on standard error that no policy names the purpose that a command was given.

    Says nothing where no policy names any.
    """

    known: set[str] = set()
    for control in log:
        if isinstance(control, PolicyPublished):
            known.update(terms.purpose for terms in control.terms)
    if known and purpose not in known:
        typer.echo(
            f"note: no policy has terms for the purpose {purpose!r}; they have "
            f"{', '.join(sorted(known))}",
            err=True,
        )


def open_settings() -> Settings:
    """Return the settings for a command of the desk, which may need only a gateway.

    Whoever has a gateway needs no other addresses.
    """
    settings = Settings.parse()
    if _has_only_a_gateway(settings):
        return settings
    return load_settings()


def _has_only_a_gateway(settings: Settings) -> bool:
    return bool(settings.gateway_url) and not settings.kafka_bootstrap


def log_to_check_by(settings: Settings, *, dry_run: bool) -> list[Control] | None:
    """Return all controls, to check the desk's command by; None where only the gateway has them.

    The gateway checks by itself. Raises Refused for a dry run then: it counts members, and needs
    the table for that.
    """
    if not _has_only_a_gateway(settings):
        return read_controls(settings)
    if dry_run:
        raise Refused(
            "A dry run reads the controls and the table, and the settings name a gateway only.",
            code="settings.address_missing",
            fix="set CONSENTRY_KAFKA_BOOTSTRAP, _REDIS_URL and _REGISTRY_URL too, or leave "
            "--dry-run out",
        )
    return None


class Submission(NamedTuple):
    """A control that a command sends, and the gateway's path and body for it."""

    control: Control
    path: str
    body: Any


def show_or_submit(
    submission: Submission,
    settings: Settings,
    log: Sequence[Control] | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Print the dry run of the command's control, or submit it."""
    if dry_run and log is not None:
        # Only a dry run reads the table, and needs its packages.
        from consentry.cli.controls.report import show_impact  # noqa: PLC0415

        show_impact(submission.control, settings, log, as_json=as_json)
    else:
        submit(submission, settings, log, as_json=as_json)


def submit(
    submission: Submission,
    settings: Settings,
    log: Sequence[Control] | None,
    *,
    as_json: bool,
) -> None:
    """Submit a command's control to the gateway of the settings, else straight to the topic.

    Raises Refused where it would widen use and no second person could approve it.
    """
    control = submission.control
    if settings.gateway_url:
        answer = GatewayClient.open(settings).post(submission.path, submission.body)
        _print_answer(control, answer, as_json=as_json)
        return
    before = Controls(iso_jurisdictions()).after(*(log or ()))
    opens = openings(control, before, now=control.recorded_at).words
    if opens and settings.profile == "production":
        raise Refused(
            f"This would widen use ({opens[0]}), and takes a second person.",
            code="approval.needed",
            fix="set CONSENTRY_GATEWAY_URL and CONSENTRY_GATEWAY_CREDENTIAL_FILE: the gateway "
            "keeps it for approval",
        )
    send_control(control, settings, as_json=as_json)


def _print_answer(control: Control, answer: dict[str, Any], *, as_json: bool) -> None:
    if answer["state"] == "awaiting_approval":
        print_proposed(answer, as_json=as_json)
        return
    kind = type(control).__name__
    if as_json:
        typer.echo(json.dumps({"sent": True, "kind": kind, **answer}))
    else:
        typer.echo(f"accepted: controls offset {answer['offset']}, {kind} {answer['event_id']}")


def send_control(control: Control, settings: Settings, *, as_json: bool = False) -> None:
    """Send a command's control to the topic, wait until it is durable, and print its offset.

    Raises Refused or Unavailable.
    """

    count_partitions(settings)
    topic = topic_name(settings.namespace, CONTROLS)
    value = write_control(control, open_catalog(settings))
    producer = Producer(producer_config(settings.kafka(), "consentry-desk"))
    [(_, offset)] = send(producer, topic, [(control_key(control), value)])
    kind, event_id = type(control).__name__, str(uuid.UUID(bytes=control.event_id))
    if as_json:
        typer.echo(
            json.dumps(
                {"sent": True, "topic": topic, "offset": offset, "kind": kind, "event_id": event_id}
            )
        )
    else:
        typer.echo(f"accepted: {topic} offset {offset}, {kind} {event_id}")
