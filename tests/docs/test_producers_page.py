"""docs/producers.md is a promise to whoever reads it first: every snippet on it is run as it
stands.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.pages import Snippet, page_world, snippets
from tests.postgres import DATABASE, USER, postgres_server
from tests.stack import World, wait_for

from consentry.domain.values import Choice
from consentry.local.stack import LocalStack
from consentry.wire.events import read_event

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "producers.md"
LINES_MAX = 170
SDK_LINES_MAX = 10
RUNNERS = ("python", "bash")
OWN_TEST = ("Over HTTP",)
"""Sections whose snippets another test runs, with the server that they need."""


def run(snippet: Snippet, environment: dict[str, str], *, directory: Path = ROOT) -> str:
    """Run one snippet as its reader would; what it printed. Fails with its line if it does."""
    program = (
        [sys.executable, "-c"]
        if snippet.language == "python"
        else ["bash", "-euo", "pipefail", "-c"]
    )
    done = subprocess.run(
        [*program, snippet.text],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, (
        f"{PAGE.name}:{snippet.line}: {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    )
    return done.stdout


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the page's snippets use without naming it."""
    with page_world(shared, tmp_path) as world:
        yield world


def test_the_page_is_short_and_every_block_on_it_can_be_run() -> None:
    """A page that nobody reads to its end, or a snippet that nobody runs, helps nobody."""
    text = PAGE.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    found = snippets(text)
    assert {snippet.language for snippet in found} <= {*RUNNERS, "json"}
    ours = [snippet for snippet in found if "consentry.producer" in snippet.text]
    assert len(ours) >= 4
    assert [
        snippet.line for snippet in ours if len(snippet.text.splitlines()) > SDK_LINES_MAX
    ] == []


def test_what_the_page_links_to_is_there() -> None:
    """A newcomer who meets a dead link asks somebody, and is told something else."""
    text = PAGE.read_text()
    headings = {
        "#" + re.sub(r"[^a-z0-9-]", "", title.lower().replace(" ", "-"))
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    for target in targets:
        assert target in headings if target.startswith("#") else (PAGE.parent / target).exists(), (
            target
        )


@pytest.mark.stack
def test_every_snippet_runs_and_every_choice_in_it_is_in_the_log(
    consentry_world: World, tmp_path: Path
) -> None:
    """Whoever copies a snippet that does not work believes that members' choices are being sent."""
    world = consentry_world
    programs = tmp_path / "bin"
    programs.mkdir()
    jars = _java(programs)
    with postgres_server() as directory:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CONSENTRY_", "PG"))
        } | {
            "CONSENTRY_KAFKA_BOOTSTRAP": world.stack.addresses.kafka,
            "CONSENTRY_REGISTRY_URL": world.stack.addresses.registry_url,
            "JARS": jars,
            "PATH": os.pathsep.join(
                [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
            ),
            "PGHOST": str(directory),
            "PGUSER": USER,
            "PGDATABASE": DATABASE,
        }
        printed = [
            run(snippet, environment)
            for snippet in snippets(PAGE.read_text())
            if snippet.language in RUNNERS and snippet.section not in OWN_TEST
        ]
    assert any("999 accepted\n" in text for text in printed)
    assert "1 sent\n" in printed
    found = {}
    for stored in world.log():
        event = read_event(stored.value, stored.key or b"", world.catalog)
        found[event.member] = getattr(event, "choice", "ERASED")
    assert found == {
        **{f"m:{number}": "OPT_OUT" for number in (1, 3, 4, 5)},
        "m:2": "OPT_IN",
        **{f"i:{number}": "ERASED" for number in range(999)},
    }
    world.processor()
    client = world.client()
    wait_for(lambda: len(client.snapshot.records) == len(found), "everybody folded", seconds=40)
    assert not [
        member
        for member in found
        if client.decide(member, purpose="genai_training").reason.value == "QUARANTINED"
    ]


@pytest.mark.stack
def test_the_snippets_over_http_run_against_a_gateway(world: World, tmp_path: Path) -> None:
    """A service without a Kafka client has nothing else to go by."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")  # the snippets call it
    world.processor().wait_ready()
    world.open_policy()
    gateway = world.start("gateway", "--dev", "--port", "0")
    url = str(wait_for(lambda: gateway.lines("gateway"), "the gateway", seconds=40)[0]["url"])
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("CONSENTRY_")
    }
    environment |= {"CONSENTRY_GATEWAY_URL": url, "KEY": "dev:web:producer"}
    [snippet] = [one for one in snippets(PAGE.read_text()) if one.section == "Over HTTP"]
    printed = run(snippet, environment, directory=tmp_path)
    assert printed.count('"state": "accepted"') == 2, printed
    assert '"summary":{"accepted":2,"invalid":0' in printed
    assert '"version": 1' in (tmp_path / "decision.json").read_text(), (
        "the decision knew of the opt-out"
    )
    events = [read_event(stored.value, stored.key or b"", world.catalog) for stored in world.log()]
    found = [(event.member, type(event).__name__, getattr(event, "choice", "")) for event in events]
    assert sorted(map(str, found)) == sorted(
        map(
            str,
            [
                ("m:6", "ConsentChanged", Choice.OPT_OUT),
                ("m:6", "ConsentChanged", Choice.OPT_IN),
                ("m:7", "ConsentChanged", Choice.OPT_OUT),
                ("m:7", "MemberRelocated", ""),
            ],
        )
    )
    [opt_in] = [event for event in events if getattr(event, "choice", "") is Choice.OPT_IN]
    assert getattr(opt_in, "observed_version", None) == 1


def _java(programs: Path) -> str:
    """Put java, and javac where there is none, among the programs; the class path of the broker's
    jars and Avro.
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
