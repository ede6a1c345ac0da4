"""API keys of the gateway's callers, of which the gateway keeps only a keyed hash.

A key is `ck_<key id>_<secret>`, with 256 random bits.

The hash covers what the key grants as well as its secret. Whoever can edit the stored keys but does
not know the pepper can revoke a key, and undo that, but neither widen one nor make one up.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass, replace
from typing import Final, Protocol

from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.values import Micros, parse_name
from consentry.gateway.access.authenticator import RefreshNeed
from consentry.gateway.access.errors import BadCredential
from consentry.gateway.access.roles import Principal, Role
from consentry.ops.clock import Clock

KEY_ID_PATTERN: Final = re.compile(r"[a-z2-7]{10}", re.ASCII)
SUBJECT_PATTERN: Final = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)
PEPPER_BYTES_MIN: Final = 32
_KEY_PATTERN: Final = re.compile(r"ck_([a-z2-7]{10})_([A-Za-z0-9_-]{43})", re.ASCII)
_PREFIX: Final = "ck_"
_SECRET_BYTES: Final = 32


class Pepper:
    """The secret with which the gateway hashes its API keys.

    It is kept apart from the stored keys, and never shown.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        if len(value) < PEPPER_BYTES_MIN:
            raise Refused(
                f"The pepper of the API keys has {len(value)} bytes; fewer than "
                f"{PEPPER_BYTES_MIN} could be guessed.",
                code="access.pepper_short",
                fix="have `consentry keys new` make one, or write 32 random bytes or more into "
                "the file",
            )
        self._value = value

    def __repr__(self) -> str:
        return "Pepper(hidden)"

    def digest(self, text: bytes) -> bytes:
        """Return the HMAC-SHA-256 of `text` under this pepper."""
        return hmac.digest(self._value, text, hashlib.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An API key of a gateway caller as it is stored: everything but its secret."""

    id: str
    digest: bytes
    subject: str
    roles: frozenset[Role]
    purposes: frozenset[str] | None
    subscriber: str | None
    created: Micros
    expires: Micros | None
    revoked: Micros | None = None

    def is_valid(self, now: Micros) -> bool:
        """Return whether the API key counts at `now`: neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def principal(self) -> Principal:
        """Return the gateway caller who shows this API key."""
        return Principal(
            subject=self.subject,
            roles=self.roles,
            credential=self.id,
            purposes=self.purposes,
            subscriber=self.subscriber,
        )


class KeyStore(Protocol):
    """A store of the gateway's API keys.

    It finds no key that it cannot read: a damaged store lets nobody in.
    """

    def find(self, key_id: str) -> ApiKey | None:
        """Return the API key, as of the last `renew`. Never waits and raises nothing."""

    def is_stale(self) -> bool:
        """Return whether `renew` is due: `find` must never be older than five seconds."""

    def renew(self) -> None:
        """Read the stored API keys again.

        Raises nothing: a store that cannot be read has no keys, and is logged.
        """

    def all(self) -> tuple[ApiKey, ...]:
        """Return every API key as stored now, the oldest first, revoked ones too.

        Raises Refused where the store cannot be read.
        """

    def add(self, key: ApiKey) -> None:
        """Store a new API key.

        Raises Refused if its id is taken or the store cannot be written.
        """

    def revoke(self, key_id: str, *, at: Micros) -> ApiKey:
        """Revoke an API key from now on; the first revocation stays.

        Raises InvalidInput if there is none of that id.
        """


class InMemoryKeyStore:
    """The gateway's API keys in the memory of this process only."""

    def __init__(self) -> None:
        self._keys: dict[str, ApiKey] = {}

    def find(self, key_id: str) -> ApiKey | None:
        """Return the key, as stored now."""
        return self._keys.get(key_id)

    def is_stale(self) -> bool:
        """Return False: keys in memory have no file to be read again."""
        return False

    def renew(self) -> None:
        """Do nothing: keys in memory have no file to be read again."""

    def all(self) -> tuple[ApiKey, ...]:
        """Return every key, the oldest first."""
        return in_order(self._keys)

    def add(self, key: ApiKey) -> None:
        """Keep a new key."""
        self._keys = with_key(self._keys, key)

    def revoke(self, key_id: str, *, at: Micros) -> ApiKey:
        """Revoke a key."""
        self._keys = with_revocation(self._keys, key_id, at)
        return self._keys[key_id]


class ApiKeyScheme:
    """Gateway callers who show an API key."""

    def __init__(self, store: KeyStore, pepper: Pepper, clock: Clock) -> None:
        self._store = store
        self._pepper = pepper
        self._clock = clock
        # What an unknown id is compared with, so that it costs what a wrong secret does. Nobody
        # knows its secret.
        elsewhere = Pepper(secrets.token_bytes(_SECRET_BYTES))
        self._decoy, _ = new_key(elsewhere, subject="nobody", roles=[Role.AUDITOR], now=Micros(0))

    def recognises(self, credential: str) -> bool:
        """Return whether the credential starts as the gateway's API keys do."""
        return credential.startswith(_PREFIX)

    def need(self, credential: str) -> RefreshNeed:
        """Return NOW where the known keys could be older than a revocation may take."""
        return RefreshNeed.NOW if self._store.is_stale() else RefreshNeed.NOTHING

    def renew(self) -> None:
        """Read the stored API keys again."""
        self._store.renew()

    def verify(self, credential: str) -> Principal:
        """Return the caller who shows this API key. Raises BadCredential."""
        match = _KEY_PATTERN.fullmatch(credential)
        if match is None:
            raise BadCredential("key_malformed")
        stored = self._store.find(match[1])
        key = stored or self._decoy
        digest = _digest(self._pepper, key, match[2])
        # The comparison comes first: whoever has no valid secret must not learn what became of a
        # key.
        if not hmac.compare_digest(digest, key.digest) or stored is None:
            raise BadCredential("key_unknown")
        if not key.is_valid(self._clock()):
            raise BadCredential("key_revoked" if key.revoked is not None else "key_expired")
        return key.principal()


def new_key(
    pepper: Pepper,
    *,
    subject: str,
    roles: list[Role],
    now: Micros,
    purposes: frozenset[str] | None = None,
    subscriber: str | None = None,
    expires: Micros | None = None,
) -> tuple[ApiKey, str]:
    """Make a new API key for a gateway caller; return it and its text, which exists only here.

    Raises InvalidInput for what a key cannot be.
    """
    _check_grant(subject=subject, roles=roles, purposes=purposes, subscriber=subscriber)
    if expires is not None and expires <= now:
        raise InvalidInput(
            "The key would expire before it is made.",
            code="access.key_expires",
            fix="give a time ahead, such as 90d",
        )
    key_id = base64.b32encode(secrets.token_bytes(7)).decode().lower()[:10]
    secret = base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).decode().rstrip("=")
    key = ApiKey(
        id=key_id,
        digest=b"",
        subject=subject,
        roles=frozenset(roles),
        purposes=purposes,
        subscriber=subscriber,
        created=now,
        expires=expires,
    )
    return replace(key, digest=_digest(pepper, key, secret)), f"{_PREFIX}{key_id}_{secret}"


def in_order(keys: dict[str, ApiKey]) -> tuple[ApiKey, ...]:
    """Return the gateway's API keys, the oldest first."""
    return tuple(sorted(keys.values(), key=lambda key: (key.created, key.id)))


def with_key(keys: dict[str, ApiKey], key: ApiKey) -> dict[str, ApiKey]:
    """Return the gateway's API keys and one more. Raises Refused if its id is taken."""
    if key.id in keys:
        raise Refused(
            f"There is a key {key.id} already.",
            code="access.key_exists",
            fix="make the key again: ids are random",
        )
    return {**keys, key.id: key}


def with_revocation(keys: dict[str, ApiKey], key_id: str, at: Micros) -> dict[str, ApiKey]:
    """Return the gateway's API keys with one of them revoked.

    Raises InvalidInput if it is not there.
    """
    key = keys.get(key_id)
    if key is None:
        # Never repeat the input: somebody may have pasted the whole key.
        raise InvalidInput(
            "There is no API key of that id.",
            code="access.key_unknown",
            fix="give the ten characters between the underscores, as `consentry keys list` shows "
            "them",
        )
    return keys if key.revoked is not None else {**keys, key_id: replace(key, revoked=at)}


def _digest(pepper: Pepper, key: ApiKey, secret: str) -> bytes:
    """Return the keyed hash over the secret and all that the key grants.

    The revocation is not covered.
    """
    purposes = None if key.purposes is None else sorted(key.purposes)
    grant = [
        key.id,
        secret,
        key.subject,
        sorted(key.roles),
        purposes,
        key.subscriber,
        key.created,
        key.expires,
    ]
    return pepper.digest(json.dumps(grant, separators=(",", ":")).encode("ascii"))


def _check_grant(
    *, subject: str, roles: list[Role], purposes: frozenset[str] | None, subscriber: str | None
) -> None:
    if SUBJECT_PATTERN.fullmatch(subject) is None:
        raise InvalidInput(
            f"The subject {subject[:80]!r} is not 1 to 200 visible ASCII characters.",
            code="access.subject",
            fix="name the service, or the person as your identity provider names them",
        )
    if not roles:
        raise InvalidInput(
            "The key has no role, so that it could do nothing.",
            code="access.roles",
            fix=f"give one or more of {', '.join(Role)}",
        )
    if purposes is not None and (not purposes or Role.TRAINER not in roles):
        raise InvalidInput(
            "Purposes bind a trainer's key, which has to name one at least, and no other.",
            code="access.purposes",
            fix="give a trainer's key the purposes it may ask about, and other keys none",
        )
    for purpose in purposes or ():
        parse_name(purpose, what="purpose")
    if subscriber is not None:
        parse_name(subscriber, what="subscriber")
