"""Downloads of bundles from the gateway: the store is read off the event loop, in few calls.

Each call has a time limit.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final, TypeVar

from consentry.bundles import BundleRefused, PublicKeys
from consentry.bundles.downloads import DownloadStore
from consentry.bundles.manifest import (
    BUNDLE_ID_PATTERN,
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    POINTER_BYTES_MAX,
    POINTER_NAME,
    SIGNATURE_BYTES_MAX,
    SIGNATURE_NAME,
    read_manifest,
    read_pointer,
)
from consentry.domain.errors import Unavailable
from consentry.ops.http.problems import RETRY_SECONDS, Problem

DOWNLOADS_MAX: Final = 8
"""Downloads at a time in this process, and of one caller at most `DOWNLOADS_OF_ONE_MAX`."""
DOWNLOADS_OF_ONE_MAX: Final = 4
CALLS_MAX: Final = 16
"""Calls to the store at a time.

They run in threads of their own: a store that hangs keeps no other request waiting.
"""
STORE_SECONDS_MAX: Final = 10.0
_KNOWN_MAX: Final = 16
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class DownloadableBundle:
    """A bundle's manifest and signature as the gateway found them in the store.

    `files` has size and SHA-256 of the files that the manifest names.
    """

    bundle_id: str
    content: bytes
    signature: bytes
    files: Mapping[str, tuple[int, str]]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the manifest, by which a delta and the pointer name it."""
        return hashlib.sha256(self.content).hexdigest()


class BundleDownloads:
    """Reads bundles in their store for callers who download them from the gateway.

    With `believed` keys only what they signed is handed out. Without them callers check the
    signatures alone, which they have to do in any case.
    """

    def __init__(
        self,
        store: DownloadStore,
        *,
        believed: PublicKeys | None = None,
        seconds_max: float = STORE_SECONDS_MAX,
    ) -> None:
        self._store = store
        self._believed = believed
        self._seconds_max = seconds_max
        self._pool = ThreadPoolExecutor(CALLS_MAX, thread_name_prefix="bundles")
        self._calls = 0
        self._downloads: dict[str, int] = {}
        self._known: OrderedDict[str, DownloadableBundle] = OrderedDict()

    def close(self) -> None:
        """End the download threads, without waiting for them."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def newest(self) -> tuple[bytes, DownloadableBundle]:
        """Return the pointer's bytes, and the bundle that it names. Raises Problem, Unavailable."""
        return await self._call(self._newest)

    async def bundle(self, bundle_id: str) -> DownloadableBundle:
        """Return a bundle by its id. Raises Problem 404, Unavailable."""
        return await self._call(self._bundle, bundle_id)

    async def open_file(self, bundle_id: str, name: str) -> IO[bytes]:
        """Open a file of a bundle. Raises Problem 404, Unavailable."""
        file = await self._call(self._store.open_file, bundle_id, name)
        if file is None:
            raise not_found()
        return file

    async def piece(self, file: IO[bytes], size: int) -> bytes:
        """Return the next bytes of a file that is downloaded. Raises Unavailable."""
        return await self._call(self._store.read_piece, file, size)

    @contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """Count a download of the caller until the context ends.

        Raises Problem: 429 where the caller has as many as one may have, 503 where all have.
        """
        running = self._downloads.get(caller, 0)
        if running >= DOWNLOADS_OF_ONE_MAX:
            raise _no_slot(429, f"{running} downloads of this credential are under way")
        if sum(self._downloads.values()) >= DOWNLOADS_MAX:
            raise _no_slot(503, f"{DOWNLOADS_MAX} downloads are under way")
        self._downloads[caller] = running + 1
        try:
            yield
        finally:
            self._downloads[caller] -= 1
            if not self._downloads[caller]:
                del self._downloads[caller]

    def _newest(self) -> tuple[bytes, DownloadableBundle]:
        content = self._find(POINTER_NAME, bytes_max=POINTER_BYTES_MAX)
        if content is None:
            raise Unavailable(
                "There is no bundle yet.", code="bundle.none", fix="check that the bundler runs"
            )
        try:
            if self._believed is not None:
                pointer = read_pointer(content, self._believed)
                bundle_id, sha256 = pointer.bundle_id, pointer.manifest_sha256
            else:
                fields = json.loads(content.partition(b"\n")[0])
                bundle_id, sha256 = str(fields["bundle_id"]), str(fields["manifest_sha256"])
        except (BundleRefused, ValueError, KeyError, TypeError) as error:
            raise _not_served(error) from error
        if BUNDLE_ID_PATTERN.fullmatch(bundle_id) is None:
            raise _not_served(ValueError())
        bundle = self._bundle(bundle_id)
        if bundle.sha256 != sha256:
            raise _not_served(ValueError())
        return content, bundle

    def _bundle(self, bundle_id: str) -> DownloadableBundle:
        known = self._known.get(bundle_id)
        if known is not None:
            return known
        # The signature is written last: a bundle without one is not finished.
        signature = self._find(bundle_id, SIGNATURE_NAME, bytes_max=SIGNATURE_BYTES_MAX)
        content = self._find(bundle_id, MANIFEST_NAME, bytes_max=MANIFEST_BYTES_MAX)
        if content is None or signature is None:
            raise not_found()
        try:
            if self._believed is not None:
                read_manifest(content, signature, self._believed)
            files = {}
            for file in json.loads(content)["files"]:
                files[str(file["name"])] = (int(file["size"]), str(file["sha256"]))
        except (BundleRefused, ValueError, KeyError, TypeError) as error:
            raise _not_served(error) from error
        bundle = DownloadableBundle(bundle_id, content, signature, files)
        self._known[bundle_id] = bundle
        while len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
        return bundle

    def _find(self, *names: str, bytes_max: int) -> bytes | None:
        try:
            return self._store.find(*names, bytes_max=bytes_max)
        except BundleRefused as error:
            raise _not_served(error) from error

    async def _call(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Make a call to the store in a thread, and return its result.

        Raises Problem 503 where too many calls hang, and Unavailable after STORE_SECONDS_MAX.
        """
        if self._calls >= CALLS_MAX:
            raise _no_slot(503, f"{CALLS_MAX} calls to the store are waiting")
        future = asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)
        self._calls += 1

        def end(_: Any) -> None:
            self._calls -= 1
            if not future.cancelled():
                future.exception()  # whoever waited for it may have gone

        future.add_done_callback(end)
        try:
            # Shielded: a thread cannot be cancelled, and counts until it has really ended.
            return await asyncio.wait_for(asyncio.shield(future), self._seconds_max)
        except TimeoutError:
            raise Unavailable(
                f"The store of bundles did not answer within {self._seconds_max:g} s.",
                code="bundle.store_unavailable",
                fix="check the store; the call may be repeated",
            ) from None


def not_found() -> Problem:
    """Return the gateway's problem 404 for a bundle, or a file of it, that is not there."""
    return Problem(
        404,
        "There is no such bundle, or no such file in it.",
        code="bundle.not_found",
        fix="begin again with /v1/bundles/latest: bundles are deleted some time after newer ones "
        "came",
    )


def _not_served(error: Exception) -> Problem:
    return Problem(
        503,
        "What lies in the store is not a bundle that may be handed out.",
        code=error.code if isinstance(error, BundleRefused) else "bundle.malformed",
        fix="find out who writes to the store, and start the bundler on a new one",
    )


def _no_slot(status: int, detail: str) -> Problem:
    return Problem(
        status,
        f"No bundle can be handed out now: {detail}.",
        code="limit.bundles",
        fix="send it again in a moment",
        headers={"Retry-After": RETRY_SECONDS},
    )
