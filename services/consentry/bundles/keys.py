"""Ed25519 keys of bundles: one signs; several may be believed while keys are changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from consentry.domain.errors import InvalidInput, Refused, UnsafeSetting

KEY_ID_LENGTH: Final = 16
_KEY_FILE_BYTES_MAX: Final = 64 * 1024
_END: Final = b"-----END PUBLIC KEY-----"
_OTHERS_MAY: Final = stat.S_IRWXG | stat.S_IRWXO


class SigningKey:
    """The private key that signs bundles. It is never shown: not by `repr`, not in an error."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key()
        self.key_id = key_id_of(self.public)

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"

    @classmethod
    def generate(cls) -> Self:
        """Return a new key to sign bundles."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Return the signing key in a PEM file: PKCS #8, as `openssl genpkey` writes.

        Raises InvalidInput where there is no key, UnsafeSetting where others than its owner may
        read the file.
        """
        try:
            with Path(path).open("rb") as file:
                if os.fstat(file.fileno()).st_mode & _OTHERS_MAY:
                    raise UnsafeSetting(
                        f"The file of the signing key {str(path)!r} may be read by others than "
                        "its owner.",
                        code="bundle.key_permissions",
                        fix=f"chmod 600 {path}",
                    )
                text = file.read(_KEY_FILE_BYTES_MAX)
            private = load_pem_private_key(text, password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            # Without the cause: it may quote the content of the file.
            raise _no_key(path, "private", error) from None
        if not isinstance(private, Ed25519PrivateKey):
            raise _no_key(path, "private", TypeError())
        return cls(private)

    def sign(self, content: bytes) -> bytes:
        """Return the signature, 64 bytes, over exactly this content of a bundle."""
        return self._private.sign(content)

    def private_text(self) -> bytes:
        """Return the PEM text of the private key: for its file, and nothing else."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def public_text(self) -> bytes:
        """Return the PEM text of the public key."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class PublicKeys:
    """The public keys by which a reader believes bundles, by key id.

    While keys are being changed these are two or more.
    """

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = {key_id_of(key): key for key in keys}

    def __repr__(self) -> str:
        return f"PublicKeys({sorted(self._keys)})"

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    @classmethod
    def read(cls, *paths: Path | str) -> Self:
        """Return the public keys in PEM files, each with one key or several.

        Raises InvalidInput where a file has no key.
        """
        keys: list[Ed25519PublicKey] = []
        for path in paths:
            keys += _public_keys(path)
        return cls(keys)

    def and_of(self, key: SigningKey) -> PublicKeys:
        """Return these keys and the public one of a signing key."""
        return PublicKeys([*self._keys.values(), key.public])

    def verifies(self, key_id: str, signature: bytes, content: bytes) -> bool:
        """Return whether the key with this id signed exactly these bytes.

        Raises KeyError where there is no such key.
        """
        try:
            self._keys[key_id].verify(signature, content)
        except InvalidSignature:
            return False
        return True


def key_id_of(key: Ed25519PublicKey) -> str:
    """Return the id of a bundle's key: the first 16 hex digits of its 32 bytes' SHA-256."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:KEY_ID_LENGTH]


def make_key_files(path: Path) -> tuple[Path, Path, str]:
    """Write the files of a new key to sign bundles, and return both files and the key id.

    The private key goes to `path`, for its owner only, the public one beside it with `.pub`. A file
    that is there is never written over. Raises Refused.
    """
    key, public_path = SigningKey.generate(), path.with_name(f"{path.name}.pub")
    try:
        for file, content, mode in (
            (path, key.private_text(), 0o600),
            (public_path, key.public_text(), 0o644),
        ):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
    except FileExistsError as error:
        raise Refused(
            f"The file {error.filename!r} is there already, and a key is never written over.",
            code="bundle.key_exists",
            fix="name another file; to change keys, have readers know the new public key before "
            "the bundler signs",
        ) from error
    except OSError as error:
        raise Refused(
            f"The file {str(path)!r} cannot be written ({type(error).__name__}).",
            code="bundle.key_unwritable",
            fix="name a file in a directory that is there and may be written to",
        ) from error
    return path, public_path, key.key_id


def _public_keys(path: Path | str) -> list[Ed25519PublicKey]:
    try:
        with Path(path).open("rb") as file:
            text = file.read(_KEY_FILE_BYTES_MAX)
        loaded = [load_pem_public_key(part + _END) for part in text.split(_END)[:-1]]
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "public", error) from None
    keys = [key for key in loaded if isinstance(key, Ed25519PublicKey)]
    if not keys or len(keys) < len(loaded):
        raise _no_key(path, "public", TypeError())
    return keys


def _no_key(path: Path | str, which: str, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"The file {str(path)!r} does not hold a {which} Ed25519 key that can be read "
        f"({type(error).__name__}).",
        code="bundle.key",
        fix="name a file such as `consentry bundle keys init` makes; the public one ends in .pub",
    )
