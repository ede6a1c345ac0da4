"""`consentry local …`: Kafka, Redis and schema registry on this computer, without Docker."""

from __future__ import annotations

import json
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.table import Table

from consentry.cli.downloads import default_cache, download_everything
from consentry.domain.errors import ConsentryError
from consentry.local.bringup import last_lines
from consentry.local.errors import Cancelled, LocalStackError
from consentry.local.health import NotAnswering, ask_kafka, ask_redis, ask_registry
from consentry.local.services import SERVICE_NAMES
from consentry.local.stack import LocalStack, already_running
from consentry.local.state import Addresses, StackState, log_path, read_state
from consentry.local.supervisor import end_stack, ended_by_signals, start_detached, supervise

EXIT_NOT_RUNNING = 1
EXIT_FAILED = 2
EXIT_INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended
ASK_TIMEOUT_SECONDS = 5.0
FOLLOW_SECONDS = 0.3

app = typer.Typer(
    name="local",
    help="Run Kafka, Redis and a schema registry on this computer, without Docker.",
    no_args_is_help=True,
    add_completion=False,
)
out = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

DirectoryOption = Annotated[
    Path,
    typer.Option(
        "--dir",
        envvar="CONSENTRY_LOCAL_DIR",
        help="Where the stack keeps its data, logs and state.",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        envvar="CONSENTRY_CACHE_DIR",
        help="Where downloaded programs are kept, for all stacks.",
        show_default="~/.cache/consentry",
    ),
]
RepositoryOption = Annotated[
    str | None,
    typer.Option(
        envvar="CONSENTRY_MAVEN_REPOSITORY",
        help="Address of the Maven repository to download from, if not the default one.",
    ),
]


@app.command()
def up(
    directory: DirectoryOption = Path(".consentry"),
    cache_directory: CacheOption = None,
    maven_repository: RepositoryOption = None,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Start empty, and keep no data.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once the stack is up, and leave it running.")
    ] = False,
) -> None:
    """Start the local stack, and keep it up until Ctrl-C or `consentry local down`.

    The first time it downloads about 200 MB.
    """
    with _errors_printed():
        parent_pid = os.getppid()
        cache = (cache_directory or default_cache()).absolute()
        try:
            with ended_by_signals() as stop_requested:
                _fetch(directory, cache, maven_repository, stop_requested)
                if detach:
                    _up_detached(directory, cache, ephemeral, stop_requested)
                else:
                    _up_in_foreground(directory, cache, ephemeral, parent_pid, stop_requested)
        except Cancelled as cancelled:
            errors.print("Ended before it was up; nothing is left running.")
            raise typer.Exit(EXIT_INTERRUPTED) from cancelled


@app.command()
def status(
    directory: DirectoryOption = Path(".consentry"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask each service of the local stack a real question, and print the answer.

    Exit 0: all answer. 1: no stack runs. 2: one does not answer.
    """
    with _errors_printed():
        state = read_state(directory)
        if state is None:
            if as_json:
                out.print_json(json.dumps({"running": False}))
            else:
                out.print(
                    f"No local stack runs in {directory}. Start one: {_command('up', directory)}",
                    soft_wrap=True,
                )
            raise typer.Exit(EXIT_NOT_RUNNING)
        silences = _ask_all(state)
        if as_json:
            out.print_json(json.dumps(_status_document(state, silences)))
        else:
            _print_status(directory, state, silences)
        if any(silence is not None for silence in silences.values()):
            raise typer.Exit(EXIT_FAILED)


@app.command()
def env(directory: DirectoryOption = Path(".consentry")) -> None:
    """Print the local stack's addresses for `eval "$(consentry local env)"`.

    They are printed as shell commands.
    """
    with _errors_printed():
        for name, value in _variables(_running(directory)).items():
            typer.echo(f"export {name}={shlex.quote(value)}")


@app.command()
def logs(
    service: Annotated[
        str | None, typer.Argument(help="kafka, redis, registry or supervisor; all if left out.")
    ] = None,
    directory: DirectoryOption = Path(".consentry"),
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new lines, until Ctrl-C.")
    ] = False,
    lines: Annotated[
        int, typer.Option("-n", min=0, help="How many of the last lines to print.")
    ] = 20,
) -> None:
    """Print the last lines of the logs of the local stack's services.

    This also works for a stack that has ended.
    """
    with _errors_printed():
        known = (*SERVICE_NAMES, "supervisor")
        if service is not None and service not in known:
            raise LocalStackError(
                f"There is no service {service!r}.",
                code="local.no_service",
                fix=f"name one of {', '.join(known)}",
            )
        names: Sequence[str] = known
        if service:
            names = [service]
        paths: dict[str, Path] = {}
        for name in names:
            path = log_path(directory, name)
            if path.exists():
                paths[name] = path
        if not paths:
            raise LocalStackError(
                f"There is no log in {directory}.",
                code="local.no_log",
                fix=f"start a stack there first: {_command('up', directory)}, or name its "
                "directory with --dir",
            )
        for name, path in paths.items():
            for line in last_lines(path, lines):
                typer.echo(_prefixed(name, line, alone=len(paths) == 1))
        if follow:
            _follow(paths)


@app.command()
def down(directory: DirectoryOption = Path(".consentry")) -> None:
    """End the local stack, and wait until it is gone.

    Its data stays, unless it was started with --ephemeral.
    """
    with _errors_printed():
        if end_stack(directory, report=_say):
            out.print(f"The local stack in {directory} has ended.", soft_wrap=True)
        else:
            out.print(f"No local stack runs in {directory}: nothing to end.", soft_wrap=True)


@contextmanager
def _errors_printed() -> Iterator[None]:
    """Print our errors as one paragraph, without a traceback, and exit with 2."""
    try:
        yield
    except ConsentryError as error:
        _print_error(str(error))
        for note in getattr(error, "__notes__", ()):
            errors.print(note, markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_FAILED) from error
    except OSError as error:
        _print_error(
            f"The operating system refused: {error.strerror or error} ({error.filename}). "
            "[local.file] Fix: make room "
            "or give yourself the right to that path, or name other directories with --dir and "
            "--cache-dir"
        )
        raise typer.Exit(EXIT_FAILED) from error


def _print_error(text: str) -> None:
    errors.print(f"error: {text}", style="red", markup=False, soft_wrap=True)


def _say(line: str) -> None:
    out.print(f"  {line}", style="dim", markup=False, soft_wrap=True)


def _command(verb: str, directory: Path) -> str:
    """Return the command to type for the stack in this directory."""
    option = ""
    if directory != Path(".consentry"):
        option = f" --dir {shlex.quote(str(directory))}"
    return f"consentry local {verb}{option}"


def _fetch(
    directory: Path, cache: Path, repository: str | None, stop_requested: threading.Event
) -> None:
    """Fill the cache before anything is started; prints nothing if all is there."""
    if (
        read_state(directory) is not None
    ):  # said before a long download, and checked again by the start
        raise already_running(directory)
    download_everything(
        cache, repository=repository, console=out, say=_say, cancelled=stop_requested
    )


def _up_in_foreground(
    directory: Path, cache: Path, ephemeral: bool, parent_pid: int, stop_requested: threading.Event
) -> None:
    def ready() -> None:
        _print_up(directory, _running(directory))
        out.print("Ctrl-C ends the stack.")

    out.print(f"Starting the local stack in {directory} …", soft_wrap=True)
    stack = LocalStack(
        directory, cache=cache, ephemeral=ephemeral, report=_say, cancelled=stop_requested
    )
    # The parent of process 1's children never changes: there is nobody to outlive.
    watched = None
    if parent_pid > 1:
        watched = parent_pid
    reason = supervise(stack, asked_to_end=stop_requested, parent_pid=watched, on_ready=ready)
    out.print(f"The local stack has ended: {reason}.")


def _up_detached(
    directory: Path, cache: Path, ephemeral: bool, stop_requested: threading.Event
) -> None:
    out.print(f"Starting the local stack in {directory} …", soft_wrap=True)
    arguments = [str(directory.absolute()), "--cache", str(cache)]
    if ephemeral:
        arguments.append("--ephemeral")
    state = start_detached(arguments, directory=directory, asked_to_end=stop_requested)
    _print_up(directory, state)
    out.print(f"It runs until you type: {_command('down', directory)}", soft_wrap=True)


def _running(directory: Path) -> StackState:
    """Return the state of a stack that is up; raises LocalStackError."""
    state = read_state(directory)
    if state is None or state.addresses is None:
        raise LocalStackError(
            f"No local stack is up in {directory.absolute()}.",
            code="local.not_up",
            fix=f"go to where you started it, or start one here: {_command('up', directory)}",
        )
    return state


def _by_service(addresses: Addresses | None) -> dict[str, str]:
    if addresses is None:
        return {}
    return {
        "kafka": addresses.kafka,
        "redis": addresses.redis_url,
        "registry": addresses.registry_url,
    }


def _variables(state: StackState) -> dict[str, str]:
    address = _by_service(state.addresses)
    return {
        "CONSENTRY_KAFKA_BOOTSTRAP": address["kafka"],
        "CONSENTRY_REDIS_URL": address["redis"],
        "CONSENTRY_REGISTRY_URL": address["registry"],
        "CONSENTRY_PROFILE": "local",
    }


def _print_up(directory: Path, state: StackState) -> None:
    table = Table("service", "address", "process")
    for name, address in _by_service(state.addresses).items():
        table.add_row(name, address, str(state.services[name].pid))
    out.print(table)
    data = f"its data stays in {state.data_directory}"
    if state.ephemeral:
        data = "its data goes with it"
    out.print(f"The local stack is up; {data}.", soft_wrap=True)
    out.print("For other programs in another terminal:\n")
    for name, value in _variables(state).items():
        out.print(f"  export {name}={value}", markup=False, soft_wrap=True)
    out.print(
        "\nNext, in another terminal, set these and ask each service a real question:\n",
        soft_wrap=True,
    )
    out.print(
        f'  eval "$({_command("env", directory)})" && {_command("status", directory)}\n',
        style="bold",
        soft_wrap=True,
    )


def _ask_all(state: StackState) -> dict[str, str | None]:
    """Ask all services a real question at the same time; return each one's problem, or None."""

    if state.addresses is None:
        return {name: "is still starting" for name in ("kafka", "redis", "registry")}
    asks: dict[str, Callable[..., str]] = {
        "kafka": ask_kafka,
        "redis": ask_redis,
        "registry": ask_registry,
    }

    def ask(name: str, address: str) -> str | None:
        try:
            asks[name](address, timeout_seconds=ASK_TIMEOUT_SECONDS)
        except NotAnswering as silence:
            return str(silence)
        return None

    with ThreadPoolExecutor(len(asks)) as pool:
        tasks = {
            name: pool.submit(ask, name, address)
            for name, address in _by_service(state.addresses).items()
        }
        return {name: task.result() for name, task in tasks.items()}


def _status_document(state: StackState, silences: dict[str, str | None]) -> dict[str, object]:
    address = _by_service(state.addresses)
    services = {}
    for name, silence in silences.items():
        pid = None
        if name in state.services:
            pid = state.services[name].pid
        services[name] = {
            "address": address.get(name),
            "pid": pid,
            "answers": silence is None,
            "problem": silence,
        }
    environment = {}
    if address:
        environment = _variables(state)
    return {
        "running": True,
        "phase": state.phase,
        "ephemeral": state.ephemeral,
        "supervisor_pid": state.supervisor.pid,
        "data_directory": state.data_directory,
        "services": services,
        "environment": environment,
    }


def _print_status(directory: Path, state: StackState, silences: dict[str, str | None]) -> None:
    address = _by_service(state.addresses)
    table = Table("service", "answers", "address", "process")
    for name, silence in silences.items():
        pid = "–"
        if name in state.services:
            pid = str(state.services[name].pid)
        answers = "[red]no[/]"
        if silence is None:
            answers = "[green]yes[/]"
        table.add_row(name, answers, address.get(name, "–"), pid)
    out.print(table)
    for name, silence in silences.items():
        if silence is not None:
            out.print(
                f"{name}: {silence}. Its log: {_command(f'logs {name}', directory)}",
                markup=False,
                soft_wrap=True,
            )


def _prefixed(name: str, line: str, *, alone: bool) -> str:
    if alone:
        return line
    return f"{name:<10} {line}"


def _follow(paths: dict[str, Path]) -> None:
    """Print what is appended to the logs until Ctrl-C; a new log is read from its start."""
    files: dict[str, tuple[int, TextIO]] = {}
    for name, path in paths.items():
        files[name] = _open_log(path)
        files[name][1].seek(0, os.SEEK_END)
    try:
        while True:
            for name, path in paths.items():
                for line in files[name][1]:
                    typer.echo(_prefixed(name, line.rstrip("\n"), alone=len(paths) == 1))
                if path.exists() and path.stat().st_ino != files[name][0]:
                    files[name][1].close()
                    files[name] = _open_log(path)
            time.sleep(FOLLOW_SECONDS)
    except KeyboardInterrupt:
        return
    finally:
        for _, file in files.values():
            file.close()


def _open_log(path: Path) -> tuple[int, TextIO]:
    file = path.open(encoding="utf-8", errors="replace")
    return os.fstat(file.fileno()).st_ino, file
