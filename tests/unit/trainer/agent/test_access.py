"""Who gets to the agent, where it listens, and what one caller can take of it."""

from __future__ import annotations

import json
import socket
import stat
import threading
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from tests.sizes import PATIENCE
from tests.strategies import PURPOSE

from consentry.domain.errors import InvalidInput, Refused, UnsafeSetting
from consentry.ops.http.address import is_loopback
from consentry.ops.http.head_limits import HEAD_BYTES_MAX, HeadLimits
from consentry.ops.http.problems import Problem
from consentry.trainer.agent.guard import read_tokens
from consentry.trainer.agent.server import Listen
from consentry.trainer.agent.service import WorkPool

TOKEN = "correct-horse-battery-staple"  # noqa: S105 - of this test alone
STATUS = "/v1/status"


class TestTokens:
    @pytest.mark.parametrize(
        "given",
        [
            "",
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Basic {TOKEN}",
            "Bearer \u00e9",
        ],
    )
    def test_without_one_of_the_tokens_nothing_but_the_probes_answers(
        self, start: Any, given: str
    ) -> None:
        """An agent that listens on a network would tell anybody who has opted out."""
        agent = start(tokens=(TOKEN.encode(), b"a-newer-token-of-ours"))
        headers = {"Authorization": given} if given else {}

        for path in (
            STATUS,
            "/metrics",
            "/openapi.json",
            f"/v1/decide?member=anna&purpose={PURPOSE}",
            "/v1/events",
        ):
            answer = agent.call("GET", path, **headers)
            assert (answer.status, answer.data["code"]) == (401, "agent.token")
        assert agent.call("GET", "/healthz").status == 200

    def test_each_token_of_the_file_lets_in_whatever_the_host_is_called(self, start: Any) -> None:
        """While a token is replaced both are in use; and on a network the agent has another
        name.
        """
        agent = start(tokens=(TOKEN.encode(), b"a-newer-token-of-ours"))

        for token in (TOKEN, "a-newer-token-of-ours"):
            assert (
                agent.call("GET", STATUS, Authorization=f"Bearer {token}", Host="trainer-7").status
                == 200
            )

    def test_two_credentials_are_none(self, start: Any) -> None:
        """A proxy and we could each believe another one."""
        agent = start(tokens=(TOKEN.encode(),))
        line = f"Authorization: Bearer {TOKEN}\r\n"
        text = f"GET {STATUS} HTTP/1.1\r\nHost: localhost\r\n{line}{line}Connection: close\r\n\r\n"
        assert b" 401 " in agent.raw(text.encode()).splitlines()[0]

    @pytest.mark.parametrize(
        ("text", "mode"),
        [("", 0o600), ("short", 0o600), (f"{TOKEN}\n", 0o640), (f"{TOKEN} {TOKEN}", 0o600)],
    )
    def test_a_file_that_keeps_no_secret_is_refused_and_never_quoted(
        self, tmp_path: Path, text: str, mode: int
    ) -> None:
        """A short token is guessed, and one that others may read is theirs."""
        path = tmp_path / "tokens"
        path.write_text(text)
        path.chmod(mode)

        with pytest.raises(InvalidInput) as caught:
            read_tokens(path)
        assert TOKEN not in str(caught.value)

    def test_the_lines_of_a_file_are_its_tokens(self, tmp_path: Path) -> None:
        """Replacing a token must not need a moment in which none is right."""
        path = tmp_path / "tokens"
        path.touch(0o600)
        path.write_text(f"{TOKEN}\n\n a-newer-token-of-ours \n")
        assert read_tokens(path) == (TOKEN.encode(), b"a-newer-token-of-ours")
        with pytest.raises(InvalidInput):
            read_tokens(tmp_path / "none")


class TestHosts:
    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8790", "127.0.0.1.evil.example", "169.254.1.1", ""]
    )
    def test_a_name_that_somebody_else_made_point_here_is_refused(
        self, agent: Any, host: str
    ) -> None:
        """A page in a browser on this machine could otherwise read who opted out (DNS
        rebinding).
        """
        answer = agent.call("GET", STATUS, Host=host)
        assert (answer.status, answer.data["code"]) == (403, "agent.host")

    def test_a_page_of_another_site_is_refused(self, agent: Any) -> None:
        """A browser sends some requests without asking first."""
        assert agent.call("GET", STATUS, Origin="https://evil.example").status == 403
        assert agent.call("GET", STATUS, Origin="null").status == 403
        assert agent.call("GET", STATUS, Origin="http://localhost:3000").status == 200

    @pytest.mark.parametrize(
        "host", ["localhost", "localhost:1", "127.0.0.1:8790", "[::1]:8790", "127.0.0.2"]
    )
    def test_this_machine_by_any_of_its_names_is_not(self, agent: Any, host: str) -> None:
        """Each language's client writes it in its own way."""
        assert agent.call("GET", STATUS, Host=host).status == 200

    @pytest.mark.parametrize(
        "text", ["example.org", "0" + ".0" * 3, "::", "10.0.0.1", "", "localhost.evil", "127.1x"]
    )
    def test_only_loopback_is_loopback(self, text: str) -> None:
        """0.0.0.0 is every address of the machine."""
        assert not is_loopback(text)


class TestListen:
    @pytest.mark.parametrize(
        "text", ["", "8790", ":8790", "localhost", "localhost:x", "localhost:70000", "unix:"]
    )
    def test_what_is_no_address_is_refused(self, text: str) -> None:
        """A guess could listen on every address."""
        with pytest.raises(InvalidInput):
            Listen.parse(text)

    def test_an_address_that_others_reach_needs_a_token_file(self) -> None:
        """Who listens on 0.0.0.0 to make it work tells the whole network."""
        for text in ("0.0.0.0:1", "[::]:1", "10.1.2.3:1", "trainer:1"):
            with pytest.raises(UnsafeSetting):
                Listen.parse(text).check(has_tokens=False)
            Listen.parse(text).check(has_tokens=True)
        for text in ("127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/tmp/x.sock"):
            Listen.parse(text).check(has_tokens=False)

    def test_a_port_that_is_taken_is_told(self) -> None:
        """A second agent must not seem to run."""
        first = Listen.parse("127.0.0.1:0").open()
        try:
            with pytest.raises(Refused) as caught:
                Listen("127.0.0.1", first.getsockname()[1]).open()
            assert caught.value.code == "agent.address"
        finally:
            first.close()

    def test_a_unix_socket_answers_its_user_alone_and_goes_with_the_agent(
        self, start: Any, tmp_path: Path
    ) -> None:
        """Others on the machine have no business with it; and a file left behind stops the next
        start.
        """
        path = tmp_path / "agent.sock"
        agent = start(path=path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            connection.sendall(
                f"GET {STATUS} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode()
            )
            assert b" 200 " in connection.recv(65_536).splitlines()[0]
        with pytest.raises(Refused):
            Listen(path=path).open()
        agent.stop()
        agent.stop = lambda: None
        assert not path.exists()

    def test_the_socket_of_a_killed_agent_gives_way_and_a_file_does_not(
        self, tmp_path: Path
    ) -> None:
        """After kill -9 nobody cleans up; and whoever mistypes a path must not lose a file."""
        path = tmp_path / "agent.sock"
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(path))
        listen = Listen(path=path)
        listen.close(listen.open())

        path.write_text("precious")
        with pytest.raises(Refused):
            listen.open()
        assert path.read_text() == "precious"


class TestLimits:
    def test_more_requests_than_places_are_told_to_come_again(
        self, start: Any, monkeypatch: Any
    ) -> None:
        """Without a bound a hundred callers take the memory of the job that trains."""
        agent = start()
        protocol = agent.server.config.app
        protocol._most = {False: 1, True: 1}
        agent.follower.hooks.begin()
        slow = threading.Thread(
            target=agent.call,
            args=("GET", f"/v1/decide?member=anna&purpose={PURPOSE}&at_least=later&wait=10"),
        )
        slow.start()
        until = monotonic() + PATIENCE * 10
        while not protocol._now[False] and monotonic() < until:
            sleep(0.01)

        answer = agent.call("GET", STATUS)

        assert (answer.status, answer.data["code"]) == (503, "limit.concurrency")
        agent.follower.reached.add("later")
        slow.join(20)
        assert agent.call("GET", STATUS).status == 200

    def test_a_call_that_takes_too_long_keeps_its_place_until_it_ends(self) -> None:
        """Ten callers who give up must not leave ten threads and ten new places."""
        import asyncio

        free = threading.Event()

        async def ask() -> list[str]:
            work = WorkPool("test", threads=1, most=1, seconds=0.05)
            codes = []
            for _ in range(2):
                try:
                    await work.run(lambda: free.wait(10))
                except Problem as problem:
                    codes.append(problem.message)
            free.set()
            while work._now:
                await asyncio.sleep(0.01)
            codes.append(str(await work.run(lambda: "free")))
            work.close()
            return codes

        late, busy, last = asyncio.run(ask())
        assert "within" in late
        assert "already" in busy
        assert last == "free"

    def test_a_head_that_comes_too_slowly_is_answered_408_and_ended(
        self, start: Any, monkeypatch: Any
    ) -> None:
        """A few hundred idle connections would keep everybody else out."""
        monkeypatch.setattr(HeadLimits, "head_seconds", 0.3)
        agent = start()

        assert agent.raw(b"") == b""
        head, _, body = agent.raw(b"GET / HTTP/1.1\r\nHost: loc").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["code"] == "input.slow"

    def test_a_head_that_is_too_large_is_answered_431_and_ended(self, start: Any) -> None:
        """Each such connection could fill the memory of the job that trains."""
        agent = start()
        start_of_head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "

        # One byte beyond the limit: with more, bytes that nobody reads could reset the connection.
        answer = agent.raw(start_of_head.ljust(HEAD_BYTES_MAX + 1, b"x"))

        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert json.loads(body)["code"] == "input.head_too_large"

    def test_a_slow_answer_on_a_kept_connection_is_not_cut_off(
        self, start: Any, monkeypatch: Any
    ) -> None:
        """The time is for heads: a question that waits for freshness may take longer."""
        monkeypatch.setattr(HeadLimits, "head_seconds", 0.2)
        agent = start()
        agent.follower.hooks.begin()
        path = f"/v1/decide?member=anna&purpose={PURPOSE}&at_least=later&wait=1"

        assert agent.call("GET", path).data["reason"] == "STALE"

    def test_the_agent_ends_though_somebody_reads_events(self, start: Any) -> None:
        """A trainer that follows must not hold up the end of its sidecar."""
        agent = start()
        agent.follower.hooks.begin()
        with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as connection:
            connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200" in connection.recv(65_536)
            started = monotonic()
            agent.stop()
            agent.stop = lambda: None
            assert monotonic() - started < 9, "not after the time that it is given to end"


def test_nothing_of_the_gateway_or_a_server_is_loaded_with_the_client() -> None:
    """A trainer installs the client, and not a web server."""
    import subprocess
    import sys

    code = (
        "import sys, consentry.trainer.client, consentry.trainer.checking.check\n"
        "print([name for name in ('fastapi', 'uvicorn', 'starlette', 'redis') if name in "
        "sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
