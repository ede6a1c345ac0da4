"""A certificate as a file: the statement, its digest, and a signature over it where there was a
key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Any, Final

from consentry.bundles.keys import PublicKeys, SigningKey
from consentry.domain.errors import InvalidInput
from consentry.trainer.runs.certificates.canonical import canonical, read_canonical
from consentry.trainer.runs.certificates.statement import check_statement

FORMAT: Final = "consentry-certificate/1"
BYTES_MAX: Final = 1 << 20
LIMIT: Final = (
    "it proves what the loader read; what a program did beside the loader, nobody can see here"
)
_SIGNED_AS: Final = FORMAT.encode() + b"\n"
"""In front of what is signed, so that a signature over something else never fits."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A statement that was read; `key_id` names the key that signed it, empty where nobody did.

    `is_verified`: the signature was checked with a key that the reader trusts.
    """

    statement: dict[str, Any]
    key_id: str
    is_verified: bool


def write_certificate(statement: dict[str, Any], key: SigningKey | None) -> bytes:
    """The file of a statement: canonical JSON and a line end.

    Signed with Ed25519 where there is a key.
    """
    body = canonical(statement)
    signature = None
    if key is not None:
        value = base64.urlsafe_b64encode(key.sign(_SIGNED_AS + body)).decode()
        signature = {"algorithm": "Ed25519", "key": key.key_id, "value": value}
    envelope = {"certificate": statement, "digest": _digest(body), "signature": signature}
    return canonical(envelope) + b"\n"


def read_certificate(raw: bytes, keys: PublicKeys | None = None) -> Certificate:
    """The statement in a file. Raises InvalidInput where a byte of it was altered.

    With keys an unsigned one, or one by another key, is read and not verified: what it says may be
    anybody's word.
    """
    if len(raw) > BYTES_MAX or raw[-1:] != b"\n":
        raise _tampered("it is too long or its end is missing")
    envelope = read_canonical(raw[:-1], what="certificate", code="certificate.tampered")
    if envelope.keys() != {"certificate", "digest", "signature"} or not isinstance(
        envelope["certificate"], dict
    ):
        raise _tampered("it has other parts than a certificate")
    statement, signature = envelope["certificate"], envelope["signature"]
    body = canonical(statement)
    if envelope["digest"] != _digest(body):
        raise _tampered("its digest is that of another statement")
    if statement.get("format") != FORMAT:
        raise InvalidInput(
            "The file is a certificate of a form that is not known here.",
            code="certificate.format",
            fix="verify it with the version that wrote it, or a newer one",
        )
    check_statement(statement)
    if signature is None:
        return Certificate(statement, "", False)
    name, value = _signature(signature)
    if keys is None or name not in keys:
        return Certificate(statement, name, False)
    if not keys.verifies(name, value, _SIGNED_AS + body):
        raise _tampered("its signature does not match")
    return Certificate(statement, name, True)


def _signature(told: Any) -> tuple[str, bytes]:
    """The name of the key and the signature's bytes, in their one spelling."""
    if (
        isinstance(told, dict)
        and told.keys() == {"algorithm", "key", "value"}
        and told["algorithm"] == "Ed25519"
    ):
        name, text = told["key"], told["value"]
        if isinstance(name, str) and isinstance(text, str) and text.isascii():
            try:
                value = base64.b64decode(text, altchars=b"-_", validate=True)
            except binascii.Error:
                value = b""
            if len(value) == 64 and base64.urlsafe_b64encode(value).decode() == text:
                return name, value
    raise _tampered("its signature is none")


def _digest(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


def _tampered(why: str) -> InvalidInput:
    return InvalidInput(
        f"The certificate was altered: {why}.",
        code="certificate.tampered",
        fix="take the certificate as the run wrote it; trust nothing that this one says",
    )
