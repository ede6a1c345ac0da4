"""The signing keys of the issuer whose tokens the gateway accepts, fetched and kept for a while.

They come from one configured address.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from consentry.domain.errors import InvalidInput
from consentry.gateway.access.authenticator import RefreshNeed
from consentry.ops.http.address import is_loopback

FETCH_AGAIN_SECONDS: Final = 10.0
"""The issuer is asked at most this often, however many unknown key ids arrive and however it
answers.
"""
FETCH_BYTES_MAX: Final = 1 << 20
RSA_BITS_MIN: Final = 2048
KEY_TYPES: Final[Mapping[str, tuple[str, str | None]]] = MappingProxyType(
    {
        "RS256": ("RSA", None),
        "PS256": ("RSA", None),
        "ES256": ("EC", "P-256"),
        "EdDSA": ("OKP", "Ed25519"),
    }
)
"""Algorithm → (kty, crv) of the keys that it takes."""
_LOG = structlog.get_logger(__name__)

Fetch = Callable[[], bytes]


class SigningKeys:
    """The public keys of the token issuer that the gateway trusts, by their id.

    They are for one algorithm. Only `fetch` uses the network.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        algorithm: str,
        ttl_seconds: float,
        monotonic_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._algorithm = algorithm
        self._ttl_seconds = ttl_seconds
        self._monotonic_seconds = monotonic_seconds
        self._fetching = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetch_again_at = float("-inf")
        self._renew_at = float("-inf")
        self.end = float("-inf")
        """The known keys count until then, in seconds of the monotonic clock."""
        self.edition = 0
        """Changes with every answer of the issuer."""

    def find(self, key_id: str) -> jwt.PyJWK | None:
        """Return the issuer's key with this id. Never waits.

        None if the issuer never named it, or too long ago.
        """
        return self._keys.get(key_id) if self._monotonic_seconds() < self.end else None

    def need(self, key_id: str) -> RefreshNeed:
        """Return NOW for an unknown key, SOON after half the time that keys count.

        It is NOTHING right after an attempt.
        """
        now = self._monotonic_seconds()
        if now < self._fetch_again_at:
            return RefreshNeed.NOTHING
        if self.find(key_id) is None:
            return RefreshNeed.NOW
        return RefreshNeed.SOON if now >= self._renew_at else RefreshNeed.NOTHING

    def renew(self) -> None:
        """Ask the issuer for its keys, unless somebody did within ten seconds.

        Its failure leaves the keys as they were.
        """
        with self._fetching:
            started = self._monotonic_seconds()
            if started < self._fetch_again_at:
                return
            try:
                self._keys = _usable_keys(self._fetch(), self._algorithm)
            except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
                _LOG.warning(
                    "the signing keys of the issuer could not be fetched",
                    why=type(error).__name__,
                    seconds_left=round(max(0.0, self.end - started)),
                )
            else:
                self.end = started + self._ttl_seconds
                self._renew_at = started + self._ttl_seconds / 2
                self.edition += 1
            # Counted from the end: an issuer that answers slowly is not asked again at once.
            self._fetch_again_at = self._monotonic_seconds() + FETCH_AGAIN_SECONDS


def jwks_fetcher(url: str, *, timeout_seconds: float = 3.0, ca_file: Path | None = None) -> Fetch:
    """Return a function that fetches the public keys of the gateway's token issuer from `url`.

    Each fetch is bounded in size and time.

    The address is https, or http on loopback; no redirect is followed and no proxy used. The fetch
    raises OSError, HTTPException or ValueError. Raises InvalidInput for any other address.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    if not host or not is_safe or parts.username:
        raise InvalidInput(
            f"The address of the issuer's keys, {url.rpartition('@')[2][:200]!r}, is not https.",
            code="access.jwks_url",
            fix="set CONSENTRY_OIDC_JWKS_URL to the issuer's jwks_uri; http is accepted on "
            "loopback only",
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def connect() -> http.client.HTTPConnection:
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port, timeout=timeout_seconds)
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(
            host, parts.port, timeout=timeout_seconds, context=context
        )

    return lambda: _get(connect(), target, timeout_seconds)


def _get(connection: http.client.HTTPConnection, target: str, timeout_seconds: float) -> bytes:
    """Return the body of a 200 response.

    Each wait is bounded, and so is their sum, to about twice the time-out.
    """
    deadline = time.monotonic() + timeout_seconds
    try:
        connection.request(
            "GET", target, headers={"Accept": "application/json", "Connection": "close"}
        )
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise ValueError(f"status {response.status}")
        body = bytearray()
        while chunk := response.read1(1 << 16):
            body += chunk
            if len(body) > FETCH_BYTES_MAX:
                raise ValueError("too long")
            if time.monotonic() > deadline:
                raise TimeoutError("the answer does not end")
        return bytes(body)
    finally:
        connection.close()


def _usable_keys(text: bytes, algorithm: str) -> dict[str, jwt.PyJWK]:
    """Return the public keys of a key set that fit the algorithm, by their id.

    Raises ValueError where the text is not a key set.
    """
    document = json.loads(text)
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("not a key set")  # noqa: TRY004 - a damaged answer, as any other text would be
    fitting = [key for key in listed if isinstance(key, dict) and _fits(key, algorithm)]
    times = Counter(key["kid"] for key in fitting)
    usable = {}
    for key in fitting:
        if times[key["kid"]] > 1:
            continue  # of two keys of one id nobody can say which is meant, so neither is
        parsed = _parse(key, algorithm)
        if parsed is not None:
            usable[key["kid"]] = parsed
    if not usable:
        _LOG.error(
            "the issuer names no usable signing key: no token is accepted", algorithm=algorithm
        )
    return usable


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    """Return whether a JSON Web Key is a named public key for signatures of the algorithm."""
    kty, crv = KEY_TYPES[algorithm]
    operations = key.get("key_ops", ["verify"])
    return (
        isinstance(key.get("kid"), str)
        and key.get("kty") == kty
        and (crv is None or key.get("crv") == crv)
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and isinstance(operations, list)
        and "verify" in operations
        and "d" not in key
    )


def _parse(key: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
    try:
        parsed = jwt.PyJWK(key, algorithm)
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError, AttributeError):
        return None
    if isinstance(parsed.key, RSAPublicKey) and parsed.key.key_size < RSA_BITS_MIN:
        return None
    return parsed
