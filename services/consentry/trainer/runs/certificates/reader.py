"""Reads a training run's certificate, and refuses it where a byte of it was altered.

A training run only writes certificates: it does not load this module, nor pydantic with it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final

from consentry.bundles.keys import PublicKeys
from consentry.domain.errors import InvalidInput
from consentry.trainer.runs.certificates.canonical import canonical, read_canonical
from consentry.trainer.runs.certificates.statement import check_statement
from consentry.trainer.runs.certificates.writer import FORMAT, SIGNED_PREFIX, digest_of

BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Certificate:
    """A training run's certificate: a statement that was read from a file.

    `key_id` names the key that signed it; empty where it is not signed. `is_verified` is True where
    the signature was checked with a key that the reader trusts.
    """

    statement: dict[str, Any]
    key_id: str
    is_verified: bool


def read_certificate(raw: bytes, keys: PublicKeys | None = None) -> Certificate:
    """Read a training run's certificate. Raises InvalidInput if a byte was altered.

    A statement that is not signed, or signed by a key not in `keys`, is read and not verified:
    anybody may have written it.
    """
    if len(raw) > BYTES_MAX or raw[-1:] != b"\n":
        raise _tampered("it is too long or its end is missing")
    envelope = read_canonical(raw[:-1], what="certificate", code="certificate.tampered")
    if envelope.keys() != {"certificate", "digest", "signature"}:
        raise _tampered("it has other parts than a certificate")
    statement, signature = envelope["certificate"], envelope["signature"]
    if not isinstance(statement, dict):
        raise _tampered("it has other parts than a certificate")
    body = canonical(statement)
    if envelope["digest"] != digest_of(body):
        raise _tampered("its digest is that of another statement")
    if statement.get("format") != FORMAT:
        raise InvalidInput(
            "The file is a certificate of a format that this version does not know.",
            code="certificate.format",
            fix="verify it with the version that wrote it, or a newer one",
        )
    check_statement(statement)
    if signature is None:
        return Certificate(statement, "", False)
    key_id, value = _read_signature(signature)
    if keys is None or key_id not in keys:
        return Certificate(statement, key_id, False)
    if not keys.verifies(key_id, value, SIGNED_PREFIX + body):
        raise _tampered("its signature does not match")
    return Certificate(statement, key_id, True)


def _read_signature(signature: Any) -> tuple[str, bytes]:
    """Return the id of the key and the 64 bytes of the signature.

    Raises InvalidInput unless it is spelled exactly as `write_certificate` spells it.
    """
    if not isinstance(signature, dict) or signature.keys() != {"algorithm", "key", "value"}:
        raise _tampered("its signature has other parts")
    key_id, text = signature["key"], signature["value"]
    if signature["algorithm"] != "Ed25519" or not isinstance(key_id, str):
        raise _tampered("its signature is not one with Ed25519")
    if not isinstance(text, str) or not text.isascii():
        raise _tampered("its signature is not in base64")
    try:
        value = base64.b64decode(text, altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise _tampered("its signature is not in base64") from error
    # Base64 can spell the same bytes in several ways, by bits that are left over at its end.
    if len(value) != 64 or base64.urlsafe_b64encode(value).decode() != text:
        raise _tampered("its signature is not 64 bytes in base64")
    return key_id, value


def _tampered(why: str) -> InvalidInput:
    return InvalidInput(
        f"The certificate was altered: {why}.",
        code="certificate.tampered",
        fix="take the certificate as the run wrote it; trust nothing that this one says",
    )
