"""Access to the gateway: from the Authorization header to a caller, never blocking the loop."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from typing import Final, Protocol

import structlog

from consentry.gateway.access.errors import BadCredential, Forbidden, Unauthenticated
from consentry.gateway.access.roles import Permission, Principal

CREDENTIAL_CHARACTERS_MAX: Final = 8192
WAIT_SECONDS_MAX: Final = 5.0
"""A request waits at most this long for a file or an issuer; later answers do not count."""
CHALLENGE: Final = 'Bearer realm="consentry"'
"""The value of WWW-Authenticate in every 401."""

_LOG = structlog.get_logger(__name__)


class RefreshNeed(enum.Enum):
    """The need to renew keys or tokens before a gateway caller's credential is verified."""

    NOTHING = enum.auto()
    SOON = enum.auto()
    """The known still counts, but is to be renewed meanwhile."""
    NOW = enum.auto()
    """The known does not suffice: renew it first, then verify."""


class CredentialScheme(Protocol):
    """One kind of credential for the gateway: API keys, an issuer's tokens, dev mode's names."""

    def recognises(self, credential: str) -> bool:
        """Return whether a credential has the outer form of this kind.

        Exactly one scheme verifies each credential.
        """

    def need(self, credential: str) -> RefreshNeed:
        """Return whether `renew` is to be called before `verify`. Never waits."""

    def renew(self) -> None:
        """Read the file of API keys again, or ask the token issuer for its keys.

        It may wait for a bounded time. Raises nothing.
        """

    def verify(self, credential: str) -> Principal:
        """Return the caller behind the credential. Never waits.

        Raises BadCredential, and nothing else.
        """


class Authenticator:
    """Finds out who calls the gateway, by the first scheme that recognises the credential.

    Without schemes everybody is refused.
    """

    def __init__(self, schemes: Sequence[CredentialScheme]) -> None:
        self._schemes = tuple(schemes)
        self._renewals: dict[CredentialScheme, asyncio.Task[None]] = {}

    async def authorize(self, authorization: str | None, permission: Permission) -> Principal:
        """Return the gateway caller of an Authorization header, with the permission.

        Raises Unauthenticated and Forbidden.
        """
        principal = await self.authenticate(authorization)
        require(principal, permission)
        return principal

    async def authenticate(self, authorization: str | None) -> Principal:
        """Return the caller behind an Authorization header; renewals run in a thread.

        Raises Unauthenticated, always in the same words, for a missing header and for every kind of
        bad credential.
        """
        try:
            credential = bearer(authorization)
            scheme = self._scheme(credential)
            need = scheme.need(credential)
            if need is not RefreshNeed.NOTHING:
                renewal = self._renewal(scheme)
                if need is RefreshNeed.NOW:
                    # A caller who hangs up, or has waited long enough, does not end the renewal of
                    # the others.
                    await asyncio.wait([renewal], timeout=WAIT_SECONDS_MAX)
            return scheme.verify(credential)
        except BadCredential as error:
            raise _refusal(error) from None

    def _scheme(self, credential: str) -> CredentialScheme:
        for scheme in self._schemes:
            if scheme.recognises(credential):
                return scheme
        raise BadCredential("kind_not_accepted")

    def _renewal(self, scheme: CredentialScheme) -> asyncio.Task[None]:
        """Return the renewal that runs, or a new one: at most one thread renews a scheme."""
        renewal = self._renewals.get(scheme)
        if renewal is None or renewal.done():
            renewal = asyncio.create_task(asyncio.to_thread(scheme.renew))
            self._renewals[scheme] = renewal
        return renewal


def require(principal: Principal, permission: Permission) -> None:
    """Check that a caller of the gateway has a permission. Raises Forbidden."""
    if not principal.may(permission):
        raise Forbidden(
            f"This credential has no permission to {permission.value.replace('_', ' ')}.",
            fix="use a credential with a role that has it; docs/access.md has the table",
        )


def require_purpose(principal: Principal, purpose: str) -> None:
    """Check that a caller of the gateway may ask about this purpose. Raises Forbidden."""
    require(principal, Permission.ASK)
    if not principal.may_ask_about(purpose):
        raise Forbidden(
            "This credential may not ask about that purpose.",
            fix="ask about a purpose the credential was issued for, or have one issued for this "
            "purpose",
        )


def require_subscriber(principal: Principal, subscriber: str) -> None:
    """Check that a caller of the gateway may see this subscriber's state. Raises Forbidden."""
    require(principal, Permission.READ_STATUS)
    if not principal.may_see_subscriber(subscriber):
        raise Forbidden(
            "This credential may not see that subscriber.",
            fix="ask about the credential's own subscriber, or use a role that sees all of them",
        )


def bearer(authorization: str | None) -> str:
    """Return the credential in the Authorization header of a request to the gateway.

    The header is `Bearer <credential>`, visible ASCII, at most 8192 characters. Raises
    BadCredential.
    """
    if authorization is None:
        raise BadCredential("missing")
    if len(authorization) > CREDENTIAL_CHARACTERS_MAX + len("Bearer "):
        raise BadCredential("too_long")
    scheme, _, credential = authorization.partition(" ")
    if scheme.lower() != "bearer" or not credential:
        raise BadCredential("not_bearer")
    if not (credential.isascii() and credential.isprintable()) or " " in credential:
        raise BadCredential("not_visible_ascii")
    return credential


def _refusal(error: BadCredential) -> Unauthenticated:
    # The cause is a word of ours: nothing of the credential, or of what it claims, is ever written.
    _LOG.debug("credential refused", cause=error.cause)
    return Unauthenticated()
