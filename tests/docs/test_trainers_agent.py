"""docs/trainers.md, "Other languages: the agent", "Hooks in Python" and "Checking data sets in CI":
every line of them is run.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.pages import Snippet, page_world, snippets
from tests.stack import World, lives_in, opted_out

from consentry.local.stack import LocalStack
from consentry.ops.settings import Settings

pytestmark = pytest.mark.stack

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
AGENT, HOOKS, CI = "Other languages: the agent", "Hooks in Python", "Checking data sets in CI"
LINES_MAX = 40


def ours(section: str, language: str) -> list[Snippet]:
    """The snippets of a section in a language."""
    found = [
        one
        for one in snippets(PAGE.read_text())
        if (one.section, one.language) == (section, language)
    ]
    assert found
    return found


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the page's snippets use, with one member who may be used and one who may
    not.
    """
    (tmp_path / "data" / "training" / "main" / "posts").mkdir(parents=True)
    (tmp_path / "data" / "README.md").write_text("no data\n")
    (tmp_path / "data" / "training" / "main" / "posts" / "a.csv").write_text("author\nc:1\n")
    with page_world(shared, tmp_path, lives_in("c:1"), lives_in("c:2"), opted_out("c:2")) as world:
        yield world


def run(world: World, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run what a snippet says, where the data is."""
    environment = world.environment() | more
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command,
        env=environment,
        cwd=world.directory,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def bash(world: World, text: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run lines of a shell."""
    return run(world, "bash", "-euo", "pipefail", "-c", text, **more)


def test_the_agent_and_the_hooks_answer_as_the_page_says(consentry_world: World) -> None:
    """A trainer in another language has this page alone to go by."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")  # the snippets call it
    world = consentry_world
    start, ask = ours(AGENT, "bash")
    command = [
        part.replace("data", str(world.directory / "data")) for part in shlex.split(start.text)
    ]
    agent = world.start(*command[1:], AGENT_LISTEN="127.0.0.1:0")
    agent.wait_ready()
    url = str(agent.lines("agent")[0]["url"])

    # The page names the default address, and the test's agent listens where the system lets it.
    default = f"http://{Settings.model_fields['agent_listen'].default}"
    assert ask.text.splitlines()[0] == f"AGENT={default}"
    done = bash(world, ask.text.replace(default, url))
    assert done.returncode == 0, done.stderr
    assert '"allowed": true' in done.stdout
    assert '"mask": [true, false, false]' in done.stdout
    assert '"reasons": ["DEFAULT_ON", "OPTED_OUT", "QUARANTINED"]' in done.stdout
    assert "event: status" in done.stdout

    [hooks] = ours(HOOKS, "python")
    done = run(world, sys.executable, "-c", hooks.text)
    assert done.returncode == 0, done.stderr


def test_the_checks_pass_clean_data_and_stop_what_is_not(consentry_world: World) -> None:
    """A recipe that always passes is worse than none."""
    world = consentry_world
    world.ok("bundle", "keys", "init", "bundles.key")
    world.ok("bundle", "build", "bundles", "--key", "bundles.key")
    [plain] = ours(CI, "bash")
    workflow, hooks, action = (YAML(typ="safe").load(one.text) for one in ours(CI, "yaml"))
    [in_ci] = [
        step["run"]
        for step in workflow["jobs"]["consent"]["steps"]
        if "check" in step.get("run", "")
    ]
    [hook] = hooks["repos"][0]["hooks"]
    before_commit = f"{hook['entry']} data/training/main/posts/a.csv"
    agent = world.start(
        "agent",
        "--name",
        "ranker",
        "--root",
        str(world.directory / "data"),
        AGENT_LISTEN="127.0.0.1:0",
    )
    agent.wait_ready()
    url = str(agent.lines("agent")[0]["url"])

    for is_clean in (True, False):
        for line in (plain.text, in_ci, before_commit):
            done = bash(world, line, BUNDLES="bundles")
            assert done.returncode == (0 if is_clean else 1), (line, done.stdout, done.stderr)
        assert lakefs_commits(url, action) is is_clean
        with (world.directory / "data" / "training" / "main" / "posts" / "a.csv").open("a") as file:
            file.write("c:2\n")


def lakefs_commits(url: str, action: dict[str, Any]) -> bool:
    """Whether lakeFS would go on: it posts its event to each hook, and anything but 2xx stops
    it.
    """
    assert set(action["on"]) == {"pre-commit", "pre-merge"}
    [hook] = action["hooks"]
    assert hook["type"] == "webhook"
    path = urllib.parse.urlsplit(hook["properties"]["url"]).path
    query = urllib.parse.urlencode(hook["properties"]["query_params"], doseq=True)
    event = {
        "event_type": "pre-commit",
        "repository_id": "training",
        "branch_id": "main",
        "source_ref": "main",
    }
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
    try:
        connection.request(
            "POST", f"{path}?{query}", json.dumps(event), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        told = json.loads(answer.read())
    finally:
        connection.close()
    is_clean = 200 <= answer.status < 300
    assert is_clean or told["code"] == "check.violations"
    return is_clean


def test_the_sections_are_short() -> None:
    """A page that nobody reads to its end helps nobody."""
    for section in (AGENT, HOOKS, CI):
        lines = PAGE.read_text().split(f"## {section}\n")[1].split("\n## ")[0].strip().splitlines()
        assert len(lines) <= LINES_MAX, section
