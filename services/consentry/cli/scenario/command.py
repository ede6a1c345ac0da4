"""`consentry scenario …`: run scenarios against the rules or the real stack, or write a new one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from consentry.domain.errors import ConsentryError, InvalidInput, Unavailable
from consentry.domain.scenarios import Failure, Scenario
from consentry.domain.scenarios import run as run_rules
from consentry.domain.values import parse_name
from consentry.forms.scenarios import read_scenario, schema_text
from consentry.forms.yaml import line_of
from consentry.ops.logs import set_up_logs
from consentry.wire.jurisdictions import iso_jurisdictions

EXIT_FAILED = 1
EXIT_CANNOT_TELL = 2

app = typer.Typer(
    name="scenario",
    help="Run scenarios against the rules or the real stack.",
    no_args_is_help=True,
    add_completion=False,
)


class Engine(StrEnum):
    """The engine that answers: the pure rules, or broker, processor, table and trainer."""

    RULES = "rules"
    STACK = "stack"


class ScenarioFile(NamedTuple):
    """A scenario and the file it came from."""

    file: Path
    text: str
    scenario: Scenario


@app.command()
def run(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="Scenario files, or folders of them.")
    ],
    engine: Annotated[
        Engine, typer.Option(help="The pure rules, or the real stack.")
    ] = Engine.RULES,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON on standard output.")
    ] = False,
    jobs: Annotated[
        int, typer.Option(min=1, max=16, help="Scenarios at a time with --engine stack.")
    ] = 3,
    directory: Annotated[
        Path, typer.Option("--dir", help="Where --engine stack keeps its own stack while it runs.")
    ] = Path(".consentry/scenarios"),
) -> None:
    """Run scenarios against the rules or the real stack.

    With --engine stack the events go through Kafka, the processor and Redis to a subscribed
    trainer: on the stack that CONSENTRY_KAFKA_BOOTSTRAP and its like name, else on the local stack
    that runs here, else on one that is started for it.

    Exit 0: all hold. 1: some do not. 2: a file cannot be read.
    """
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    read, errors = _read_all(paths)
    if errors:
        for error in errors:
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"consentry: {error}", style="red", markup=False
            )
        if as_json:
            _print_json([], [], errors)
        raise typer.Exit(EXIT_CANNOT_TELL)
    outcomes = (
        _by_rules(read) if engine is Engine.RULES else _on_the_stack(read, console, directory, jobs)
    )
    failed: list[tuple[ScenarioFile, Failure]] = []
    for one, failures, seconds in outcomes:
        _show(console, one, failures, seconds)
        failed += [(one, failure) for failure in failures]
    count = sum(len(one.scenario.expect) for one in read)
    decisions = f"[red]{len(failed)} did not hold.[/]" if failed else "[green]All hold.[/]"
    console.print(
        f"{_counted(len(read), 'scenario')}, {_counted(count, 'expectation')}. {decisions}"
    )
    if as_json:
        _print_json(read, failed, [])
    raise typer.Exit(EXIT_FAILED if failed else 0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the scenario, such as hong-kong-pause.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default: NAME.yaml. '-' prints it."),
    ] = None,
) -> None:
    """Write a new scenario that holds, to be changed into your own."""

    template = (files("consentry_schemas") / "forms" / "scenario.template.yaml").read_text()
    text = template.replace("my-scenario", parse_name(name, what="scenario"))
    if output == Path("-"):
        typer.echo(text, nl=False)
        return
    target = output or Path(f"{name}.yaml")
    try:
        with target.open("x") as file:
            file.write(text)
    except OSError as error:
        raise InvalidInput(
            f"The file {str(target)!r} cannot be written ({type(error).__name__}).",
            code="input.file",
            fix="name another with --output; an existing file is never overwritten",
        ) from error
    typer.echo(f"{target} written. Run it: consentry scenario run {target}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors that check while you write."""
    typer.echo(schema_text(), nl=False)


def _read_all(paths: Sequence[Path]) -> tuple[list[ScenarioFile], list[str]]:
    """The scenarios, and what is wrong with the files that hold none."""

    read: list[ScenarioFile] = []
    errors: list[str] = []
    for path in _expanded(paths):
        try:
            read.append(_read(path))
        except ConsentryError as error:
            errors.append(str(error))
    if not read and not errors:
        errors.append(
            f"There is no *.yaml file in {', '.join(map(str, paths))}. [input.file] Fix: name "
            "scenario files"
        )
    return read, errors


def _expanded(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(
                found for found in path.iterdir() if found.suffix in (".yaml", ".yml")
            )
        else:
            yield path


def _read(path: Path) -> ScenarioFile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"The scenario file {str(path)!r} cannot be read ({type(error).__name__}).",
            code="input.file",
            fix="name a readable UTF-8 text file",
        ) from error
    return ScenarioFile(path, text, read_scenario(text, file=str(path)))


Outcome = tuple[ScenarioFile, "tuple[Failure, ...]", float]


def _by_rules(read: Sequence[ScenarioFile]) -> Iterator[Outcome]:
    return _timed(read, lambda _, scenario: run_rules(scenario, iso_jurisdictions()))


def _on_the_stack(
    read: Sequence[ScenarioFile], console: Console, directory: Path, jobs: int
) -> Iterator[Outcome]:
    from consentry.cli.playground import playground  # noqa: PLC0415 - needs the extra local
    from consentry.cli.scenario.stack import clean_up, play  # noqa: PLC0415 - needs the extra local

    set_up_logs(style="text", level="error")
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that SIGTERM also leaves nothing behind
    with playground(directory, console, prefix="scenario", use_running=True) as (settings, work):
        is_own_stack = settings.local_dir == directory

        def play_in_own_namespace(number: int, scenario: Scenario) -> tuple[Failure, ...]:
            own = settings.model_copy(update={"namespace": f"{settings.namespace}-{number}"})
            directory = work / str(number)
            directory.mkdir()
            try:
                failures = play(scenario, own, directory)
            except BaseException:
                if not is_own_stack:
                    with suppress(Unavailable):  # the first error is the one to report
                        clean_up(own)
                raise
            if not is_own_stack:
                clean_up(own)
            return failures

        with ThreadPoolExecutor(jobs) as pool:
            # A thread for each scenario, `jobs` at a time; shown in the order of the arguments.
            running = [
                pool.submit(
                    lambda pair: next(_timed([pair[1]], play_in_own_namespace, pair[0])), pair
                )
                for pair in enumerate(read)
            ]
            try:
                for future in running:
                    yield future.result()
            finally:
                for future in running:
                    future.cancel()


def _timed(
    read: Sequence[ScenarioFile],
    run_one: Callable[[int, Scenario], tuple[Failure, ...]],
    first: int = 0,
) -> Iterator[Outcome]:
    for number, one in enumerate(read, start=first):
        started = monotonic()
        failures = run_one(number, one.scenario)
        yield one, failures, monotonic() - started


def _show(console: Console, one: ScenarioFile, failures: Sequence[Failure], seconds: float) -> None:
    count = _counted(len(one.scenario.expect), "expectation")
    took = f", {seconds:.1f} s" if seconds >= 0.1 else ""
    style = "red" if failures else "green"
    console.print(
        f"[{style}]{'FAILED' if failures else 'holds '}[/]  {one.scenario.name}  ({count}{took})"
    )
    for failure in failures:
        console.print(
            f"        {one.file}, line {line_of(one.text, failure.where)}: {failure.question}",
            markup=False,
        )
        console.print(f"          expected  {failure.expected}", markup=False)
        console.print(f"          got       {failure.got}", markup=False)
        for sentence in failure.because:
            console.print(f"          because   {sentence}", markup=False)


def _print_json(
    read: Sequence[ScenarioFile],
    failed: Sequence[tuple[ScenarioFile, Failure]],
    errors: Sequence[str],
) -> None:
    result: dict[str, Any] = {
        "scenarios": len(read),
        "expectations": sum(len(one.scenario.expect) for one in read),
        "failed": [
            {
                "scenario": one.scenario.name,
                "file": str(one.file),
                "line": line_of(one.text, failure.where),
                "where": failure.where,
                "question": failure.question,
                "expected": failure.expected,
                "got": failure.got,
                "because": list(failure.because),
            }
            for one, failure in failed
        ],
    }
    typer.echo(json.dumps(result | ({"errors": list(errors)} if errors else {})))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
