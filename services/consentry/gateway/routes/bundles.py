"""Routes of the gateway to download signed bundles: the newest manifest, and the files in it."""

from __future__ import annotations

import asyncio
import hashlib
from typing import IO, Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response
from starlette.types import Receive, Scope, Send

from consentry.bundles.manifest import FILE_NAME_PATTERN, MANIFEST_NAME, SIGNATURE_NAME
from consentry.domain.errors import ConsentryError, Unavailable
from consentry.gateway.access import Forbidden, Permission
from consentry.gateway.bundle_downloads import BundleDownloads, not_found
from consentry.gateway.context import GatewayContext, authorize
from consentry.gateway.http.openapi import problems
from consentry.ops.http.problems import Problem

DOWNLOAD_SECONDS_MAX: Final = 1800.0
_PIECE: Final = 1 << 18
_LINES: Final = "application/x-ndjson"
_BYTES: Final = "application/octet-stream"
_REVALIDATE: Final = "private, no-cache"
_IMMUTABLE: Final = "private, max-age=86400, immutable"

router = APIRouter(prefix="/v1/bundles", tags=["bundles"])


class DownloadCutOff(Exception):
    """Raised where a download from the gateway ends in the middle: its connection is closed."""


class Download(Response):
    """A response of the gateway: a bundle's file, sent piece by piece, its length announced.

    The connection is closed where the store holds fewer bytes.
    """

    def __init__(
        self,
        request: Request,
        downloads: BundleDownloads,
        caller: str,
        file: IO[bytes],
        *,
        size: int,
        etag: str,
    ) -> None:
        headers = {"Content-Length": str(size), "ETag": etag, "Cache-Control": _IMMUTABLE}
        super().__init__(b"", 200, headers, _BYTES)
        self._request = request
        self._downloads = downloads
        self._caller = caller
        self._file = file
        self._size = size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file; see ASGI."""
        try:
            with self._downloads.slot(self._caller):
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                try:
                    async with asyncio.timeout(DOWNLOAD_SECONDS_MAX):
                        await self._send_pieces(send)
                except (ConsentryError, TimeoutError) as error:
                    # The response has begun, so that it cannot become a problem: the body ends too
                    # soon instead.
                    raise DownloadCutOff(str(error) or "a caller took too long") from error
        finally:
            self._file.close()

    async def _send_pieces(self, send: Send) -> None:
        left = self._size
        while left > 0 and not await self._request.is_disconnected():
            piece = await self._downloads.piece(self._file, min(_PIECE, left))
            if not piece:
                raise Unavailable(
                    "A file of a bundle is shorter than its manifest says.", code="bundle.truncated"
                )
            left -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
        if self._size == 0:
            await send({"type": "http.response.body", "body": b""})


BundlePath = Annotated[
    str, Path(pattern=r"^[0-9]{10}-[a-z]{5,8}-[0-9a-f]{16}$", description="The id of a bundle.")
]
FilePath = Annotated[
    str,
    Path(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,150}$",
        description="manifest.json, manifest.sig, or a file that it names.",
    ),
]
_TEXT: Final = {"schema": {"type": "string"}}
_NOT_MODIFIED: Final = {"description": "The entity tag of If-None-Match is still the right one."}
_LINES_OR_SAME: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "OK", "content": {_LINES: _TEXT}},
    304: _NOT_MODIFIED,
}
_FILE_OR_SAME: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "OK",
        "content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}},
    },
    304: _NOT_MODIFIED,
}


@router.get("/latest", response_class=Response, responses=_LINES_OR_SAME | problems(404))
async def get_latest(request: Request) -> Response:
    """Download the newest bundle's manifest and signature from the gateway.

    The manifest has exactly the bytes that were signed; a line break and the signature follow.
    """
    downloads, _ = await _authorized_downloads(request)
    _, bundle = await downloads.newest()
    etag = f'"{bundle.sha256}"'
    content = bundle.content + b"\n" + bundle.signature
    return _not_modified(request, etag, _REVALIDATE) or _text(content, etag)


@router.get("/latest.jsonl", response_class=Response, responses=_LINES_OR_SAME | problems(404))
async def get_pointer(request: Request) -> Response:
    """Download the signed pointer to the newest bundle from the gateway, as it was stored."""
    downloads, _ = await _authorized_downloads(request)
    pointer, bundle = await downloads.newest()
    etag = f'"{bundle.sha256}"'
    return _not_modified(request, etag, _REVALIDATE) or _text(pointer, etag)


@router.get(
    "/{bundle_id}/{file}", response_class=Response, responses=_FILE_OR_SAME | problems(404, 422)
)
async def get_file(request: Request, bundle_id: BundlePath, file: FilePath) -> Response:
    """Download a file of a bundle from the gateway.

    It is one that the bundle's manifest names, the manifest, or its signature.
    """
    downloads, caller = await _authorized_downloads(request)
    bundle = await downloads.bundle(bundle_id)
    small = {MANIFEST_NAME: bundle.content, SIGNATURE_NAME: bundle.signature}.get(file)
    if small is not None:
        etag = f'"{hashlib.sha256(small).hexdigest()}"'
        headers = {"ETag": etag, "Cache-Control": _IMMUTABLE}
        return _not_modified(request, etag, _IMMUTABLE) or Response(small, 200, headers, _BYTES)
    named = bundle.files.get(file)
    if named is None or FILE_NAME_PATTERN.fullmatch(file) is None:
        raise not_found()
    size, sha256 = named
    etag = f'"{sha256}"'
    with downloads.slot(caller):
        pass  # raises a problem, while the response can still be one
    not_modified = _not_modified(request, etag, _IMMUTABLE)
    if not_modified is not None:
        return not_modified
    content = await downloads.open_file(bundle_id, file)
    return Download(request, downloads, caller, content, size=size, etag=etag)


async def _authorized_downloads(request: Request) -> tuple[BundleDownloads, str]:
    """Return the downloads and the caller's subject, if the caller may read bundles.

    Raises Unauthenticated, Forbidden, Problem 404 and 429.
    """
    context, caller = await authorize(request, Permission.READ_BUNDLES)
    if not caller.may_read_bundles():
        raise Forbidden(
            "A trainer of some purposes may not read bundles: they hold everybody's choices for "
            "every purpose.",
            fix="use a key that was made with --purpose '*', or ask for decisions one by one",
        )
    return _configured(context), caller.subject


def _configured(context: GatewayContext) -> BundleDownloads:
    if context.bundles is None:
        # Not 503: no repetition helps, and none of these addresses exists here.
        raise Problem(
            404,
            "This gateway hands out no bundles.",
            code="bundle.no_store",
            fix="set CONSENTRY_BUNDLE_STORE for the gateway, or read the store itself",
        )
    return context.bundles


def _not_modified(request: Request, etag: str, caching: str) -> Response | None:
    """Return a response 304 where the caller has the content already."""
    header = request.headers.get("if-none-match", "")
    known = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    if etag not in known:
        return None
    return Response(status_code=304, headers={"ETag": etag, "Cache-Control": caching})


def _text(content: bytes, etag: str) -> Response:
    return Response(content, 200, {"ETag": etag, "Cache-Control": _REVALIDATE}, _LINES)
