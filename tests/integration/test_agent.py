"""The agent on the real stack, driven by a program in another language; the hooks of a client; the
check of files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.stack import (
    PURPOSE,
    Running,
    World,
    allowed,
    erased,
    lives_in,
    opted_out,
    pause,
    wait_for,
)

from consentry.domain.controls import Reach
from consentry.domain.orders import PurgeOrder
from consentry.trainer.hooks import Exclusion, ExclusionCause

pytestmark = pytest.mark.stack

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "agent_client.mjs"
MEMBERS = ("anna", "bert", "carl")


class NodeTrainer:
    """docs/examples/agent_client.mjs as it runs; each line that it prints is one answer it acts
    by.
    """

    def __init__(self, url: str, token: str) -> None:
        node = shutil.which("node")
        if node is None:
            pytest.skip("there is no node on this machine")  # the client is written for it
        self.process = subprocess.Popen(
            [node, str(EXAMPLE), url, PURPOSE, *MEMBERS],
            env={**os.environ, "CONSENTRY_AGENT_TOKEN": token},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def answers(self) -> list[dict[str, Any]]:
        """What it was told, in order."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    @property
    def last(self) -> dict[str, Any]:
        """What it acts by now."""
        return self.answers[-1] if self.answers else {}

    def wait(self, what: str, seconds: float = 20.0, **expected: Any) -> dict[str, Any]:
        """The last answer, once it is as expected."""

        def look() -> bool:
            assert self.process.poll() is None, "".join(self.lines)
            return expected.items() <= self.last.items()

        try:
            wait_for(look, what, seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{''.join(self.lines)}") from None
        return self.last


@contextmanager
def node_trainer(url: str, token: str) -> Iterator[NodeTrainer]:
    """The example while it runs; ended by its process id."""
    trainer = NodeTrainer(url, token)
    try:
        yield trainer
    finally:
        trainer.process.kill()
        trainer.process.wait(10)
        if trainer.process.stdout is not None:
            trainer.process.stdout.close()


def start_agent(world: World, *more: str) -> tuple[Running, str]:
    """An agent that answers, and its address."""
    agent = world.start("agent", "--name", "node-trainer", "--listen", "127.0.0.1:0", *more)
    agent.wait_ready()
    return agent, str(agent.lines("agent")[0]["url"])


def test_a_trainer_in_javascript_leaves_out_who_opts_out_and_everybody_when_the_broker_is_gone(
    world: World, tmp_path: Path
) -> None:
    """Whoever trains in another language would otherwise go by a list from yesterday."""
    world.processor().wait_ready()
    world.open_policy()
    client = world.client()
    world.produce(*map(lives_in, MEMBERS))
    wait_for(lambda: all(allowed(client, member) for member in MEMBERS), "all allowed")
    secret = tmp_path / "token"
    secret.touch(0o600)
    secret.write_text("correct-horse-battery-staple\n")
    agent, url = start_agent(world, "--token-file", str(secret))

    with node_trainer(url, "correct-horse-battery-staple") as trainer:
        trainer.wait("everybody", fresh=True, allowed=["anna", "bert", "carl"])
        assert trainer.answers[0] == {"decision": "DEFAULT_ON", "allowed": True}

        world.produce(opted_out("bert"))
        trainer.wait("bert out", after="exclusion", fresh=True, allowed=["anna", "carl"])

        world.control(pause("hk-2024", "US"))
        trainer.wait("all paused", after="pause", fresh=True, allowed=[])

        world.stack.stop_service("kafka")
        trainer.wait("stale", seconds=40, after="freshness", fresh=False, allowed=[])
        assert agent.page("/healthz")[0] == 200, "a broker that is away must restart nothing"
        assert agent.page("/readyz")[0] == 503

    assert agent.metric("consentry_decisions_total", reason="STALE") >= 3
    assert "anna" not in agent.text()
    assert "correct-horse" not in agent.text()
    assert agent.stop() in (0, -15), agent.text()[-3000:]


def test_hooks_tell_an_opt_out_a_pause_and_a_purge_order_and_check_finds_the_rows(
    world: World, tmp_path: Path
) -> None:
    """A cache, or a feature store, that is not told serves who opted out."""
    world.processor().wait_ready()
    world.open_policy()
    world.produce(*map(lives_in, MEMBERS))
    client = world.client()
    found: list[Exclusion] = []
    orders: list[PurgeOrder] = []
    client.on_exclusion(purpose=PURPOSE)(found.append)
    client.on_purge_order(orders.append)
    wait_for(lambda: all(allowed(client, member) for member in MEMBERS), "all allowed")
    (tmp_path / "posts.jsonl").write_text('{"author": "anna"}\n{"author": "bert"}\n')
    (tmp_path / "clean.csv").write_text("author,text\ncarl,hello\n")
    check = [
        "check",
        str(tmp_path / "posts.jsonl"),
        str(tmp_path / "clean.csv"),
        "--member-col",
        "author",
        "--json",
    ]
    assert world.cli(*check).returncode == 0

    world.produce(opted_out("bert"))
    wait_for(lambda: any("bert" in one.members for one in found), "the opt-out is told")
    done = world.cli(*check)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["files"][0]["counts"] == {"OPTED_OUT": 1, "DEFAULT_ON": 1}

    world.produce(erased("anna"))
    world.control(pause("hk-2024", "US", reach=Reach.PRIOR_AND_FUTURE))
    wait_for(lambda: any(one.cause is ExclusionCause.CONTROL for one in found), "the pause is told")
    wait_for(lambda: any("anna" in one.members for one in found), "the erasure is told")
    wait_for(
        lambda: {order.because.value for order in orders} == {"ERASURE", "PAUSE"},
        "the orders are told",
    )
    missing = world.cli("check", str(tmp_path), "--member-col", "nobody")
    assert missing.returncode == 2
    assert "'author'" in missing.stdout
