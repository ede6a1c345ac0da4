"""The checks of a training run's options, made before anything is registered or read."""

from __future__ import annotations

from typing import Final

from consentry.bundles.keys import SigningKey
from consentry.domain.errors import InvalidInput
from consentry.domain.values import DATASET_PATTERN

_LEASE_SECONDS_MAX: Final = 3600.0
_VERSION_MAX: Final = 512


def check_dataset(dataset: str) -> None:
    """Raise InvalidInput unless a training run's data set has a name fit for receipts."""
    if DATASET_PATTERN.fullmatch(dataset) is None:
        raise InvalidInput(
            f"The data set {dataset[:80]!r} is not 1 to 128 letters, digits, '_', '.' or '-', "
            "a letter or digit first.",
            code="input.dataset",
            fix="name it as it is named in receipts",
        )


def check_signing_key(signing_key: object) -> None:
    """Raise InvalidInput for another kind of key to sign a training run's certificate.

    It is checked at the start, as it is needed only at the end.
    """
    if signing_key is not None and not isinstance(signing_key, SigningKey):
        raise InvalidInput(
            f"signing_key is a {type(signing_key).__name__}, not a SigningKey.",
            code="input.signing_key",
            fix="pass SigningKey.read(path), from consentry.bundles",
        )


def check_dataset_version(dataset_version: str) -> None:
    """Raise InvalidInput for too long a version of a training run's data set."""
    if len(dataset_version) > _VERSION_MAX:
        raise InvalidInput(
            f"The data set's version has {len(dataset_version)} characters, more than "
            f"{_VERSION_MAX}.",
            code="input.dataset_version",
            fix="give a digest, a snapshot id or a commit",
        )


def check_times(
    stale: str, lease_seconds: float, wait_seconds: float, spool_seconds: float
) -> None:
    """Raise InvalidInput for times, or an action when stale, that a training run cannot have."""
    # A lease that is not a number (NaN) is not in the range either.
    is_lease = 0 < lease_seconds <= _LEASE_SECONDS_MAX
    is_negative = wait_seconds < 0 or spool_seconds < 0
    if stale in ("raise", "wait") and is_lease and not is_negative:
        return
    raise InvalidInput(
        f"A run cannot have stale={stale!r}, lease_seconds={lease_seconds:g}, "
        f"wait_seconds={wait_seconds:g} and spool_seconds={spool_seconds:g}.",
        code="input.run",
        fix="use stale='raise' or 'wait', a lease of up to 3600 seconds, and no negative time",
    )
