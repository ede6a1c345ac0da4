"""Bundles of members whose choices are given beforehand.

They are written, signed and published by the code that the bundler runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

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
_CHUNK_MEMBERS: Final = 1 << 17


def ids_of(numbers: npt.NDArray[np.int64]) -> pa.Array:
    """Return member ids of 20 characters, one for each number."""
    digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), _DIGITS, "0")
    return pc.binary_join_element_wise("urn:m:", digits, "")


class BundleWriter:
    """Writes bundles of choices that are added by hand, and not followed from a log.

    One policy allows the purpose everywhere, by default.
    """

    def __init__(self, key: SigningKey) -> None:
        registry = InMemoryRegistry()
        register_all(registry, NAMESPACE)
        self._key = key
        self._state = BundleState(PARTITIONS, load_catalog(registry, NAMESPACE))
        self._sequence = 0
        a_year_ago = Micros(system_clock() - 365 * DAY_MICROS)
        terms = (Terms(jurisdictions=("*",), purpose=PURPOSE, regime=Regime.DEFAULT_ON),)
        policy = PolicyPublished(
            event_id=bytes(15) + b"\1",
            version="v1",
            terms=terms,
            effective_at=a_year_ago,
            recorded_at=a_year_ago,
        )
        raw_policy = write_control(policy, self._state.catalog)
        self._state.apply_control(StoredControl(0, a_year_ago, raw_policy))

    def add(self, members: pa.Array, kind: FactKind, *, at: Micros) -> None:
        """Add a choice of these members, each without a record so far, made at that time."""
        frame = self._state.catalog.frame_of("ConsentRecord")
        fact = Fact(kind, at, at, at.to_bytes(8, "big"), None, PURPOSE, version=1)
        body = fact_body(fact)
        for start in range(0, len(members), _CHUNK_MEMBERS):
            chunk = members[start : start + _CHUNK_MEMBERS]
            keys = [member.encode() for member in chunk.to_pylist()]
            records = [first_record(key, body, frame) for key in keys]
            self._apply(keys, records)

    def _apply(self, keys: Sequence[bytes], records: Sequence[bytes]) -> None:
        homes = partitions_of(keys, PARTITIONS)
        for partition in range(PARTITIONS):
            own = np.flatnonzero(homes == partition).tolist()
            own_keys = [keys[index] for index in own]
            own_records = [records[index] for index in own]
            self._state.apply_records(partition, own_keys, own_records)
            position = self._state.positions.get((RECORDS, partition), 0) + len(own)
            self._state.move(RECORDS, partition, position)

    def write(self, directory: Path) -> None:
        """Publish all choices as a bundle in the store `directory`, proven fresh as of now."""
        self._sequence += 1
        state = self._state
        now = system_clock()
        for partition in range(PARTITIONS):
            offset = state.positions.get((RECORDS, partition), 0)
            controls = state.positions[CONTROLS, 0]
            state.freshness.apply(
                Frontier(partition, "bench", now, offset, offset, controls, False, LOG)
            )
        state.settle_frontiers()
        store = BundleStore(directory)
        manifest = write_bundle(
            store,
            state,
            key=self._key,
            namespace=NAMESPACE,
            sequence=self._sequence,
            created_at=now,
        )
        publish(store, manifest, key=self._key)
