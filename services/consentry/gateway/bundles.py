"""Routes that hand out signed bundles: the newest manifest with its signature, and the files that a manifest names."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Path, Request, Response
from starlette.types import Receive, Scope, Send

from consentry.domain.errors import ConsentryError, Unavailable
from consentry.gateway.access import Forbidden, Permission
from consentry.gateway.openapi import answers
from consentry.gateway.parts import Parts, caller_of
from consentry.gateway.problems import RETRY_SECONDS, Problem
from consentry.wire.bundles import BundleRefused, PublicKeys
from consentry.wire.bundles.manifest import (
    BUNDLE_ID_PATTERN,
    FILE_NAME_PATTERN,
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    POINTER_BYTES_MAX,
    POINTER_NAME,
    SIGNATURE_BYTES_MAX,
    SIGNATURE_NAME,
    read_manifest,
    read_pointer,
)
from consentry.wire.bundles.serving import ServedStore

DOWNLOADS_MAX: Final = 8
"""Downloads at a time in this process, and of one caller at most `DOWNLOADS_OF_ONE_MAX`."""
DOWNLOADS_OF_ONE_MAX: Final = 4
DOWNLOAD_SECONDS_MAX: Final = 1800.0
CALLS_MAX: Final = 16
"""Calls to the store at a time, in threads of their own: a store that hangs keeps no other request waiting."""
STORE_SECONDS_MAX: Final = 10.0
_PIECE: Final = 1 << 18
_KNOWN_MAX: Final = 16
_LINES: Final = "application/x-ndjson"
_BYTES: Final = "application/octet-stream"
_REVALIDATE: Final = "private, no-cache"
_IMMUTABLE: Final = "private, max-age=86400, immutable"

router = APIRouter(prefix="/v1/bundles", tags=["bundles"])
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Shelved:
    """A manifest and its signature as they lie in the store, and size and SHA-256 of the files that it names."""

    bundle_id: str
    content: bytes
    signature: bytes
    files: Mapping[str, tuple[int, str]]

    @property
    def sha256(self) -> str:
        """The manifest's digest: what a delta and the pointer name it by."""
        return hashlib.sha256(self.content).hexdigest()


class BundleShelf:
    """Reads a store of bundles for HTTP, off the event loop, with few calls at a time and none without end.

    With `believed` keys nothing is handed out that they did not sign. Without, callers judge for themselves, which
    they have to in any case.
    """

    def __init__(
        self, store: ServedStore, *, believed: PublicKeys | None = None, seconds_max: float = STORE_SECONDS_MAX
    ) -> None:
        self._store = store
        self._believed = believed
        self._seconds_max = seconds_max
        self._pool = ThreadPoolExecutor(CALLS_MAX, thread_name_prefix="bundles")
        self._calls = 0
        self._downloads: dict[str, int] = {}
        self._known: OrderedDict[str, Shelved] = OrderedDict()

    def close(self) -> None:
        """Wait for nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def newest(self) -> tuple[bytes, Shelved]:
        """The pointer's bytes, and the manifest that it names. Raises Problem, Unavailable."""
        return await self._aside(self._newest)

    async def shelved(self, bundle_id: str) -> Shelved:
        """A manifest by its bundle's id. Raises Problem 404, Unavailable."""
        return await self._aside(self._shelved, bundle_id)

    async def open_file(self, bundle_id: str, name: str) -> IO[bytes]:
        """A file of a bundle. Raises Problem 404, Unavailable."""
        file = await self._aside(self._store.open_file, bundle_id, name)
        if file is None:
            raise _not_found()
        return file

    async def piece(self, file: IO[bytes], size: int) -> bytes:
        """The next bytes of a file. Raises Unavailable."""
        return await self._aside(self._store.read_piece, file, size)

    @contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """A place to download in. Raises Problem: 429 where the caller has as many as one may, 503 where all have."""
        mine = self._downloads.get(caller, 0)
        if mine >= DOWNLOADS_OF_ONE_MAX:
            raise _no_place(429, f"{mine} downloads of this credential are under way")
        if sum(self._downloads.values()) >= DOWNLOADS_MAX:
            raise _no_place(503, f"{DOWNLOADS_MAX} downloads are under way")
        self._downloads[caller] = mine + 1
        try:
            yield
        finally:
            self._downloads[caller] -= 1
            if not self._downloads[caller]:
                del self._downloads[caller]

    def _newest(self) -> tuple[bytes, Shelved]:
        content = self._find(POINTER_NAME, bytes_max=POINTER_BYTES_MAX)
        if content is None:
            raise Unavailable("There is no bundle yet.", code="bundle.none", fix="check that the bundler runs")
        try:
            if self._believed is not None:
                pointer = read_pointer(content, self._believed)
                bundle_id, sha256 = pointer.bundle_id, pointer.manifest_sha256
            else:
                told = json.loads(content.partition(b"\n")[0])
                bundle_id, sha256 = str(told["bundle_id"]), str(told["manifest_sha256"])
        except (BundleRefused, ValueError, KeyError, TypeError) as error:
            raise _not_served(error) from error
        if BUNDLE_ID_PATTERN.fullmatch(bundle_id) is None:
            raise _not_served(ValueError())
        found = self._shelved(bundle_id)
        if found.sha256 != sha256:
            raise _not_served(ValueError())
        return content, found

    def _shelved(self, bundle_id: str) -> Shelved:
        known = self._known.get(bundle_id)
        if known is not None:
            return known
        # The signature is written last: a bundle without one is not finished.
        signature = self._find(bundle_id, SIGNATURE_NAME, bytes_max=SIGNATURE_BYTES_MAX)
        content = self._find(bundle_id, MANIFEST_NAME, bytes_max=MANIFEST_BYTES_MAX)
        if content is None or signature is None:
            raise _not_found()
        try:
            if self._believed is not None:
                read_manifest(content, signature, self._believed)
            files = {str(one["name"]): (int(one["size"]), str(one["sha256"])) for one in json.loads(content)["files"]}
        except (BundleRefused, ValueError, KeyError, TypeError) as error:
            raise _not_served(error) from error
        found = self._known[bundle_id] = Shelved(bundle_id, content, signature, files)
        while len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
        return found

    def _find(self, *names: str, bytes_max: int) -> bytes | None:
        try:
            return self._store.find(*names, bytes_max=bytes_max)
        except BundleRefused as error:
            raise _not_served(error) from error

    async def _aside(self, call: Callable[..., _Found], *given: Any) -> _Found:
        """What a call to the store returns, in a thread. Raises Problem 503 where too many hang, Unavailable."""
        if self._calls >= CALLS_MAX:
            raise _no_place(503, f"{CALLS_MAX} calls to the store are waiting")
        future = asyncio.get_running_loop().run_in_executor(self._pool, call, *given)
        self._calls += 1

        def ended(_: Any) -> None:
            self._calls -= 1
            if not future.cancelled():
                future.exception()  # who waited for it may have gone

        future.add_done_callback(ended)
        try:
            # Shielded: a thread cannot be cancelled, and counts until it has really ended.
            return await asyncio.wait_for(asyncio.shield(future), self._seconds_max)
        except TimeoutError:
            raise Unavailable(
                f"The store of bundles did not answer within {self._seconds_max:g} s.",
                code="bundle.store_unavailable",
                fix="check the store; the call may be repeated",
            ) from None


class CutOff(Exception):
    """A download ended in the middle: the server closes the connection."""


class Download(Response):
    """A file, piece by piece, with its length announced; the connection is cut where the store holds another length."""

    def __init__(
        self, request: Request, shelf: BundleShelf, caller: str, file: IO[bytes], *, size: int, etag: str
    ) -> None:
        headers = {"Content-Length": str(size), "ETag": etag, "Cache-Control": _IMMUTABLE}
        super().__init__(b"", 200, headers, _BYTES)
        self._request = request
        self._shelf = shelf
        self._caller = caller
        self._file = file
        self._size = size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            with self._shelf.place(self._caller):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                try:
                    async with asyncio.timeout(DOWNLOAD_SECONDS_MAX):
                        await self._send_pieces(send)
                except (ConsentryError, TimeoutError) as error:
                    # The answer has begun, so no problem can be told: a body that ends too soon is one.
                    raise CutOff(str(error) or "a caller took too long") from error
        finally:
            self._file.close()

    async def _send_pieces(self, send: Send) -> None:
        left = self._size
        while left > 0 and not await self._request.is_disconnected():
            piece = await self._shelf.piece(self._file, min(_PIECE, left))
            if not piece:
                raise Unavailable("A file of a bundle is shorter than its manifest says.", code="bundle.truncated")
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
        if self._size == 0:
            await send({"type": "http.response.body", "body": b""})


BundlePath = Annotated[str, Path(pattern=r"^[0-9]{10}-[a-z]{5,8}-[0-9a-f]{16}$", description="The id of a bundle.")]
FilePath = Annotated[
    str,
    Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,150}$", description="manifest.json, manifest.sig, or a file that it names."),
]
_TEXT: Final = {"schema": {"type": "string"}}
_NOT_MODIFIED: Final = {"description": "The entity tag of If-None-Match is still the right one."}
_LINES_OR_SAME: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "OK", "content": {_LINES: _TEXT}},
    304: _NOT_MODIFIED,
}
_FILE_OR_SAME: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "OK", "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}},
    304: _NOT_MODIFIED,
}


@router.get("/latest", response_class=Response, responses=_LINES_OR_SAME | answers())
async def get_latest(request: Request) -> Response:
    """The newest bundle: the manifest, exactly the bytes that were signed, then a line break and the signature."""
    shelf, _ = await _shelf_of(request)
    _, found = await shelf.newest()
    etag = f'"{found.sha256}"'
    return _same(request, etag, _REVALIDATE) or _text(found.content + b"\n" + found.signature, etag)


@router.get("/latest.jsonl", response_class=Response, responses=_LINES_OR_SAME | answers())
async def get_pointer(request: Request) -> Response:
    """Which bundle is the newest: the signed pointer, as it lies in the store."""
    shelf, _ = await _shelf_of(request)
    pointer, found = await shelf.newest()
    etag = f'"{found.sha256}"'
    return _same(request, etag, _REVALIDATE) or _text(pointer, etag)


@router.get("/{bundle_id}/{file}", response_class=Response, responses=_FILE_OR_SAME | answers(404, 422))
async def get_file(request: Request, bundle_id: BundlePath, file: FilePath) -> Response:
    """A file of a bundle: one that its manifest names, the manifest, or its signature; nothing else."""
    shelf, caller = await _shelf_of(request)
    found = await shelf.shelved(bundle_id)
    small = {MANIFEST_NAME: found.content, SIGNATURE_NAME: found.signature}.get(file)
    if small is not None:
        etag = f'"{hashlib.sha256(small).hexdigest()}"'
        headers = {"ETag": etag, "Cache-Control": _IMMUTABLE}
        return _same(request, etag, _IMMUTABLE) or Response(small, 200, headers, _BYTES)
    named = found.files.get(file)
    if named is None or FILE_NAME_PATTERN.fullmatch(file) is None:
        raise _not_found()
    size, sha256 = named
    etag = f'"{sha256}"'
    with shelf.place(caller):
        pass  # as a problem, while there still can be one
    same = _same(request, etag, _IMMUTABLE)
    if same is not None:
        return same
    return Download(request, shelf, caller, await shelf.open_file(bundle_id, file), size=size, etag=etag)


async def _shelf_of(request: Request) -> tuple[BundleShelf, str]:
    """The shelf and the caller, if they may. Raises Unauthenticated, Forbidden, Problem 429 and 503."""
    parts, caller = await caller_of(request, Permission.READ_BUNDLES)
    if not caller.may_read_bundles():
        raise Forbidden(
            "A trainer of some purposes may not read bundles: they hold everybody's choices for every purpose.",
            fix="use a key that was made with --purpose '*', or ask for decisions one by one",
        )
    return _configured(parts), caller.subject


def _configured(parts: Parts) -> BundleShelf:
    if parts.bundles is None:
        raise Problem(
            503,
            "This gateway hands out no bundles.",
            code="bundle.no_store",
            fix="set CONSENTRY_BUNDLE_STORE for the gateway, or read the store itself",
        )
    return parts.bundles


def _same(request: Request, etag: str, caching: str) -> Response | None:
    """304, where the caller has it already."""
    given = request.headers.get("if-none-match", "")
    known = {one.strip().removeprefix("W/") for one in given.split(",")}
    return Response(status_code=304, headers={"ETag": etag, "Cache-Control": caching}) if etag in known else None


def _text(content: bytes, etag: str) -> Response:
    return Response(content, 200, {"ETag": etag, "Cache-Control": _REVALIDATE}, _LINES)


def _not_found() -> Problem:
    return Problem(
        404,
        "There is no such bundle, or no such file in it.",
        code="bundle.not_found",
        fix="begin again with /v1/bundles/latest: bundles are deleted some time after newer ones came",
    )


def _not_served(error: Exception) -> Problem:
    return Problem(
        503,
        "What lies in the store is not a bundle that may be handed out.",
        code=error.code if isinstance(error, BundleRefused) else "bundle.malformed",
        fix="find out who writes to the store, and start the bundler on a new one",
    )


def _no_place(status: int, detail: str) -> Problem:
    return Problem(
        status,
        f"No bundle can be handed out now: {detail}.",
        code="limit.bundles",
        fix="send it again in a moment",
        headers={"Retry-After": RETRY_SECONDS},
    )
