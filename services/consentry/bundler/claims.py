"""Who may write the next bundle: each number is claimed by creating a file that nobody else can
create as well.

Two bundlers on one store must not both go on from the same bundle: a trainer would follow one of
them, and the other would think it had been read. Three things keep the chain from forking unseen:

1. A bundle's number is claimed before it is written, and no number can be claimed twice, nor one
  below another.
2. Whoever sees that somebody else published lately, or is at it, stands by; it takes over when that
  one falls silent.
3. Right before it is published the bundle has to have the highest claim, and the newest bundle has
  to be the one that
   it was built upon. A writer that freezes between this look and its write can still put the
   pointer back by one turn;
   the other one sees that at its next turn, says so, and writes a snapshot of a higher number.

Stores that create a file atomically are local ones, memory, and those whose fsspec driver does
`mode="create"` by a conditional write (s3fs, gcsfs). With another driver two may hold one claim,
and the look before publishing decides.
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
"""So long whoever claimed a number may take to write the bundle; then another takes over."""
FOLDER: Final = "claims"
KEPT: Final = 128
_NAME: Final = re.compile(r"([0-9]{10})\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class SequenceClaim:
    """A number, who holds it and since when; nobody where its file cannot be read."""

    sequence: int
    writer: str
    claimed_at: Micros


class SequenceClaims:
    """The claims beside the bundles of a store. `writer` names this bundler and no other."""

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
        """Claim a number, `least` or higher; None where somebody else holds one now.

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
        """The highest claim there is. Raises Unavailable."""
        sequences = self._sequences()
        return self.of(sequences[-1]) if sequences else None

    def of(self, sequence: int) -> SequenceClaim:
        """The claim of a number; of nobody where it cannot be read, or is gone. Raises
        Unavailable.
        """
        try:
            told = json.loads(self._fs.cat_file(f"{self._folder}/{sequence:010d}.json"))
            return SequenceClaim(sequence, str(told["writer"]), Micros(int(told["claimed_at"])))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            # Half of a file, of a store that shows such: nobody's, and as old as can be, so that it
            # holds nobody up.
            return SequenceClaim(sequence, "", Micros(0))
        except Exception as error:
            raise _unavailable(error) from error

    def _is_held(self, claim: SequenceClaim) -> bool:
        age = (self._clock() - claim.claimed_at) / 1e6
        return claim.writer != self.writer and age < self._claim_seconds

    def _sequences(self) -> list[int]:
        try:
            self._fs.invalidate_cache(self._folder)
            found = self._fs.ls(self._folder, detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise _unavailable(error) from error
        matches = (_NAME.fullmatch(str(path).rsplit("/", 1)[-1]) for path in found)
        return sorted(int(match[1]) for match in matches if match)

    def _create(self, name: str, content: bytes) -> None:
        """Raises FileExistsError where somebody else was first."""
        if self._is_local:
            _create_local(Path(self._folder), name, content)
        else:
            self._fs.makedirs(self._folder, exist_ok=True)
            self._fs.pipe_file(f"{self._folder}/{name}", content, mode="create")

    def _forget(self, below: int) -> None:
        """Old claims say nothing any more; the highest stays, for it is what the next one is
        counted from.
        """
        for sequence in self._sequences()[:-1]:
            if sequence < below:
                try:
                    self._fs.rm_file(f"{self._folder}/{sequence:010d}.json")
                except FileNotFoundError:
                    continue  # by the other bundler
                except Exception as error:
                    raise _unavailable(error) from error


def _create_local(folder: Path, name: str, content: bytes) -> None:
    """A link to a whole file: also after kill -9 the claim is all there, or is not."""
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
