"""`consentry scenario …`: run scenarios by the rules or the real stack, or write a new one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from importlib.resources import files
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from consentry.domain.errors import ConsentryError, InvalidInput
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
    """The `--engine` of `consentry scenario run`: the pure rules, or the real stack.

    The stack is broker, processor, table and trainer.
    """

    RULES = "rules"
    STACK = "stack"


class ScenarioFile(NamedTuple):
    """A scenario given to `consentry scenario`, and the file it came from."""

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
    scenarios, errors = _read_all(paths)
    if errors:
        for error in errors:
            Console(stderr=True, highlight=False, soft_wrap=True).print(
                f"consentry: {error}", style="red", markup=False
            )
        if as_json:
            _print_json([], [], errors)
        raise typer.Exit(EXIT_CANNOT_TELL)
    if engine is Engine.RULES:
        outcomes = _run_by_rules(scenarios)
    else:
        outcomes = _run_on_stack(scenarios, console, directory, jobs)
    failed: list[tuple[ScenarioFile, Failure]] = []
    for outcome in outcomes:
        _show(console, outcome)
        failed += [(outcome.file, failure) for failure in outcome.failures]
    expectations = sum(len(file.scenario.expect) for file in scenarios)
    verdict = "[green]All hold.[/]"
    if failed:
        verdict = f"[red]{len(failed)} did not hold.[/]"
    counts = f"{_counted(len(scenarios), 'scenario')}, {_counted(expectations, 'expectation')}"
    console.print(f"{counts}. {verdict}")
    if as_json:
        _print_json(scenarios, failed, [])
    if failed:
        raise typer.Exit(EXIT_FAILED)
    raise typer.Exit(0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the scenario, such as hong-kong-pause.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default: NAME.yaml. '-' prints it."),
    ] = None,
) -> None:
    """Write a new scenario file that holds, to be changed into your own."""

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
    """Print the JSON Schema of scenario files, for editors that check them.

    They check while you write.
    """
    typer.echo(schema_text(), nl=False)


def _read_all(paths: Sequence[Path]) -> tuple[list[ScenarioFile], list[str]]:
    """Return the scenarios, and the errors of the files that hold none."""
    scenarios: list[ScenarioFile] = []
    errors: list[str] = []
    for path in _expand(paths):
        try:
            scenarios.append(_read(path))
        except ConsentryError as error:
            errors.append(str(error))
    if not scenarios and not errors:
        errors.append(
            f"There is no *.yaml file in {', '.join(map(str, paths))}. [input.file] Fix: name "
            "scenario files"
        )
    return scenarios, errors


def _expand(paths: Sequence[Path]) -> Iterator[Path]:
    """Give each file, and the YAML files of each folder in the order of their names."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for file in sorted(path.iterdir()):
            if file.suffix in (".yaml", ".yml"):
                yield file


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


class ScenarioOutcome(NamedTuple):
    """The result of one scenario that `consentry scenario run` has run.

    It has the expectations that did not hold, and how long it took.
    """

    file: ScenarioFile
    failures: tuple[Failure, ...]
    seconds: float


def _run_by_rules(scenarios: Sequence[ScenarioFile]) -> Iterator[ScenarioOutcome]:
    for file in scenarios:
        yield _timed(file, lambda scenario: run_rules(scenario, iso_jurisdictions()))


def _run_on_stack(
    scenarios: Sequence[ScenarioFile], console: Console, directory: Path, jobs: int
) -> Iterator[ScenarioOutcome]:
    """Run scenarios `jobs` at a time, and give their outcomes in the order of the arguments."""
    # By the rules alone neither is needed, and neither are the packages of the extra local.
    from consentry.cli.playground import playground  # noqa: PLC0415
    from consentry.cli.scenario.stack import play_alone  # noqa: PLC0415

    set_up_logs(style="text", level="error")
    # SIGTERM raises KeyboardInterrupt, so that it leaves nothing behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        playground(directory, console, prefix="scenario", use_running=True) as (settings, work),
        ThreadPoolExecutor(jobs) as pool,
    ):
        is_own_stack = settings.local_dir == directory
        futures: list[Future[ScenarioOutcome]] = []
        for number, file in enumerate(scenarios):
            play = partial(
                play_alone, settings=settings, work=work, number=number, cleans_up=not is_own_stack
            )
            futures.append(pool.submit(_timed, file, play))
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _timed(
    file: ScenarioFile, run_one: Callable[[Scenario], tuple[Failure, ...]]
) -> ScenarioOutcome:
    started = monotonic()
    failures = run_one(file.scenario)
    return ScenarioOutcome(file, failures, monotonic() - started)


def _show(console: Console, outcome: ScenarioOutcome) -> None:
    file, failures, seconds = outcome
    count = _counted(len(file.scenario.expect), "expectation")
    duration = ""
    if seconds >= 0.1:
        duration = f", {seconds:.1f} s"
    label = "[green]holds [/]"
    if failures:
        label = "[red]FAILED[/]"
    console.print(f"{label}  {file.scenario.name}  ({count}{duration})")
    for failure in failures:
        line = line_of(file.text, failure.where)
        texts = [
            f"        {file.file}, line {line}: {failure.question}",
            f"          expected  {failure.expected}",
            f"          got       {failure.got}",
        ]
        texts += [f"          because   {sentence}" for sentence in failure.because]
        for text in texts:
            console.print(text, markup=False)


def _print_json(
    scenarios: Sequence[ScenarioFile],
    failed: Sequence[tuple[ScenarioFile, Failure]],
    errors: Sequence[str],
) -> None:
    expectations = sum(len(file.scenario.expect) for file in scenarios)
    failures = [_failure_fields(file, failure) for file, failure in failed]
    result: dict[str, Any] = {
        "scenarios": len(scenarios),
        "expectations": expectations,
        "failed": failures,
    }
    if errors:
        result["errors"] = list(errors)
    typer.echo(json.dumps(result))


def _failure_fields(file: ScenarioFile, failure: Failure) -> dict[str, Any]:
    return {
        "scenario": file.scenario.name,
        "file": str(file.file),
        "line": line_of(file.text, failure.where),
        "where": failure.where,
        "question": failure.question,
        "expected": failure.expected,
        "got": failure.got,
        "because": list(failure.because),
    }


def _counted(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}s"
