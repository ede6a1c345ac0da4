"""Writes a training run's certificate: the statement, its digest, and maybe a signature.

The signature is there where there is a key.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any, Final

from consentry.bundles.keys import SigningKey
from consentry.trainer.runs.certificates.canonical import canonical

FORMAT: Final = "consentry-certificate/1"
LIMIT: Final = (
    "it proves what the loader read; what a program did beside the loader, nobody can see here"
)
SIGNED_PREFIX: Final = FORMAT.encode() + b"\n"
"""Stands in front of the bytes that are signed: no signature over anything else fits them."""


def write_certificate(statement: dict[str, Any], key: SigningKey | None) -> bytes:
    """Return the file of a training run's certificate: canonical JSON and a line end.

    It is signed with Ed25519 where there is a key.
    """
    body = canonical(statement)
    signature = None
    if key is not None:
        value = base64.urlsafe_b64encode(key.sign(SIGNED_PREFIX + body)).decode()
        signature = {"algorithm": "Ed25519", "key": key.key_id, "value": value}
    envelope = {"certificate": statement, "digest": digest_of(body), "signature": signature}
    return canonical(envelope) + b"\n"


def digest_of(body: bytes) -> str:
    """Return the digest of a certificate's statement in canonical bytes."""
    return "sha256:" + hashlib.sha256(body).hexdigest()
