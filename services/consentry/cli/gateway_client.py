"""A client of the gateway for commands, with a credential from a file.

It raises the gateway's problems as our errors.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any

from consentry.domain.errors import InvalidInput, Refused, Unavailable
from consentry.ops.settings import Settings

_SECONDS = 30.0
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: it is not followed."""

    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        """See urllib."""


class GatewayClient:
    """A command's client of the gateway, with one credential.

    No error and no representation shows the credential.
    """

    def __init__(self, url: str, credential: str) -> None:
        parts = urllib.parse.urlsplit(url)
        is_safe = parts.scheme == "https" or (
            parts.scheme == "http" and parts.hostname in _LOOPBACK
        )
        if not is_safe or parts.username or parts.query:
            raise InvalidInput(
                "CONSENTRY_GATEWAY_URL is not https://HOST, or http:// on this machine.",
                code="settings.gateway_url",
                fix="write an address such as https://consentry.example.org",
            )
        if (
            not (credential.isascii() and credential.isprintable())
            or " " in credential
            or not credential
        ):
            raise InvalidInput(
                "The credential for the gateway is not one line of visible characters.",
                code="settings.gateway_credential",
                fix="let CONSENTRY_GATEWAY_CREDENTIAL_FILE hold the key alone, as `consentry keys "
                "new` printed it",
            )
        self._url = url.rstrip("/")
        self._credential = credential
        # The credential goes where the settings say, and nowhere that an answer or the environment
        # names.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            _NoRedirect(),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        )

    @classmethod
    def open(cls, settings: Settings) -> GatewayClient:
        """Return a command's client of the gateway in the settings.

        Raises Refused and InvalidInput.
        """
        if not settings.gateway_url or settings.gateway_credential_file is None:
            raise Refused(
                "This goes through the gateway, and the settings do not name it and your "
                "credential.",
                code="settings.gateway_missing",
                fix="set CONSENTRY_GATEWAY_URL, and CONSENTRY_GATEWAY_CREDENTIAL_FILE to a file "
                "with your API key",
            )
        try:
            credential = settings.gateway_credential_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(
                f"The file {str(settings.gateway_credential_file)!r} cannot be read "
                f"({type(error).__name__}).",
                code="input.file",
                fix="set CONSENTRY_GATEWAY_CREDENTIAL_FILE to a readable file that holds your API "
                "key",
            ) from error
        return cls(settings.gateway_url, credential)

    def get(self, path: str) -> dict[str, Any]:
        """Return the gateway's answer to a GET of the path, to a command. Raises as `post`."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Any = None) -> dict[str, Any]:
        """Send a command's body to the gateway, and return the gateway's answer.

        Raises Refused where the gateway refuses it, Unavailable where it does not answer.
        """
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._credential}", "Accept": "application/json"}
        data = None
        if method == "POST":
            headers |= {"Content-Type": "application/json", "Idempotency-Key": str(uuid.uuid4())}
            if body is None:
                body = {}
            data = json.dumps(body, default=str).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=method)  # noqa: S310 - https, or loopback
        try:
            with self._opener.open(request, timeout=_SECONDS) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as refused:
            with refused:
                raise _error_of(refused) from None
        except (OSError, ValueError) as error:
            raise Unavailable(
                f"The gateway at {self._url} did not answer ({type(error).__name__}).",
                code="gateway.unavailable",
                fix="check CONSENTRY_GATEWAY_URL and that the gateway runs; the command may be "
                "repeated",
            ) from error


def _error_of(refused: urllib.error.HTTPError) -> Refused | Unavailable:
    try:
        problem = dict(json.load(refused))
    except ValueError:
        problem = {}
    detail = str(problem.get("detail") or f"The gateway answered HTTP {refused.code}.")
    code = str(problem.get("code") or f"http.{refused.code}")
    fix = str(problem.get("fix") or "")
    if refused.code >= 500 or refused.code == 429:
        return Unavailable(detail, code=code, fix=fix)
    return Refused(detail, code=code, fix=fix)
