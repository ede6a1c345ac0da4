"""docs/producers.md: every snippet on it runs as it stands."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pages import ROOT, Page, page_world, run_snippet
from tests.postgres import DATABASE, USER, postgres_server
from tests.stack import World, wait_for

from consentry.domain.events import MemberEvent
from consentry.domain.values import Choice, Reason
from consentry.local.stack import LocalStack
from consentry.wire.events import read_event

PAGE = Page("docs/producers.md")
LINES_MAX = 170
SDK_LINES_MAX = 10
RUNNERS = ("python", "bash")
OWN_TEST = ("Over HTTP",)
"""Sections whose snippets another test runs, with the server that they need."""


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the page's snippets use without naming it."""
    with page_world(shared, tmp_path) as world:
        yield world


def test_the_page_is_short_and_every_block_on_it_can_be_run() -> None:
    """A page that nobody reads to its end, or a snippet that nobody runs, helps nobody."""
    assert len(PAGE.text.splitlines()) <= LINES_MAX
    snippets = PAGE.snippets()
    assert {snippet.language for snippet in snippets} <= {*RUNNERS, "json"}
    sdk = [snippet for snippet in snippets if "consentry.producer" in snippet.text]
    assert len(sdk) >= 4
    too_long = [snippet.line for snippet in sdk if len(snippet.text.splitlines()) > SDK_LINES_MAX]
    assert too_long == []


@pytest.mark.stack
def test_every_snippet_runs_and_every_choice_in_it_is_in_the_log(
    consentry_world: World, tmp_path: Path
) -> None:
    """Whoever copies a snippet that does not work believes that members' choices are being sent."""
    world = consentry_world
    programs = tmp_path / "bin"
    programs.mkdir()
    jars = _java(programs)
    with postgres_server() as postgres:
        environment = _plain_environment() | {
            "CONSENTRY_KAFKA_BOOTSTRAP": world.stack.addresses.kafka,
            "CONSENTRY_REGISTRY_URL": world.stack.addresses.registry_url,
            "JARS": jars,
            "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
            "PGHOST": str(postgres),
            "PGUSER": USER,
            "PGDATABASE": DATABASE,
        }
        outputs = [
            run_snippet(snippet, environment=environment, directory=ROOT).stdout
            for snippet in PAGE.snippets()
            if snippet.language in RUNNERS and snippet.section not in OWN_TEST
        ]
    assert any("999 accepted\n" in output for output in outputs)
    assert "1 sent\n" in outputs

    choices = {event.member: getattr(event, "choice", "ERASED") for event in _events_of(world)}
    opted_out = {f"m:{number}": "OPT_OUT" for number in (1, 3, 4, 5)}
    erased = {f"i:{number}": "ERASED" for number in range(999)}
    assert choices == {**opted_out, "m:2": "OPT_IN", **erased}

    world.processor()
    client = world.client()
    wait_for(lambda: len(client.snapshot.records) == len(choices), "everybody folded", seconds=40)
    reasons = [client.decide(member, purpose="genai_training").reason for member in choices]
    assert Reason.QUARANTINED not in reasons


@pytest.mark.stack
def test_the_snippets_over_http_run_against_a_gateway(world: World, tmp_path: Path) -> None:
    """A service without a Kafka client has nothing else to go by."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")  # the snippets call it
    world.processor().wait_ready()
    world.open_policy()
    gateway = world.start("gateway", "--dev", "--port", "0")
    url = str(wait_for(lambda: gateway.lines("gateway"), "the gateway", seconds=40)[0]["url"])
    environment = _plain_environment() | {"CONSENTRY_GATEWAY_URL": url, "KEY": "dev:web:producer"}

    [snippet] = PAGE.snippets("Over HTTP", "bash")
    output = run_snippet(snippet, environment=environment, directory=tmp_path).stdout

    assert output.count('"state": "accepted"') == 2, output
    assert '"summary":{"accepted":2,"invalid":0' in output
    decision = (tmp_path / "decision.json").read_text()
    assert '"version": 1' in decision, "the decision knew of the opt-out"
    events = _events_of(world)
    summaries = [
        (event.member, type(event).__name__, str(getattr(event, "choice", ""))) for event in events
    ]
    assert sorted(summaries) == [
        ("m:6", "ConsentChanged", "OPT_IN"),
        ("m:6", "ConsentChanged", "OPT_OUT"),
        ("m:7", "ConsentChanged", "OPT_OUT"),
        ("m:7", "MemberRelocated", ""),
    ]
    [opt_in] = [event for event in events if getattr(event, "choice", "") is Choice.OPT_IN]
    assert getattr(opt_in, "observed_version", None) == 1


def _plain_environment() -> dict[str, str]:
    """Return this process's environment without settings of ours or of PostgreSQL."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CONSENTRY_", "PG"))
    }


def _events_of(world: World) -> list[MemberEvent]:
    """Return every event in the log, in order."""
    return [read_event(stored.value, stored.key or b"", world.catalog) for stored in world.log()]


def _java(programs: Path) -> str:
    """Put java, and javac if there is none, among the programs.

    Returns the class path of the broker's jars and Avro.
    """
    from tests.integration.test_producers_foreign import ECJ, java_and_classpath

    from consentry.local.artifacts import fetch

    java, classpath = java_and_classpath()
    _script(programs / "java", f'exec {shlex.quote(java)} "$@"')
    if shutil.which("javac") is None:
        from tests.stack import cache_directory

        [ecj] = fetch([ECJ], cache=cache_directory())
        _script(programs / "javac", f'exec {shlex.quote(java)} -jar {shlex.quote(str(ecj))} "$@"')
    return classpath


def _script(path: Path, line: str) -> None:
    """Write a program of one line for the shell."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_example_policy_can_be_published() -> None:
    """It is the first file that a newcomer sends."""
    from consentry.domain.values import Micros
    from consentry.forms.controls import parse_policy_file

    text = (ROOT / "docs" / "examples" / "policy.yaml").read_text()
    policy = parse_policy_file(
        text, event_id=bytes(16), recorded_at=Micros(1_700_000_000_000_000), source="test"
    )
    assert {terms.purpose for terms in policy.terms} == {"genai_training"}
