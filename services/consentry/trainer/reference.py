"""The reference trainer: it purges its data set as ordered, and reads it in epochs, row by row.

It shows what a training system does with the client, and stands for one in tests and demos.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final

import numpy as np
import numpy.typing as npt
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
from consentry.trainer.purge.receipts import receipt as make_receipt
from consentry.wire.catalog import Catalog
from consentry.wire.purge_orders import write_receipt
from consentry.wire.schemas import RECEIPTS, topic_name

_TICK_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 15.0
_CHANGED_SECONDS: Final = 1.0
_LOG = structlog.get_logger(__name__)


class ReferenceTrainer:
    """The reference trainer: runs a client over one Parquet data set until `stop`.

    Reads an epoch every `every_seconds`, and when asked to; 0 means only when asked to. With a
    `manifest` each epoch writes down the answer for each row.
    """

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
        dataset_files(directory)  # refuses a missing directory before anything is followed
        self._client = client
        self._catalog = catalog
        self._directory = directory
        self._purpose = purpose
        self._clock = clock
        self._every_seconds = every_seconds
        self._manifest = manifest
        self._receipts_topic = topic_name(namespace, RECEIPTS)
        self._producer = Producer(producer_config(kafka, f"consentry-{client.name}"))
        self._answered: set[str] = set()
        """Ids of the orders that have a final receipt."""
        self._failed: set[str] = set()
        self._purge_again_at = 0.0
        self._wake = threading.Event()
        self._epoch_requested = threading.Event()
        self._stopping = threading.Event()
        self._epochs = 0
        self._last_epoch: dict[str, Any] = {}

    def stop(self) -> None:
        """End the reference trainer after the work in hand."""
        self._stopping.set()
        self._wake.set()

    def request_epoch(self) -> None:
        """Have the reference trainer read its data set once more, soon."""
        self._epoch_requested.set()
        self._wake.set()

    def run(self) -> None:
        """Run the reference trainer: purge and read until `stop`."""
        self._client.on_change(self._wake.set)
        waited = 0.0
        while not self._stopping.is_set():
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()
            waited += _TICK_SECONDS
            self._try_to_purge()
            is_due = self._every_seconds > 0 and waited >= self._every_seconds
            if self._client.is_fresh and (is_due or self._epoch_requested.is_set()):
                self._epoch_requested.clear()
                self._try_to_read_epoch()
                waited = 0.0

    def status(self) -> dict[str, Any]:
        """Return the reference trainer's status: its client's, and the last epoch's counts."""
        return self._client.status() | {"epochs": self._epochs, "last_epoch": self._last_epoch}

    # ---- purging

    def _try_to_purge(self) -> None:
        try:
            self._purge_open_orders()
        except Unavailable as error:
            # The order stays open, so the next round purges again.
            _LOG.warning("purge_retried", subscriber=self._client.name, detail=str(error))

    def _purge_open_orders(self) -> None:
        """Carry out all open orders in one pass, and answer each with a receipt.

        Only while fresh: then all members are known who moved into an order's scope before it was
        opened. Raises Unavailable.
        """
        orders = []
        for order in self._client.open_orders():
            if order.order_id not in self._answered:
                orders.append(order)
        if not orders or not self._client.is_fresh or monotonic() < self._purge_again_at:
            return
        receipts = self._purge(orders)
        key = self._client.name.encode()
        messages = [(key, write_receipt(receipt, self._catalog)) for receipt in receipts]
        send(self._producer, self._receipts_topic, messages)
        for receipt in receipts:
            # A failed purge is tried again; any other receipt is final.
            if receipt.result is not Result.FAILED:
                self._answered.add(receipt.order_id)
        rows = sum(receipt.rows_removed for receipt in receipts)
        _LOG.info("purged", subscriber=self._client.name, orders=len(orders), rows=rows)

    def _purge(self, orders: list[PurgeOrder]) -> list[Receipt]:
        """Carry out orders; return their receipts, of a failure only the first one for an order.

        Raises Unavailable where the data set was changed meanwhile.
        """
        try:
            result = purge(self._directory, orders, self._client.snapshot, now=self._clock())
            return [self._receipt(order, result) for order in orders]
        except DatasetChanged:
            # Another program was writing. That is not a failure of the purge: no receipt.
            self._purge_again_at = monotonic() + _CHANGED_SECONDS
            raise
        except (OSError, pa.ArrowException, ConsentryError) as error:
            _LOG.error("purge_failed", subscriber=self._client.name, detail=str(error)[:500])
            unreported = [order for order in orders if order.order_id not in self._failed]
            self._failed.update(order.order_id for order in orders)
            self._purge_again_at = monotonic() + _RETRY_SECONDS
            return [self._receipt(order, error) for order in unreported]

    def _receipt(self, order: PurgeOrder, outcome: PurgeResult | Exception) -> Receipt:
        return make_receipt(
            order,
            outcome,
            subscriber=self._client.name,
            dataset=self._directory.name,
            completed_at=self._clock(),
        )

    # ---- reading

    def _try_to_read_epoch(self) -> None:
        """Read an epoch; a file that cannot be read ends the epoch, and not the trainer.

        Purge orders still have to be carried out.
        """
        try:
            self.read_epoch()
        except (OSError, pa.ArrowException, ConsentryError) as error:
            _LOG.error("epoch_failed", subscriber=self._client.name, detail=str(error)[:500])

    def read_epoch(self) -> None:
        """Read one epoch of the reference trainer: decide every row of its data set once.

        With a manifest, each row's answer is written down.
        """
        positions = dict(self._client.snapshot.positions)
        parts: list[pa.Table] = []
        counts = dict.fromkeys(REASONS, 0)
        allowed = 0
        for path, table in read_dataset(self._directory):
            decisions = self._client.decide_table(
                table, purpose=self._purpose, columns=find_columns(table.column_names, None)
            )
            for reason, number in decisions.counts().items():
                counts[reason] += number
            allowed += int(decisions.mask.sum())
            if self._manifest is not None:
                parts.append(self._manifest_part(path, table, decisions.reasons))
        if self._manifest is not None:
            self._write_manifest(self._manifest, parts, positions)
        # Counted once its manifest is there: whoever waits for the count may read the manifest.
        self._epochs += 1
        self._last_epoch = {
            "rows": sum(counts.values()),
            "allowed": allowed,
            "reasons": {reason.value: number for reason, number in counts.items() if number},
        }
        _LOG.info("epoch", subscriber=self._client.name, **self._last_epoch)

    def _manifest_part(
        self, path: Path, table: pa.Table, reasons: npt.NDArray[np.int8]
    ) -> pa.Table:
        """Return one row for each row of a file: where it stands, whose it is, and its reason."""
        first_name = pa.array(np.zeros(table.num_rows, dtype=np.int32))
        file_names = pa.array([str(path.relative_to(self._directory))])
        reason_names = pa.array([reason.value for reason in REASONS])
        columns = {
            "file": pa.DictionaryArray.from_arrays(first_name, file_names),
            "row": pa.array(np.arange(table.num_rows, dtype=np.int64)),
            "member_id": table["member_id"],
            "reason": pa.DictionaryArray.from_arrays(pa.array(reasons, pa.int8()), reason_names),
        }
        return pa.table(columns)

    def _write_manifest(
        self, manifest: Path, parts: list[pa.Table], positions: dict[tuple[str, int], int]
    ) -> None:
        """Write one row for each row of the data set.

        The file's metadata has the positions in the log that the answers rest on.
        """
        table = pa.concat_tables(parts) if parts else pa.table({"file": pa.array([], pa.string())})
        offsets = {f"{topic}-{partition}": at for (topic, partition), at in positions.items()}
        metadata = {"epoch": self._epochs + 1, "positions": offsets}
        table = table.replace_schema_metadata({b"consentry": json.dumps(metadata).encode()})
        temporary = manifest.with_suffix(".tmp")
        pq.write_table(table, temporary)
        temporary.replace(manifest)
