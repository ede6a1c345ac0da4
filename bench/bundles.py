"""Bundles of members who were told of beforehand: written, signed and published by the code that
the bundler runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consentry.bundles import (
    BundleState,
    BundleStore,
    SigningKey,
    StoredControl,
    publish,
    write_bundle,
)
from consentry.domain.controls import PolicyPublished, Regime, Terms
from consentry.domain.events import Fact, FactKind
from consentry.domain.values import DAY_MICROS, Micros
from consentry.ops.clock import system_clock
from consentry.wire.catalog import InMemoryRegistry, load_catalog, register_all
from consentry.wire.controls import write_control
from consentry.wire.frontiers import Frontier
from consentry.wire.partitions import partitions_of
from consentry.wire.records import fact_body, first_record
from consentry.wire.schemas import CONTROLS, NAMESPACE, RECORDS

PURPOSE: Final = "genai_training"
PARTITIONS: Final = 8
LOG: Final = "00112233445566aa"
_DIGITS: Final = 14
_SIDE_BY_SIDE: Final = 1 << 17


def ids_of(numbers: npt.NDArray[np.int64]) -> pa.Array:
    """Member ids of 20 characters, one for each number."""
    return pc.binary_join_element_wise(
        "urn:m:", pc.utf8_lpad(pa.array(numbers).cast(pa.string()), _DIGITS, "0"), ""
    )


class Bundling:
    """What a bundle is made of, told instead of followed.

    One policy allows the purpose everywhere, by default.
    """

    def __init__(self, key: SigningKey) -> None:
        registry = InMemoryRegistry()
        register_all(registry, NAMESPACE)
        self._key = key
        self._state = BundleState(PARTITIONS, load_catalog(registry, NAMESPACE))
        self._sequence = 0
        begun = Micros(system_clock() - 365 * DAY_MICROS)
        terms = (Terms(jurisdictions=("*",), purpose=PURPOSE, regime=Regime.DEFAULT_ON),)
        policy = PolicyPublished(
            event_id=bytes(15) + b"\1",
            version="v1",
            terms=terms,
            effective_at=begun,
            recorded_at=begun,
        )
        self._state.apply_control(
            StoredControl(0, begun, write_control(policy, self._state.catalog))
        )

    def tell(self, members: pa.Array, kind: FactKind, *, at: Micros) -> None:
        """Take in that each of these, of whom nothing was known, chose so at that time."""
        frame = self._state.catalog.frame_of("ConsentRecord")
        body = fact_body(Fact(kind, at, at, at.to_bytes(8, "big"), None, PURPOSE, version=1))
        for start in range(0, len(members), _SIDE_BY_SIDE):
            keys = [
                member.encode() for member in members[start : start + _SIDE_BY_SIDE].to_pylist()
            ]
            self._apply(keys, [first_record(key, body, frame) for key in keys])

    def _apply(self, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        homes = partitions_of(keys, PARTITIONS)
        for partition in range(PARTITIONS):
            own = np.flatnonzero(homes == partition).tolist()
            self._state.apply_records(
                partition, [keys[place] for place in own], [records[place] for place in own]
            )
            position = self._state.positions.get((RECORDS, partition), 0) + len(own)
            self._state.move(RECORDS, partition, position)

    def write(self, directory: Path) -> None:
        """Publish all of it in a store, proven fresh as of now."""
        self._sequence += 1
        state, now = self._state, system_clock()
        for partition in range(PARTITIONS):
            told = state.positions.get((RECORDS, partition), 0)
            controls = state.positions[CONTROLS, 0]
            state.freshness.apply(
                Frontier(partition, "bench", now, told, told, controls, False, LOG)
            )
        state.settle_frontiers()
        store, named = BundleStore(directory), self._named(now)
        publish(store, write_bundle(store, state, **named), key=self._key)

    def _named(self, now: Micros) -> dict[str, Any]:
        return {
            "key": self._key,
            "namespace": NAMESPACE,
            "sequence": self._sequence,
            "created_at": now,
        }
