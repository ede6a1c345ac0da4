"""The guard of the trainer's agent: it checks host and token, and bounds how many come in."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consentry.domain.errors import ConsentryError, InvalidInput
from consentry.ops.http.address import is_loopback
from consentry.ops.http.problems import Problem, respond_to
from consentry.trainer.agent.problems import fault

CONCURRENCY: Final = 64
STREAMS: Final = 64
EVENTS_PATH: Final = "/v1/events"
_OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
_TOKEN_LENGTH_MIN: Final = 16
_TOKENS_MAX: Final = 8
_LOG = structlog.get_logger(__name__)


def read_tokens(path: Path) -> tuple[bytes, ...]:
    """Return the tokens for callers of the trainer's agent from a file, one a line.

    Any of them lets in, so that a new one can be given out before the old one ends. Raises
    InvalidInput where the file cannot be read, others may read it, or a token is short; the error
    never shows a token.
    """
    try:
        mode = path.stat().st_mode
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_file(path, f"cannot be read ({type(error).__name__})") from error
    if mode & 0o077:
        raise _bad_file(path, "may be read by others on this machine")
    tokens = tuple(line.encode() for line in lines)
    if not 1 <= len(tokens) <= _TOKENS_MAX:
        raise _bad_file(path, f"has {len(tokens)} lines, not 1 to {_TOKENS_MAX}")
    for number, token in enumerate(tokens, start=1):
        if len(token) < _TOKEN_LENGTH_MIN or any(not 33 <= byte <= 126 for byte in token):
            raise _bad_file(
                path,
                f"has on line {number} fewer than {_TOKEN_LENGTH_MIN} characters, or strange ones",
            )
    return tokens


def _bad_file(path: Path, problem: str) -> InvalidInput:
    return InvalidInput(
        f"The token file {str(path)!r} {problem}.",
        code="agent.token_file",
        fix="make one: `(umask 077; openssl rand -hex 32 > FILE)`",
    )


class Guard:
    """ASGI: refuses calls that the trainer's agent may not let in; a fault becomes a problem.

    With `tokens` each request has to bring one. Without them it has to name this machine: a page in
    somebody's browser, whose own name points here, names itself (DNS rebinding). `checks_host` is
    False for an address that no browser reaches.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Sequence[bytes] = (),
        checks_host: bool = True,
        concurrency: int = CONCURRENCY,
        streams: int = STREAMS,
    ) -> None:
        self._app = app
        self._tokens = tuple(tokens)
        self._checks_host = checks_host and not tokens
        self._most = {False: concurrency, True: streams}
        self._now = {False: 0, True: 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it; see ASGI."""
        if scope["type"] != "http":
            return  # there are no websockets here
        status = 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        is_stream = scope["path"] == EVENTS_PATH
        try:
            self._check(scope, Headers(scope=scope), is_stream)
        except ConsentryError as error:
            await respond_to(error)(scope, receive, note)
            return
        self._now[is_stream] += 1
        try:
            await self._app(scope, receive, note)
        except ClientDisconnect:
            return  # nobody is there to get a response
        except Exception as error:
            route = scope.get("route")
            _LOG.error("request_failed", route=getattr(route, "path", "none"), exc_info=error)
            if status not in (0, 500):
                raise  # half of a response is out: all that is left is to close the connection
            if status == 0:
                await fault()(scope, receive, note)
        finally:
            self._now[is_stream] -= 1

    def _check(self, scope: Scope, headers: Headers, is_stream: bool) -> None:
        if self._tokens and scope["path"] not in _OPEN_PATHS:
            self._check_token(headers.getlist("authorization"))
        if self._checks_host:
            _check_names(headers.getlist("host"), headers.getlist("origin"))
        if self._now[is_stream] >= self._most[is_stream]:
            what = "events are being followed" if is_stream else "requests are being answered"
            raise Problem(
                503,
                f"{self._most[is_stream]} {what} already.",
                code="limit.concurrency",
                fix="send it again in a moment, with more members in each request",
                headers={"Retry-After": "1"},
            )

    def _check_token(self, headers: Sequence[str]) -> None:
        header = headers[0] if len(headers) == 1 else ""
        kind, _, token = header.partition(" ")
        sent = token.strip().encode("latin-1", "replace")
        # All are compared, so that the time does not show which one matches.
        matches = [hmac.compare_digest(sent, known) for known in self._tokens]
        if kind.lower() != "bearer" or not any(matches):
            raise Problem(
                401,
                "The request does not bring a token of this agent.",
                code="agent.token",
                fix="send Authorization: Bearer TOKEN, as in the file that the agent was started "
                "with",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _check_names(hosts: Sequence[str], origins: Sequence[str]) -> None:
    named = [_host(f"//{host}") for host in hosts] + [_host(origin) for origin in origins]
    if len(hosts) != 1 or not all(is_loopback(name) for name in named):
        raise Problem(
            403,
            "The request names another machine than this one.",
            code="agent.host",
            fix="call 127.0.0.1 or localhost, from a program and not from a page of another site",
        )


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
