"""The times at which each trainer of the demo applied what was sent, from their journals."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

Milliseconds = float


class Journals:
    """Follows the journals that the demo's trainers write.

    Times are microseconds since 1970-01-01 UTC, of this machine's one clock.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._read = dict.fromkeys(self._paths, 0)
        self.controls: dict[str, dict[str, int]] = {name: {} for name in self._paths}
        """Per trainer, control event id → when it was applied."""
        self.versions: dict[str, dict[str, list[tuple[int, int]]]] = {
            name: {} for name in self._paths
        }
        """Per trainer, member → (version, when it was applied), as they came."""

    def refresh(self) -> None:
        """Read what the demo's trainers have written to their journals since the last call."""
        for name, path in self._paths.items():
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read[name])
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[name] += len(whole)
            for line in whole.splitlines():
                self._take(name, json.loads(line))

    def _take(self, name: str, entry: dict[str, Any]) -> None:
        if "control" in entry:
            self.controls[name].setdefault(entry["control"], entry["applied_at"])
        else:
            self.versions[name].setdefault(entry["member"], []).append(
                (entry["version"], entry["applied_at"])
            )

    def await_control(self, event_id: bytes, *, timeout_seconds: float) -> dict[str, int]:
        """Return when each trainer of the demo applied this control, or not in time.

        One that did not is missing.
        """
        until = monotonic() + timeout_seconds
        event = event_id.hex()
        while True:
            self.refresh()
            applied: dict[str, int] = {}
            for name, times in self.controls.items():
                if event in times:
                    applied[name] = times[event]
            if len(applied) == len(self._paths) or monotonic() > until:
                return applied
            threading.Event().wait(0.002)

    def await_version(self, member: str, version: int, *, timeout_seconds: float) -> bool:
        """Return True if each of the demo's trainers gets this record version in that time."""
        until = monotonic() + timeout_seconds
        while monotonic() < until:
            self.refresh()
            if all(self.applied_at(name, member, version) is not None for name in self._paths):
                return True
            threading.Event().wait(0.01)
        return False

    def applied_at(self, name: str, member: str, version: int) -> int | None:
        """When a demo trainer first held at least this record version of a member, or None."""
        times = [at for held, at in self.versions[name].get(member, ()) if held >= version]
        return min(times, default=None)

    def delays(self, sent: Iterable[tuple[str, int, int]]) -> tuple[list[Milliseconds], int]:
        """Return each demo trainer's delays in milliseconds, and how many changes never came.

        `sent` is (member, version, time of sending) for each change.
        """
        delays: list[Milliseconds] = []
        missing = 0
        for member, version, sent_at in sent:
            for name in self._paths:
                at = self.applied_at(name, member, version)
                if at is None:
                    missing += 1
                else:
                    delays.append((at - sent_at) / 1000)
        return delays, missing


def percentiles(values: list[Milliseconds]) -> dict[str, float | None]:
    """The demo's p50 and p99 of delays, in milliseconds; None where there are none."""
    if not values:
        return {"p50": None, "p99": None}
    p50, p99 = np.percentile(np.array(values), [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


class Buckets:
    """A Prometheus histogram read by the demo from a service's metrics text, since a start.

    It gives quantiles.
    """

    def __init__(self, name: str) -> None:
        self._name = f"{name}_bucket"
        self._base: dict[float, float] = {}

    def start(self, text: str) -> None:
        """Count the histogram only from here on."""
        self._base = self._counts(text)

    def quantiles(self, text: str) -> dict[str, float | None]:
        """The histogram's p50 and p99 in ms, each the upper bound of the bucket it falls in."""
        counts = self._counts(text)
        since = {
            bound: count - self._base.get(bound, 0.0) for bound, count in sorted(counts.items())
        }
        if any(count < 0 for count in since.values()):
            since = dict(sorted(counts.items()))  # the service began anew in between
        total = max(since.values(), default=0.0)
        if total <= 0:
            return {"p50": None, "p99": None}

        def quantile(share: float) -> float:
            for bound, count in since.items():
                if count >= share * total:
                    return bound * 1000
            return float("inf")

        return {"p50": quantile(0.5), "p99": quantile(0.99)}

    def _counts(self, text: str) -> dict[float, float]:
        counts = {}
        for line in text.splitlines():
            if line.startswith(self._name):
                labels, _, count = line.rpartition(" ")
                bound = labels.split('le="', 1)[1].split('"', 1)[0]
                counts[float(bound)] = float(count)
        return counts
