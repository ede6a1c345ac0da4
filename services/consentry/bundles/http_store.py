"""A store of bundles that reads them by HTTP from a gateway, in the place of a directory.

Its URL is `https://gateway/v1/bundles`.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NoReturn

from consentry.bundles.manifest import POINTER_NAME
from consentry.bundles.store import BundleStore, NotThere
from consentry.domain.errors import Refused, Unavailable

TIMEOUT_SECONDS: Final = 30.0
"""The time that the gateway may be silent."""
_BLOCK: Final = 1 << 20
_CREDENTIAL: Final = re.compile(r"[!-~]+", re.ASCII)
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class HttpBundleStore(BundleStore):
    """A store of bundles that reads them by HTTP from a gateway, and cannot write.

    Its content is believed no more than any other's.

    `credential` goes as `Authorization: Bearer`, and over plain HTTP to this machine only; it is
    never shown. No redirect is followed: it would take the credential elsewhere. The pointer is
    requested with its entity tag.
    """

    def __init__(
        self, url: str, *, credential: str = "", timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self.url = url.rstrip("/")
        parts = urllib.parse.urlsplit(self.url)
        is_local = parts.scheme == "http" and parts.hostname in _LOOPBACK
        if (
            parts.username is not None
            or parts.password is not None
            or parts.query
            or parts.fragment
        ):
            raise Refused(
                "The URL of the bundles holds a password, a query or a fragment.",
                code="bundle.store_url",
                fix="write it as https://gateway/v1/bundles, and give the credential apart",
            )
        if not parts.hostname or not (parts.scheme == "https" or is_local):
            raise Refused(
                "The URL of the bundles is neither https, nor http to this machine.",
                code="bundle.store_url",
                fix="write it as https://gateway/v1/bundles: the credential must not cross a "
                "network in the open",
            )
        if credential and _CREDENTIAL.fullmatch(credential) is None:
            raise Refused(
                "The credential holds characters that no credential has.",
                code="bundle.credential",
                fix="give the key as it was printed, without blanks or line breaks",
            )
        self._headers: dict[str, str] = {}
        if credential:
            self._headers["Authorization"] = f"Bearer {credential}"
        self._timeout_seconds = timeout_seconds
        self._opener = urllib.request.build_opener(_RefuseRedirect)
        self._pointer: tuple[str, bytes] | None = None

    def __repr__(self) -> str:
        return "HttpBundleStore()"

    def read(self, *names: str, bytes_max: int) -> bytes:
        """Return the content of a bundle's file; see BundleStore."""
        headers = dict(self._headers)
        is_pointer = names == (POINTER_NAME,)
        known: tuple[str, bytes] | None = None
        if is_pointer:
            known = self._pointer
        if known is not None:
            headers["If-None-Match"] = known[0]
        # Every name was checked against a pattern, but that is not seen from here.
        quoted = [urllib.parse.quote(name, safe="") for name in names]
        path = "/".join(quoted)
        request = urllib.request.Request(f"{self.url}/{path}", headers=headers)  # noqa: S310 - http(s), see __init__
        try:
            with self._opener.open(request, timeout=self._timeout_seconds) as answer:
                content = _read_blocks(answer, bytes_max + 1)
                announced = int(answer.headers.get("Content-Length") or 0)
                etag = answer.headers.get("ETag")
        except urllib.error.HTTPError as error:
            with error:
                if error.code == HTTPStatus.NOT_MODIFIED and known is not None:
                    return known[1]
                _raise_for(error.code, names)
        except Exception as error:
            raise _silent(type(error).__name__) from error
        if len(content) < min(announced, bytes_max + 1):
            # urllib does not notice this where the body is read by blocks.
            raise _silent("the connection ended too soon")
        if is_pointer and etag:
            self._pointer = etag, content
        return content

    def write(self, *names: str, content: bytes) -> None:
        """Raise Refused: nobody writes to a gateway."""
        _read_only()

    def bundle_ids(self) -> list[str]:
        """Raise Refused: a gateway hands out bundles, and has no list of them."""
        _read_only()

    def remove(self, bundle_id: str) -> None:
        """Raise Refused: nobody deletes from a gateway."""
        _read_only()


def open_store(
    url: str | Path, *, credential: str = "", options: Mapping[str, Any] | None = None
) -> BundleStore:
    """Return the store of bundles at a URL: a gateway's for http and https, else fsspec's.

    Raises Refused.
    """
    if urllib.parse.urlsplit(str(url)).scheme in ("http", "https"):
        return HttpBundleStore(str(url), credential=credential)
    return BundleStore(url, options)


class _RefuseRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _read_blocks(answer: Any, limit: int) -> bytes:
    """Return the body, up to `limit` bytes of it."""
    blocks, left = [], limit
    while left > 0:
        block = answer.read(min(_BLOCK, left))
        if not block:
            break
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def _raise_for(status: int, names: tuple[str, ...]) -> NoReturn:
    if status == HTTPStatus.NOT_FOUND:
        raise NotThere
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise Refused(
            f"The gateway does not hand out bundles to this credential ({status}).",
            code="bundle.forbidden",
            fix="give the key of a trainer of any purpose, or of an auditor; docs/access.md has "
            "the roles",
        )
    raise _silent(f"status {status}")


def _silent(detail: str) -> Unavailable:
    return Unavailable(
        f"The gateway did not hand out the bundle ({detail}).",
        code="bundle.store_unavailable",
        fix="check the URL, and the gateway's log; the call may be repeated",
    )


def _read_only() -> NoReturn:
    raise Refused(
        "Bundles behind a gateway can only be read.",
        code="bundle.read_only",
        fix="name the store itself: a directory, or a URL such as s3://bucket/bundles",
    )
