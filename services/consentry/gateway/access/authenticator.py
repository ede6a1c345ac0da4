"""From the Authorization header to a caller, without ever holding up the event loop."""

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
"""How long a request waits for what is outside. What is not known by then does not count."""
CHALLENGE: Final = 'Bearer realm="consentry"'
"""The value of WWW-Authenticate that goes with every 401."""

_LOG = structlog.get_logger(__name__)


class RefreshNeed(enum.Enum):
    """Whether a way in has to look outside before it can judge a credential."""

    NOTHING = enum.auto()
    SOON = enum.auto()
    """What is known still counts, but is to be renewed meanwhile."""
    NOW = enum.auto()
    """What is known does not suffice: renew it first, then judge."""


class CredentialScheme(Protocol):
    """One kind of credential: API keys, tokens of an issuer, the names of dev mode."""

    def recognises(self, credential: str) -> bool:
        """Whether a credential has the outer form of this kind.

        Exactly one way in judges each credential.
        """

    def need(self, credential: str) -> RefreshNeed:
        """Whether `renew` is to be called first. Never waits; judges nothing."""

    def renew(self) -> None:
        """Look outside: read the file, ask the issuer.

        May wait, for a bounded time; raises nothing.
        """

    def verify(self, credential: str) -> Principal:
        """The caller. Never waits. Raises BadCredential, and nothing else."""


class Authenticator:
    """Judges credentials by the first way in that recognises them; with none, everybody is
    refused.
    """

    def __init__(self, ways: Sequence[CredentialScheme]) -> None:
        self._ways = tuple(ways)
        self._renewals: dict[CredentialScheme, asyncio.Task[None]] = {}

    async def authorize(self, authorization: str | None, permission: Permission) -> Principal:
        """Return the caller behind an Authorization header, if they have the permission.

        Raises Unauthenticated and Forbidden.
        """
        principal = await self.authenticate(authorization)
        require(principal, permission)
        return principal

    async def authenticate(self, authorization: str | None) -> Principal:
        """The caller behind an Authorization header, for an asyncio server: what may wait does so
        in a thread.

        Raises Unauthenticated, always in the same words, for a missing header and for every kind of
        bad credential.
        """
        try:
            credential = bearer(authorization)
            way = self._way(credential)
            need = way.need(credential)
            if need is not RefreshNeed.NOTHING:
                renewal = self._renewal(way)
                if need is RefreshNeed.NOW:
                    # Neither a caller who hangs up nor one who waited long enough ends the renewal
                    # of the others.
                    await asyncio.wait([renewal], timeout=WAIT_SECONDS_MAX)
            return way.verify(credential)
        except BadCredential as error:
            raise _refusal(error) from None

    def _way(self, credential: str) -> CredentialScheme:
        for way in self._ways:
            if way.recognises(credential):
                return way
        raise BadCredential("kind_not_accepted")

    def _renewal(self, way: CredentialScheme) -> asyncio.Task[None]:
        """The renewal under way, or a new one: however many ask, one thread is busy with it."""
        found = self._renewals.get(way)
        if found is None or found.done():
            found = self._renewals[way] = asyncio.create_task(asyncio.to_thread(way.renew))
        return found


def require(principal: Principal, permission: Permission) -> None:
    """Return if the caller has the permission; else raise Forbidden."""
    if not principal.may(permission):
        raise Forbidden(
            f"This credential has no permission to {permission.value.replace('_', ' ')}.",
            fix="use a credential with a role that has it; docs/access.md has the table",
        )


def require_purpose(principal: Principal, purpose: str) -> None:
    """Return if the caller may ask about the purpose; else raise Forbidden."""
    require(principal, Permission.ASK)
    if not principal.may_ask_about(purpose):
        raise Forbidden(
            "This credential may not ask about that purpose.",
            fix="ask about a purpose the credential was issued for, or have one issued for this "
            "purpose",
        )


def require_subscriber(principal: Principal, subscriber: str) -> None:
    """Return if the caller may see how the subscriber stands; else raise Forbidden."""
    require(principal, Permission.READ_STATUS)
    if not principal.may_see_subscriber(subscriber):
        raise Forbidden(
            "This credential may not see that subscriber.",
            fix="ask about the credential's own subscriber, or use a role that sees all of them",
        )


def bearer(authorization: str | None) -> str:
    """The credential of an Authorization header:

    `Bearer <credential>`, visible ASCII, at most 8192 characters.

    Raises BadCredential.
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
