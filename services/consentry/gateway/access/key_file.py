"""The JSON file with the gateway's API keys: replaced as a whole, read again when it changes.

A damaged file lets nobody in.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Final, Literal

import structlog
from pydantic import Field

from consentry.domain.errors import Refused, UnsafeSetting
from consentry.domain.values import Micros
from consentry.forms.document import Document, InvalidDocument, ListOf
from consentry.gateway.access.keys import (
    KEY_ID_PATTERN,
    PEPPER_BYTES_MIN,
    ApiKey,
    Pepper,
    in_order,
    with_key,
    with_revocation,
)
from consentry.gateway.access.roles import Role

CHECK_SECONDS: Final = 2.0
"""The file is checked for changes this often."""
COUNTS_SECONDS: Final = 5.0
"""The keys that were read count for this time, even where the file cannot be checked.

A revocation takes no longer.
"""
FILE_BYTES_MAX: Final = 16 << 20
_FORMAT: Final[Literal[1]] = 1
# A secret store may show the file to a group of its own; nobody else reads it, and only the owner
# changes it.
_FORBIDDEN_MODE: Final = stat.S_IWGRP | stat.S_IRWXO
_LOG = structlog.get_logger(__name__)

_FileMark = tuple[int, int, int, int]


class StoredKey(Document):
    """One API key of the gateway as its key file holds it: with every field, and no other."""

    id: Annotated[str, Field(pattern=f"^{KEY_ID_PATTERN.pattern}$")]
    digest: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]
    subject: str
    roles: ListOf[Annotated[Role, Field(strict=False)]]
    purposes: ListOf[str] | None
    subscriber: str | None
    created: int
    expires: int | None
    revoked: int | None

    @classmethod
    def of(cls, key: ApiKey) -> StoredKey:
        """Return an API key in the form that the key file holds."""
        return cls(
            id=key.id,
            digest=key.digest.hex(),
            subject=key.subject,
            roles=tuple(sorted(key.roles)),
            purposes=None if key.purposes is None else tuple(sorted(key.purposes)),
            subscriber=key.subscriber,
            created=key.created,
            expires=key.expires,
            revoked=key.revoked,
        )

    def key(self) -> ApiKey:
        """Return the API key that this entry of the key file holds."""
        return ApiKey(
            id=self.id,
            digest=bytes.fromhex(self.digest),
            subject=self.subject,
            roles=frozenset(self.roles),
            purposes=None if self.purposes is None else frozenset(self.purposes),
            subscriber=self.subscriber,
            created=Micros(self.created),
            expires=None if self.expires is None else Micros(self.expires),
            revoked=None if self.revoked is None else Micros(self.revoked),
        )


class KeyFile(Document):
    """The whole content of the JSON file with the gateway's API keys."""

    format: Literal[1]
    keys: ListOf[StoredKey]


class FileKeyStore:
    """The gateway's API keys, kept in a JSON file.

    `find` knows the keys of the last `renew`, and none before the first.
    """

    def __init__(
        self, path: Path, *, monotonic_seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._monotonic_seconds = monotonic_seconds
        self._renewing = threading.Lock()
        self._keys: dict[str, ApiKey] = {}
        self._mark: _FileMark | None = None
        self._checked_at = float("-inf")
        self._complaint = ""

    def find(self, key_id: str) -> ApiKey | None:
        """Return the API key, as of the last `renew`; None where that is five seconds ago."""
        is_current = self._monotonic_seconds() < self._checked_at + COUNTS_SECONDS
        return self._keys.get(key_id) if is_current else None

    def is_stale(self) -> bool:
        """Return whether the key file has not been checked for two seconds."""
        return self._monotonic_seconds() >= self._checked_at + CHECK_SECONDS

    def renew(self) -> None:
        """Read the key file again if it has changed.

        A file that cannot be read, or not trusted, holds no keys.
        """
        with self._renewing:
            started = self._monotonic_seconds()
            try:
                mark = _mark(os.stat(self._path))
                if mark != self._mark:
                    self._keys, self._mark = _read(self._path)
                complaint = ""
            except (OSError, Refused) as error:
                self._keys, self._mark = {}, None
                complaint = str(error) if isinstance(error, Refused) else type(error).__name__
            if complaint and complaint != self._complaint:
                _LOG.error(
                    "the API keys cannot be read: no API key is accepted",
                    file=str(self._path),
                    why=complaint,
                )
            elif self._complaint and not complaint:
                _LOG.warning(
                    "the API keys can be read again", file=str(self._path), keys=len(self._keys)
                )
            self._complaint = complaint
            # Counted from before the file was read: what changes meanwhile is seen in time.
            self._checked_at = started

    def all(self) -> tuple[ApiKey, ...]:
        """Return every API key in the file, the oldest first. Raises Refused."""
        return in_order(self._read_now())

    def add(self, key: ApiKey) -> None:
        """Write the key file with one API key more. Raises Refused."""
        with self._changing():
            keys = self._read_now() if self._path.exists() else {}
            self._write(with_key(keys, key))

    def revoke(self, key_id: str, *, at: Micros) -> ApiKey:
        """Write the file with one API key revoked. Raises InvalidInput or Refused."""
        with self._changing():
            keys = with_revocation(self._read_now(), key_id, at)
            self._write(keys)
        return keys[key_id]

    def _read_now(self) -> dict[str, ApiKey]:
        try:
            return _read(self._path)[0]
        except OSError as error:
            raise _unreadable(self._path, type(error).__name__) from error

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let one writer at a time change the file, on this machine.

        Of two that read, add and write at once, one would lose its key.
        """
        lock = self._path.with_name(f".{self._path.name}.lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise _unwritable(self._path, error) from error
        finally:
            os.close(descriptor)

    def _write(self, keys: dict[str, ApiKey]) -> None:
        stored_keys = tuple(StoredKey.of(key) for key in in_order(keys))
        document = KeyFile(format=_FORMAT, keys=stored_keys).model_dump(mode="json")
        # Beside the file itself where the name is a link: replacing the link would leave two files
        # that differ.
        replace_file(self._path.resolve(), (json.dumps(document, indent=1) + "\n").encode("ascii"))


def load_pepper(path: Path) -> Pepper:
    """Read the pepper that hashes the gateway's API keys from its file: its bytes as they are.

    Raises Refused, or UnsafeSetting where others could get at it.
    """
    try:
        return Pepper(_read_private(path)[0])
    except OSError as error:
        raise Refused(
            f"The pepper of the API keys, {str(path)!r}, cannot be read ({type(error).__name__}).",
            code="access.pepper_unreadable",
            fix="name the file of CONSENTRY_ACCESS_PEPPER_FILE that the keys were made with; "
            "without it make new keys",
        ) from error


def make_pepper(path: Path) -> None:
    """Write a new random pepper for the hashes of the gateway's API keys, if there is none.

    It has 32 bytes. Raises Refused.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(PEPPER_BYTES_MIN))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def replace_file(path: Path, content: bytes) -> None:
    """Replace a secret file of the gateway at once, for its owner only: readers see old or new.

    Raises OSError.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_private(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a file that others can neither change nor read, except its group.

    Raises OSError, UnsafeSetting.
    """
    with path.open("rb") as file:
        # Asked of the open file: the name could lead to another one a moment later.
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
            raise _unreadable(path, "not a file of at most 16 MiB")
        if status.st_mode & _FORBIDDEN_MODE or status.st_uid not in (0, os.geteuid()):
            raise UnsafeSetting(
                f"The file {str(path)!r} (mode {stat.S_IMODE(status.st_mode):04o}) can be changed "
                "by others than its "
                "owner, read by everybody, or belongs to another user.",
                code="access.file_mode",
                fix=f"chmod 600 {path}, owned by the user of the service; make new keys if others "
                "may have used it",
            )
        return file.read(FILE_BYTES_MAX), status


def _read(path: Path) -> tuple[dict[str, ApiKey], _FileMark]:
    content, status = _read_private(path)
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"damaged ({type(error).__name__})") from error
    if isinstance(fields, dict) and fields.get("format") != _FORMAT:
        raise _unreadable(path, "of another format")
    try:
        document = KeyFile.read(fields, name="the file")
    except InvalidDocument as error:
        # Named by its field alone: what stands there is nobody's business.
        raise _unreadable(path, f"damaged (in {error.field})") from error
    keys = {stored.id: stored.key() for stored in document.keys}
    if len(keys) != len(document.keys):
        raise _unreadable(path, "damaged (an id stands there twice)")
    return keys, _mark(status)


def _mark(status: os.stat_result) -> _FileMark:
    """Return a mark that changes with a file's content, mode and owner."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _unreadable(path: Path, why: str) -> Refused:
    return Refused(
        f"The file {str(path)!r} cannot be read: {why}.",
        code="access.keys_unreadable",
        fix="restore it, or make the first key with `consentry keys new`; until then no API key "
        "is accepted",
    )


def _unwritable(path: Path, error: OSError) -> Refused:
    return Refused(
        f"The file {str(path)!r} cannot be written ({type(error).__name__}).",
        code="access.keys_unwritable",
        fix="run the command as the user who owns the file and its directory",
    )
