"""docs/trainers.md, "Other languages: the agent", "Hooks in Python" and "Checking data sets in CI"."""

from __future__ import annotations

import http.client
import json
import shlex
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.pages import INTERPRETERS, Page, page_world, run_program, run_snippet
from tests.stack import Running, World, lives_in, opted_out

from consentry.local.stack import LocalStack
from consentry.ops.settings import Settings

pytestmark = pytest.mark.stack

PAGE = Page("docs/trainers.md")
AGENT, HOOKS, CI = "Other languages: the agent", "Hooks in Python", "Checking data sets in CI"
LINES_MAX = 40
BRANCH = Path("data", "training", "main")
"""The branch of the data as lakeFS mounts it: repository, then branch."""


@pytest.fixture
def consentry_world(shared: LocalStack, tmp_path: Path) -> Iterator[World]:
    """The namespace that the page's snippets use: c:1 may be used, c:2 may not."""
    (tmp_path / BRANCH / "posts").mkdir(parents=True)
    (tmp_path / "data" / "README.md").write_text("no data\n")
    (tmp_path / BRANCH / "posts" / "a.csv").write_text("author\nc:1\n")
    with page_world(shared, tmp_path, lives_in("c:1"), lives_in("c:2"), opted_out("c:2")) as world:
        yield world


def bash(world: World, text: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run lines of a shell in the directory of the data."""
    environment = world.environment() | more
    program = [*INTERPRETERS["bash"], text]
    return run_program(program, environment=environment, directory=world.directory)


def start_agent(world: World, *command: str) -> tuple[Running, str]:
    """Start an agent on a free port, and return it with its URL once it is ready."""
    agent = world.start(*command, AGENT_LISTEN="127.0.0.1:0")
    agent.wait_ready()
    return agent, str(agent.lines("agent")[0]["url"])


def test_the_agent_and_the_hooks_answer_as_the_page_says(consentry_world: World) -> None:
    """A trainer in another language has this page alone to go by."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")  # the snippets call it
    world = consentry_world
    start, ask = PAGE.snippets(AGENT, "bash")
    command = shlex.split(start.text.replace(" data", f" {world.directory / 'data'}"))
    _, url = start_agent(world, *command[1:])

    # The page names the default address; the agent of this test listens on a free port.
    default = f"http://{Settings.model_fields['agent_listen'].default}"
    assert ask.text.splitlines()[0] == f"AGENT={default}"
    answers = bash(world, ask.text.replace(default, url))
    assert answers.returncode == 0, answers.stderr
    assert '"allowed": true' in answers.stdout
    assert '"mask": [true, false, false]' in answers.stdout
    assert '"reasons": ["DEFAULT_ON", "OPTED_OUT", "QUARANTINED"]' in answers.stdout
    assert "event: status" in answers.stdout

    [hooks] = PAGE.snippets(HOOKS, "python")
    run_snippet(hooks, environment=world.environment(), directory=world.directory)


def test_the_checks_pass_clean_data_and_stop_what_is_not(consentry_world: World) -> None:
    """A recipe that always passes is worse than none."""
    world = consentry_world
    world.ok("bundle", "keys", "init", "bundles.key")
    world.ok("bundle", "build", "bundles", "--key", "bundles.key")
    [plain] = PAGE.snippets(CI, "bash")
    yaml = YAML(typ="safe")
    workflow, hooks, action = (yaml.load(snippet.text) for snippet in PAGE.snippets(CI, "yaml"))
    steps = workflow["jobs"]["consent"]["steps"]
    [in_ci] = [step["run"] for step in steps if "check" in step.get("run", "")]
    [hook] = hooks["repos"][0]["hooks"]
    posts = BRANCH / "posts" / "a.csv"
    before_commit = f"{hook['entry']} {posts}"
    _, url = start_agent(
        world, "agent", "--name", "ranker", "--root", str(world.directory / "data")
    )

    for is_clean in (True, False):
        for line in (plain.text, in_ci, before_commit):
            check = bash(world, line, BUNDLES="bundles")
            assert check.returncode == (0 if is_clean else 1), (line, check.stdout, check.stderr)
        assert lakefs_commits(url, action) is is_clean
        with (world.directory / posts).open("a") as file:
            file.write("c:2\n")


def lakefs_commits(url: str, action: dict[str, Any]) -> bool:
    """Return True if lakeFS would commit: it posts its event to the hook, and only 2xx lets it."""
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
        headers = {"Content-Type": "application/json"}
        connection.request("POST", f"{path}?{query}", json.dumps(event), headers)
        response = connection.getresponse()
        report = json.loads(response.read())
    finally:
        connection.close()
    is_clean = 200 <= response.status < 300
    assert is_clean or report["code"] == "check.violations"
    return is_clean


def test_the_sections_are_short() -> None:
    """A page that nobody reads to its end helps nobody."""
    for section in (AGENT, HOOKS, CI):
        assert len(PAGE.lines(section)) <= LINES_MAX, section
