"""The reference trainer: follows, purges what it is ordered to, and reads its data set in epochs,
row by row judged.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from confluent_kafka import Producer

from consentry.domain.errors import ConsentryError, Unavailable
from consentry.domain.orders import PurgeOrder, Receipt, Result
from consentry.kafka.clients import producer_config, send
from consentry.ops.clock import Clock
from consentry.trainer.client import Client
from consentry.trainer.deciding.columns import find_columns
from consentry.trainer.deciding.decide_table import REASONS
from consentry.trainer.purge import PurgeResult, dataset_files, purge, read_dataset
from consentry.trainer.purge.dataset import DatasetChanged
from consentry.trainer.purge.receipts import receipt
from consentry.wire.catalog import Catalog
from consentry.wire.purge_orders import write_receipt
from consentry.wire.schemas import RECEIPTS, topic_name

_TICK_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 15.0
_CHANGED_SECONDS: Final = 1.0
_LOG = structlog.get_logger(__name__)


class ReferenceTrainer:
    """Runs a client over one Parquet data set until `stop`."""

    def __init__(
        self,
        client: Client,
        *,
        kafka: Mapping[str, str],
        catalog: Catalog,
        namespace: str,
        directory: Path,
        purpose: str,
        clock: Clock,
        every_seconds: float,
        manifest: Path | None,
    ) -> None:
        self._client = client
        self._catalog = catalog
        self._directory = directory
        self._purpose = purpose
        self._clock = clock
        self._every_seconds = every_seconds
        self._manifest = manifest
        self._receipts_topic = topic_name(namespace, RECEIPTS)
        self._producer = Producer(producer_config(kafka, f"consentry-{client.name}"))
        dataset_files(
            directory
        )  # refuses a directory that is not there before anything is followed
        self._answered: set[str] = set()
        self._failed: set[str] = set()
        self._purge_again_at = 0.0
        self._wake = threading.Event()
        self._epoch_asked = threading.Event()
        self._stopping = threading.Event()
        self._epochs = 0
        self._last_epoch: dict[str, Any] = {}

    def stop(self) -> None:
        """End after what is in hand."""
        self._stopping.set()
        self._wake.set()

    def ask_for_epoch(self) -> None:
        """Read the data set once more, soon."""
        self._epoch_asked.set()
        self._wake.set()

    def run(self) -> None:
        """Purge and read until `stop`."""
        self._client.on_change(self._wake.set)
        waited = 0.0
        while not self._stopping.is_set():
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()
            waited += _TICK_SECONDS
            self._insist(self._purge_open_orders)
            is_due = self._every_seconds > 0 and waited >= self._every_seconds
            if self._client.is_fresh and (is_due or self._epoch_asked.is_set()):
                self._epoch_asked.clear()
                self._read_epoch_or_say_why()
                waited = 0.0

    def status(self) -> dict[str, Any]:
        """The client's status, with the last epoch's counts."""
        return self._client.status() | {"epochs": self._epochs, "last_epoch": self._last_epoch}

    def _insist(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Unavailable as error:
            # The obligation stays open, so the next round does it again.
            _LOG.warning("purge_retried", subscriber=self._client.name, detail=str(error))

    def _purge_open_orders(self) -> None:
        """Carry out what is open, all of it in one pass, and answer each order with a receipt.

        Only while fresh: members who moved into an order's scope before it was opened are then
        known.
        """
        orders = [
            order for order in self._client.open_orders() if order.order_id not in self._answered
        ]
        if not orders or not self._client.is_fresh or monotonic() < self._purge_again_at:
            return
        try:
            result = purge(self._directory, orders, self._client.snapshot, now=self._clock())
            receipts = [self._receipt(order, result) for order in orders]
        except DatasetChanged:
            self._purge_again_at = monotonic() + _CHANGED_SECONDS
            raise  # nobody failed, somebody was writing: not worth a receipt
        except (OSError, pa.ArrowException, ConsentryError) as error:
            _LOG.error("purge_failed", subscriber=self._client.name, detail=str(error)[:500])
            receipts = [
                self._receipt(order, error)
                for order in orders
                if order.order_id not in self._failed
            ]
            self._failed.update(order.order_id for order in orders)
            self._purge_again_at = monotonic() + _RETRY_SECONDS
        key = self._client.name.encode()
        send(
            self._producer,
            self._receipts_topic,
            [(key, write_receipt(one, self._catalog)) for one in receipts],
        )
        # A failed one is tried again; what is answered for good is not.
        self._answered.update(one.order_id for one in receipts if one.result is not Result.FAILED)
        _LOG.info(
            "purged",
            subscriber=self._client.name,
            orders=len(orders),
            rows=sum(receipt.rows_removed for receipt in receipts),
        )

    def _receipt(self, order: PurgeOrder, outcome: PurgeResult | Exception) -> Receipt:
        return receipt(
            order,
            outcome,
            subscriber=self._client.name,
            dataset=self._directory.name,
            completed_at=self._clock(),
        )

    def _read_epoch_or_say_why(self) -> None:
        """A file that cannot be read ends the epoch, not the trainer: purge orders still have to be
        carried out.
        """
        try:
            self.read_epoch()
        except (OSError, pa.ArrowException, ConsentryError) as error:
            _LOG.error("epoch_failed", subscriber=self._client.name, detail=str(error)[:500])

    def read_epoch(self) -> None:
        """Judge every row of the data set once and, if asked to, write down each row's answer."""
        before = dict(self._client.snapshot.positions)
        parts, counts, allowed = [], {reason: 0 for reason in REASONS}, 0
        for path, table in read_dataset(self._directory):
            decisions = self._client.decide_table(
                table, purpose=self._purpose, columns=find_columns(table.column_names, None)
            )
            for reason, number in decisions.counts().items():
                counts[reason] += number
            allowed += int(decisions.mask.sum())
            if self._manifest is not None:
                parts.append(self._part(path, table, decisions.reasons))
        if self._manifest is not None:
            self._write_manifest(
                parts, {f"{topic}-{partition}": at for (topic, partition), at in before.items()}
            )
        # Counted once its manifest is there: who waits for the count may read it.
        self._epochs += 1
        self._last_epoch = {
            "rows": sum(counts.values()),
            "allowed": allowed,
            "reasons": {reason.value: number for reason, number in counts.items() if number},
        }
        _LOG.info("epoch", subscriber=self._client.name, **self._last_epoch)

    def _part(self, path: Path, table: pa.Table, reasons: Any) -> pa.Table:
        names = pa.DictionaryArray.from_arrays(
            pa.array(reasons, pa.int8()), pa.array([one.value for one in REASONS])
        )
        file = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(table.num_rows, dtype=np.int32)),
            pa.array([str(path.relative_to(self._directory))]),
        )
        rows = pa.array(np.arange(table.num_rows, dtype=np.int64))
        return pa.table(
            {"file": file, "row": rows, "member_id": table["member_id"], "reason": names}
        )

    def _write_manifest(self, parts: list[pa.Table], positions: dict[str, int]) -> None:
        """One row per row of the data set; the position it was judged at stands in the file's
        metadata.
        """
        assert self._manifest is not None
        table = pa.concat_tables(parts) if parts else pa.table({"file": pa.array([], pa.string())})
        told = {
            b"consentry": json.dumps({"epoch": self._epochs + 1, "positions": positions}).encode()
        }
        temporary = self._manifest.with_suffix(".tmp")
        pq.write_table(table.replace_schema_metadata(told), temporary)
        temporary.replace(self._manifest)
