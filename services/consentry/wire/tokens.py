"""Consistency tokens as signed text: how far a reader must have read to know an accepted event.

They are signed, compact, and safe to pass on. A token only ever adds a demand: a forged one can
make an answer STALE and nothing else. The signature shows that the token in a job's configuration
is the one that a gateway or producer gave out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from consentry.domain.errors import InvalidInput
from consentry.domain.values import Micros
from consentry.wire.avro_bytes import read_varint, varint_bytes

TEXT_LENGTH_MAX: Final = 16_384
PARTITIONS_MAX: Final = 1024
SECRET_BYTES_MIN: Final = 32
LOG_LENGTH: Final = 8
UNSIGNED: Final = 0
"""The key id of an unsigned token; its last bytes are a checksum then."""

_FORMAT: Final = 1
_MAC_LENGTH: Final = 16
_NUMBER_MAX: Final = 1 << 63
_GIVE_WHOLE: Final = "pass the token on as it was given out, every character of it"
_SECOND_MICROS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Token:
    """A consistency token decoded: every offset of the log below these has been applied.

    `log` (8 bytes) tells which log the offsets are of (kafka.log_identity): after a topic was made
    anew they mean nothing. `offsets` has the next offset of member-events per partition, `controls`
    the next offset of controls; an offset of 0, and a partition that is not named, demand nothing.
    `issued_at` is in microseconds, of whole seconds.
    """

    log: bytes
    offsets: Mapping[int, int]
    controls: int
    issued_at: Micros

    def merged(self, other: Token) -> Token:
        """Return a consistency token as fresh as both. Raises InvalidInput if logs differ."""
        if self.log != other.log:
            raise InvalidInput(
                "The tokens are of two different logs: no reader can be as fresh as both.",
                code="token.other_log",
                fix="take tokens of one deployment, given out after its topics were made",
            )
        offsets = dict(self.offsets)
        for partition, offset in other.offsets.items():
            offsets[partition] = max(offset, offsets.get(partition, 0))
        return Token(
            self.log,
            offsets,
            max(self.controls, other.controls),
            Micros(max(self.issued_at, other.issued_at)),
        )


def merge(tokens: Iterable[Token]) -> Token | None:
    """Return one consistency token as fresh as each of these; None for an empty list.

    Raises InvalidInput for different logs.
    """
    merged: Token | None = None
    for token in tokens:
        merged = token if merged is None else merged.merged(token)
    return merged


class TokenKeys:
    """The secrets that consistency tokens are signed with, by key id (1 to 255).

    The highest id signs, all of them verify. Without any, tokens are unsigned, and only unsigned
    ones can be checked.
    """

    def __init__(self, secrets: Mapping[int, bytes] | None = None) -> None:
        self._secrets = dict(secrets or {})
        self.signing = max(self._secrets, default=UNSIGNED)

    def __repr__(self) -> str:
        return f"TokenKeys(ids={sorted(self._secrets)})"

    def __bool__(self) -> bool:
        return bool(self._secrets)

    @classmethod
    def parse(cls, text: str) -> TokenKeys:
        """Return the token secrets in lines of ID:HEX, each of 32 bytes or more.

        Raises InvalidInput, never naming a secret.
        """
        secrets: dict[int, bytes] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            name, _, secret = line.strip().partition(":")
            try:
                key_id, key = int(name), bytes.fromhex(secret)
            except ValueError:
                key_id, key = 0, b""
            if not 0 < key_id < 256 or len(key) < SECRET_BYTES_MIN or key_id in secrets:
                raise InvalidInput(
                    f"Line {number} of the token keys is not ID:HEX, with an id of its own from 1 "
                    "to 255 and a secret "
                    f"of {SECRET_BYTES_MIN} bytes or more.",
                    code="token.keys",
                    fix="write a line such as 1:$(openssl rand -hex 32)",
                )
            secrets[key_id] = key
        return cls(secrets)

    @classmethod
    def read(cls, path: Path | str) -> TokenKeys:
        """Return the token secrets in a file; see `parse`. Raises InvalidInput.

        It does so also if the file is unreadable.
        """
        try:
            return cls.parse(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(
                f"The file of token keys {str(path)!r} cannot be read ({type(error).__name__}).",
                code="token.keys",
                fix="name a readable file with lines of ID:HEX, such as `consentry keys init` "
                "makes",
            ) from error

    def mac(self, key_id: int, payload: bytes) -> bytes:
        """Return the 16 bytes that end a token: HMAC-SHA-256, cut; unsigned, a checksum.

        Raises KeyError for an unknown key.
        """
        if key_id == UNSIGNED:
            return hashlib.blake2b(payload, digest_size=_MAC_LENGTH).digest()
        return hmac.digest(self._secrets[key_id], payload, "sha256")[:_MAC_LENGTH]


def write_token(token: Token, keys: TokenKeys) -> str:
    """Return a consistency token as URL-safe text, signed with the newest key."""
    payload = _payload(token, keys.signing)
    return base64.urlsafe_b64encode(payload + keys.mac(keys.signing, payload)).rstrip(b"=").decode()


def read_token(text: str, keys: TokenKeys) -> Token:
    """Decode a consistency token from text, verified if `keys` holds any. Raises InvalidInput.

    A reader without keys takes any token: it adds a demand, whoever wrote it. A reader with keys
    refuses unsigned ones.
    """
    raw = _raw(text)
    payload, mac = raw[:-_MAC_LENGTH], raw[-_MAC_LENGTH:]
    if len(payload) < 2 or payload[0] != _FORMAT:
        _refuse("malformed", "is not one", _GIVE_WHOLE)
    key_id = payload[1]
    if keys or key_id == UNSIGNED:
        _verify(payload, mac, key_id, keys)
    token = _parse(payload)
    if token is None:
        _refuse("malformed", "is not one", _GIVE_WHOLE)
    return token


def _verify(payload: bytes, mac: bytes, key_id: int, keys: TokenKeys) -> None:
    if keys and key_id == UNSIGNED:
        _refuse(
            "unsigned",
            "is not signed",
            "give the producer the token keys too, or take the gateway's token",
        )
    try:
        expected = keys.mac(key_id, payload)
    except KeyError:
        _refuse(
            "key_unknown",
            f"is signed with key {key_id}, which is not known here",
            "add the key, or ask anew",
        )
    if not hmac.compare_digest(expected, mac):
        _refuse("signature", "was altered", _GIVE_WHOLE)


def _refuse(word: str, problem: str, fix: str) -> NoReturn:
    raise InvalidInput(f"The consistency token {problem}.", code=f"token.{word}", fix=fix)


def _raw(text: str) -> bytes:
    if len(text) <= TEXT_LENGTH_MAX and text.isascii():
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            raw = b""
        # Base64 has spare bits: only the one spelling that is given out counts.
        if raw and base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == text:
            return raw
    _refuse("malformed", "is not one", _GIVE_WHOLE)


def _payload(token: Token, key_id: int) -> bytes:
    numbers = [token.issued_at // _SECOND_MICROS, token.controls, len(token.offsets)]
    for partition, offset in sorted(token.offsets.items()):
        numbers += [partition, offset]
    return bytes([_FORMAT, key_id]) + token.log + b"".join(map(varint_bytes, numbers))


def _parse(payload: bytes) -> Token | None:
    """Return the token, or None where the bytes are not exactly what it would be written as."""
    position = 2 + LOG_LENGTH
    log, numbers = payload[2:position], []
    try:
        while position < len(payload):
            number, position = read_varint(payload, position)
            numbers.append(number)
    except IndexError:
        return None
    if len(numbers) < 3 or len(numbers) != 3 + 2 * numbers[2] or numbers[2] > PARTITIONS_MAX:
        return None
    if max(numbers) >= _NUMBER_MAX:
        return None
    token = Token(
        log,
        dict(zip(numbers[3::2], numbers[4::2], strict=True)),
        numbers[1],
        Micros(numbers[0] * 1_000_000),
    )
    return token if _payload(token, payload[1]) == payload else None
