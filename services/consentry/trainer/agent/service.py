"""The work of the trainer's agent for its callers: questions in few threads, events, checks.

Events go to all readers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from consentry.domain.decisions import Decision, Row
from consentry.domain.errors import InvalidInput, Refused, Unavailable
from consentry.ops.http.problems import Problem
from consentry.trainer.agent.feed import Feed
from consentry.trainer.checking.data_files import DataFile, find_files
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decide_table import Decisions
from consentry.trainer.hooks import Hooks

QUESTION_SECONDS: Final = 30.0
CHECK_SECONDS: Final = 300.0
WAIT_SECONDS_MAX: Final = 10.0
_WATCH_SECONDS: Final = 0.2
_RETRY_SECONDS: Final = 0.02
_REF: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", re.ASCII)
_LAKEFS_REFS: Final = {"pre-commit": "branch_id", "pre-merge": "source_ref"}

Found = TypeVar("Found")


class FollowingClient(Protocol):
    """The trainer's client that follows the log, as far as the agent needs it."""

    @property
    def snapshot_id(self) -> str: ...

    @property
    def stale_detail(self) -> str: ...

    @property
    def is_following(self) -> bool: ...

    def decide_table(
        self,
        table: pa.Table,
        *,
        purpose: str,
        columns: Columns | None = None,
        at_least: str | None = None,
        wait_seconds: float = ...,
    ) -> Decisions: ...

    def decide(
        self,
        member: str,
        *,
        purpose: str,
        row: Row | None = None,
        at_least: str | None = None,
        wait_seconds: float = ...,
    ) -> Decision: ...

    def wait_for(self, token: str, timeout_seconds: float) -> None: ...

    def status(self) -> dict[str, Any]: ...


class WorkPool:
    """Runs the agent's long calls on `threads` threads, so that its event loop stays free.

    At most `most` calls run or wait.
    """

    def __init__(self, name: str, *, threads: int, most: int, seconds: float) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = most
        self._seconds = seconds
        self._now = 0

    async def run(self, call: Callable[[], Found]) -> Found:
        """Return the result of the call, made on one of the threads.

        Raises Problem 503 where no place is free, or the call takes longer than `seconds`.
        """
        if self._now >= self._most:
            raise _busy(f"{self._most} such requests are being worked on already")
        self._now += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, call)
        # A call that nobody waits for any more still has its place until its thread is free again.
        future.add_done_callback(self._end)
        done, _ = await asyncio.wait({future}, timeout=self._seconds)
        if not done:
            raise _busy(f"The answer was not there within {self._seconds:g} s")
        return future.result()

    def _end(self, future: asyncio.Future[Any]) -> None:
        self._now -= 1
        if not future.cancelled():
            future.exception()  # whoever waited got another error

    def close(self) -> None:
        """Take no more calls; those that wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _busy(what: str) -> Problem:
    return Problem(
        503,
        f"{what}.",
        code="limit.busy",
        fix="send it again in a moment, or less of it",
        headers={"Retry-After": "1"},
    )


class Paths(NamedTuple):
    """Files and directories that the agent is asked to check, relative to a root.

    Links in them have to lead to files `within` that directory of the root.
    """

    names: Sequence[str]
    within: str = ""


class Agent:
    """The trainer's agent: answers questions, sends events for `purposes`, checks files.

    Files are read under `roots` only.
    """

    def __init__(
        self,
        follower: FollowingClient,
        hooks: Hooks,
        *,
        purposes: Sequence[str],
        roots: Sequence[Path] = (),
        feed: Feed | None = None,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self.follower = follower
        self.purposes = tuple(dict.fromkeys(purposes))
        self.feed = feed or Feed()
        self.questions = WorkPool("question", threads=2, most=32, seconds=QUESTION_SECONDS)
        self.checks = WorkPool("check", threads=1, most=2, seconds=check_seconds + 5)
        self.check_seconds = check_seconds
        self._roots = tuple(root.resolve(strict=True) for root in roots)
        self._was_ready = False
        for purpose in self.purposes:
            hooks.on_exclusion(purpose=purpose)(self.feed.add_exclusion)
        hooks.on_control(self.feed.add_control)
        hooks.on_purge_order(self.feed.add_order)

    @property
    def is_ready(self) -> bool:
        """True once the agent has had fresh answers.

        From then on it answers, if only with STALE.
        """
        self._was_ready = self._was_ready or not self.follower.stale_detail
        return self._was_ready

    def require_ready(self) -> None:
        """Check that the agent is ready. Raises Unavailable."""
        if not self.is_ready:
            raise Unavailable(
                f"The agent is not ready yet: {self.follower.stale_detail}.",
                code="agent.not_ready",
                fix="ask again in a moment; /readyz says when",
            )

    def freshness(self) -> dict[str, Any]:
        """Return whether the agent's answers are fresh now, and their snapshot."""
        detail = self.follower.stale_detail
        return {"fresh": not detail, "detail": detail, "snapshot": self.follower.snapshot_id}

    async def watch(self) -> None:
        """Add an event whenever freshness is lost or regained, until cancelled.

        It reads the clock itself: a thread that hangs would report nothing.
        """
        self.feed.attach()
        was_fresh: bool | None = None
        while True:
            freshness = self.freshness() if self.is_ready else None
            if freshness is not None and freshness["fresh"] is not was_fresh:
                was_fresh = freshness["fresh"]
                self.feed.add("freshness", freshness)
            await asyncio.sleep(_WATCH_SECONDS)

    async def reach(self, token: str | None, wait_seconds: float) -> None:
        """Return once answers are as fresh as the token, or after `wait_seconds`.

        Raises InvalidInput for a malformed token.
        """
        until = monotonic() + wait_seconds
        while token is not None:
            try:
                return self.follower.wait_for(token, 0.0)
            except Unavailable:
                if monotonic() >= until:
                    return None  # the answer will be STALE
            await asyncio.sleep(_RETRY_SECONDS)

    def close(self) -> None:
        """End the event streams, and drop the calls that wait."""
        self.feed.close()
        self.questions.close()
        self.checks.close()

    # ---- files to check

    def files(self, paths: Paths) -> Iterator[tuple[DataFile, str]]:
        """Yield the data files at these paths for a check, with their names in reports.

        Raises Refused where there are no roots, InvalidInput for what does not lie under one, also
        behind a link.
        """
        if not self._roots:
            raise Refused(
                "This agent reads no files.",
                code="check.roots",
                fix="start it with --root DIRECTORY, once for each",
            )
        for name in paths.names:
            root, path = self._under_root(name)
            bound = (root / paths.within).resolve()
            for file in find_files([path]):
                if not file.path.resolve().is_relative_to(bound):
                    raise _outside()
                shown = file.path.name
                if file.path.is_relative_to(root):
                    shown = str(file.path.relative_to(root))
                yield file, shown

    def _under_root(self, name: str) -> tuple[Path, Path]:
        for root in self._roots:
            path = root / name
            try:
                real = path.resolve(strict=True)
            except (OSError, ValueError, RuntimeError):  # not there; or a path that no path can be
                continue
            if real.is_relative_to(root):
                # As it was named: the directories of a link say what partition its rows are of.
                return root, real if ".." in path.parts else path
        raise _outside()


def _outside() -> InvalidInput:
    # The caller is not to learn of files elsewhere.
    return InvalidInput(
        "A path is not that of a file or directory under a root of this agent.",
        code="check.outside",
        fix="name it relative to a --root of the agent",
    )


def lakefs_paths(event: Mapping[str, Any], files: Sequence[str]) -> Paths:
    """Return the paths that the agent checks for lakeFS before a commit or merge.

    They are of a branch that lakeFS is about to commit or merge, or of files in it.

    The branch is mounted at ROOT/repository/branch. Raises Problem for another event, InvalidInput
    for a file outside of the branch. Source: lakeFS, "Webhooks", the body of a request.
    """
    ref_field = _LAKEFS_REFS.get(str(event.get("event_type")).replace("_", "-"))
    if ref_field is None:
        raise Problem(
            422,
            "The body is not of a lakeFS event that is checked here.",
            code="check.event",
            fix=f"use it for {' and '.join(_LAKEFS_REFS)}",
        )
    names = [event.get("repository_id"), event.get(ref_field)]
    are_plain = all(isinstance(name, str) and _REF.fullmatch(name) for name in names)
    if not are_plain:
        raise Problem(
            422,
            f"The event names no repository_id and {ref_field} that are plain names.",
            code="check.event",
            fix="check branches whose names hold letters, digits, '.', '_' and '-'",
        )
    for file in files:
        if file.startswith("/") or ".." in PurePosixPath(file).parts:
            raise _outside()  # another branch's data would be checked in place of this one's
    branch = "/".join(map(str, names))
    paths = [f"{branch}/{file}" for file in files]
    return Paths(paths or [branch], within=branch)
