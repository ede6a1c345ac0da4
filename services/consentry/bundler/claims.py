"""The claims of bundlers to a bundle's number: each creates a file that exists only once.

Two bundlers on one store must not both go on from the same bundle: a trainer would follow one of
them, and the other would think it had been read. Three things keep the chain from forking unseen:

1. A bundle's number is claimed before the bundle is written. No number can be claimed twice, nor
   one below another.
2. A bundler that sees that another one published lately, or is writing, stands by. It takes over
   when the other falls silent.
3. Right before it is published a bundle has to have the highest claim, and the newest bundle has to
   be the one that it was built on. A writer that freezes between this check and its write can still
   put the pointer back by one turn; the other one sees that at its next turn, logs it, and writes a
   snapshot of a higher number.

Stores that create a file atomically are local ones, memory, and those whose fsspec driver does
`mode="create"` by a conditional write (s3fs, gcsfs). With another driver two may hold one claim,
and the check before publishing decides.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from consentry.domain.errors import Unavailable
from consentry.domain.values import Micros
from consentry.ops.clock import Clock

CLAIM_SECONDS: Final = 300.0
"""The time to write a bundle once its number is claimed; then another bundler takes over."""
FOLDER: Final = "claims"
KEPT: Final = 128
"""Claims that stay, the newest ones."""
_NAME: Final = re.compile(r"([0-9]{10})\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class SequenceClaim:
    """A bundler's claim to the number of its next bundle: its writer and time.

    It has no writer if its file is unreadable.
    """

    sequence: int
    writer: str
    claimed_at: Micros


class SequenceClaims:
    """The bundlers' claims to the numbers of their next bundles, as files beside the bundles.

    `writer` names this bundler and no other.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        writer: str,
        clock: Clock,
        claim_seconds: float = CLAIM_SECONDS,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.writer = writer
        self._clock = clock
        self._claim_seconds = claim_seconds
        self._fs, root = fsspec.core.url_to_fs(str(url), **(options or {}))
        self._folder = f"{str(root).rstrip('/')}/{FOLDER}"
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def take(self, least: int) -> int | None:
        """Claim a bundle's number, `least` or higher, and return it.

        None if another writer holds one.

        Raises Unavailable.
        """
        highest = self.highest()
        if highest is not None and highest.sequence >= least and self._is_held(highest):
            return None
        sequence = max(least, 0 if highest is None else highest.sequence + 1)
        content = json.dumps({"writer": self.writer, "claimed_at": self._clock()}).encode()
        try:
            self._create(f"{sequence:010d}.json", content)
        except FileExistsError:
            return None
        except Exception as error:
            raise _unavailable(error) from error
        self._forget(sequence - KEPT)
        return sequence

    def highest(self) -> SequenceClaim | None:
        """Return the highest claim of any bundler. Raises Unavailable."""
        sequences = self._sequences()
        return self.of(sequences[-1]) if sequences else None

    def of(self, sequence: int) -> SequenceClaim:
        """Return the claim to a bundle's number.

        It is nobody's if it cannot be read, or is gone.

        Raises Unavailable.
        """
        try:
            claim = json.loads(self._fs.cat_file(f"{self._folder}/{sequence:010d}.json"))
            return SequenceClaim(sequence, str(claim["writer"]), Micros(int(claim["claimed_at"])))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            # Half of a file, as some stores show it: nobody's, and as old as can be, so that no
            # bundler waits for it.
            return SequenceClaim(sequence, "", Micros(0))
        except Exception as error:
            raise _unavailable(error) from error

    def _is_held(self, claim: SequenceClaim) -> bool:
        age = (self._clock() - claim.claimed_at) / 1e6
        return claim.writer != self.writer and age < self._claim_seconds

    def _sequences(self) -> list[int]:
        try:
            self._fs.invalidate_cache(self._folder)
            paths = self._fs.ls(self._folder, detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise _unavailable(error) from error
        sequences: list[int] = []
        for path in paths:
            match = _NAME.fullmatch(str(path).rsplit("/", 1)[-1])
            if match:
                sequences.append(int(match[1]))
        return sorted(sequences)

    def _create(self, name: str, content: bytes) -> None:
        """Create a file. Raises FileExistsError where another bundler was first."""
        if self._is_local:
            _create_local(Path(self._folder), name, content)
        else:
            self._fs.makedirs(self._folder, exist_ok=True)
            self._fs.pipe_file(f"{self._folder}/{name}", content, mode="create")

    def _forget(self, below: int) -> None:
        """Delete old claims; the highest stays, as the next one is counted from it."""
        for sequence in self._sequences()[:-1]:
            if sequence < below:
                try:
                    self._fs.rm_file(f"{self._folder}/{sequence:010d}.json")
                except FileNotFoundError:
                    continue  # the other bundler deleted it
                except Exception as error:
                    raise _unavailable(error) from error


def _create_local(folder: Path, name: str, content: bytes) -> None:
    """Create a file as a link to a whole one: even after kill -9 it is all there, or is not."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{name}.{secrets.token_hex(6)}"
    try:
        with beside.open("xb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.link(beside, folder / name)
    finally:
        beside.unlink(missing_ok=True)


def _unavailable(error: Exception) -> Unavailable:
    # Every fsspec store has errors of its own; their texts may hold URLs with credentials.
    return Unavailable(
        f"The claims in the store of bundles did not answer ({type(error).__name__}).",
        code="bundle.store_unavailable",
        fix="check the URL, the credentials and the store; the call may be repeated",
    )
