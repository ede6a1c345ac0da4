"""One session of a purge: its data set, orders and known members; and the checks before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from consentry.domain.errors import ConsentryError, InvalidInput, Refused, Unavailable
from consentry.domain.orders import PurgeOrder, Receipt
from consentry.domain.values import Micros
from consentry.ops.clock import Clock
from consentry.trainer.deciding.decider import Decider, SnapshotDecider
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.trainer.purge.dataset import Dataset, Progress, PurgeResult
from consentry.trainer.purge.receipts import old_versions_detail, receipts, write_receipts
from consentry.trainer.purge.row_selector import (
    ExcludedSelector,
    JointSelector,
    OrdersSelector,
    RowSelector,
)
from consentry.wire.jurisdictions import iso_jurisdictions


@dataclass(frozen=True, slots=True)
class KnownMembers:
    """The members' records that a purge knows, and what decides by them who is excluded."""

    snapshot: Snapshot
    decider: Decider


SendReceipts = Callable[[Sequence[Receipt]], None]
"""Sends the receipts of a purge to Kafka."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOptions:
    """The choices of one `apply` of a purge session.

    `exemptions` are reasons by order id. Receipts are sent under the name `subscriber`, if any, and
    written to `receipts_file`. `if_version` is the version that was planned for.
    """

    exemptions: Mapping[str, str]
    subscriber: str = ""
    receipts_file: Path | None = None
    if_version: str | None = None
    vacuum: bool = False


class Applied(NamedTuple):
    """The outcome of one `apply` of a purge session.

    `old_versions` is a sentence where older versions still keep the rows, else empty.
    """

    result: PurgeResult
    receipts: Sequence[Receipt]
    vacuumed: Sequence[str]
    old_versions: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeSession:
    """A data set to purge, the orders for it, and what is known of members.

    `excluded` is a purpose: rows that may not be used for it go as well. Those of them that are
    excluded only because something is not known go only with `purge_unknown`.
    """

    dataset: Dataset
    orders: Sequence[PurgeOrder]
    snapshot: Snapshot
    decider: Decider
    excluded: str | None
    purge_unknown: bool

    @classmethod
    def open(
        cls,
        dataset: Dataset,
        orders: Sequence[PurgeOrder],
        members: KnownMembers | None,
        *,
        order_ids: Sequence[str] = (),
        excluded: str | None = None,
        purge_unknown: bool = False,
    ) -> PurgeSession:
        """Return the purge session for the orders with these ids, or for all without ids.

        `members` is None where nothing is known of them: then every order has to name its member.
        Raises InvalidInput for an id that no order has, Refused for a purpose that no policy names
        and for an order that cannot be followed without records.
        """
        if members is None:
            check_scopes(orders)
            empty = Snapshot(1, iso_jurisdictions())
            members = KnownMembers(empty, SnapshotDecider(empty))
        check_purpose(excluded, members.snapshot)
        return cls(
            dataset=dataset,
            orders=select_orders(orders, order_ids),
            snapshot=members.snapshot,
            decider=members.decider,
            excluded=excluded,
            purge_unknown=purge_unknown,
        )

    def selector(self, exempt: Mapping[str, str], *, now: Micros) -> RowSelector:
        """Return what selects the rows to purge: by orders not exempt, and the excluded.

        Raises InvalidInput where an exemption is of an order that is not known.
        """
        check_order_ids(exempt, self.orders)
        orders = [order for order in self.orders if order.order_id not in exempt]
        selectors: list[RowSelector] = [OrdersSelector(orders, self.snapshot, now)]
        if self.excluded is not None:
            selectors.append(
                ExcludedSelector(self.decider, self.excluded, purge_unknown=self.purge_unknown)
            )
        return JointSelector(selectors)

    def apply(
        self,
        options: ApplyOptions,
        *,
        clock: Clock,
        send: SendReceipts,
        progress: Callable[[], AbstractContextManager[Progress]],
    ) -> Applied:
        """Purge the data set, and hand out the receipts, also those of a failed purge.

        Raises ConsentryError.
        """
        check_order_ids(options.exemptions, self.orders)
        if options.vacuum and not self.dataset.keeps_versions:
            self.dataset.vacuum()  # raises: this kind of data set keeps no older versions
        try:
            result, vacuumed = self._purge(options, clock(), progress)
        except ConsentryError as error:
            self._answer(options, error, clock(), send)
            raise
        return Applied(
            result=result,
            receipts=self._answer(options, result, clock(), send),
            vacuumed=vacuumed,
            old_versions=self._old_versions_detail(options),
        )

    def _purge(
        self,
        options: ApplyOptions,
        now: Micros,
        progress: Callable[[], AbstractContextManager[Progress]],
    ) -> tuple[PurgeResult, Sequence[str]]:
        if options.if_version is not None:
            check_version(self.dataset, options.if_version)
        selector = self.selector(options.exemptions, now=now)
        with translate_errors(), progress() as show_progress:
            result = self.dataset.apply(selector, show_progress)
            vacuumed: Sequence[str] = ()
            if options.vacuum:
                vacuumed = self.dataset.vacuum()
        return result, vacuumed

    def _answer(
        self,
        options: ApplyOptions,
        outcome: PurgeResult | ConsentryError,
        completed_at: Micros,
        send: SendReceipts,
    ) -> Sequence[Receipt]:
        """Make a receipt for each order, write them to the file, and send them."""
        detail = ""
        if isinstance(outcome, PurgeResult):
            detail = self._old_versions_detail(options)
        answers = receipts(
            self.orders,
            options.exemptions,
            outcome,
            subscriber=options.subscriber,
            dataset=self.dataset.name,
            completed_at=completed_at,
            detail=detail,
        )
        if options.receipts_file is not None:
            write_receipts(options.receipts_file, answers)
        if options.subscriber and answers:
            send(answers)
        return answers

    def _old_versions_detail(self, options: ApplyOptions) -> str:
        return old_versions_detail(self.dataset, is_vacuumed=options.vacuum)


def check_purpose(purpose: str | None, snapshot: Snapshot) -> None:
    """Raise Refused before a purge by a purpose that no policy names.

    Every member is excluded from it, so all rows would be deleted.
    """
    known = snapshot.controls.purposes
    if purpose is not None and purpose not in known:
        choice = ", ".join(known)[:300] or "those of a policy; none was published yet"
        raise Refused(
            f"No policy names the purpose {purpose!r}: everybody is excluded from it, and every "
            "row would go.",
            code="purge.purpose_unknown",
            fix=f"ask for one of {choice}",
        )


def check_scopes(orders: Sequence[PurgeOrder]) -> None:
    """Raise Refused before a purge by an order without a member if no records are known."""
    if any(order.member is None for order in orders):
        raise Refused(
            "An order of the file is about a jurisdiction, and nothing says who lives there.",
            code="purge.no_members",
            fix="give --bundle and --bundle-key, or have the orders read from Kafka",
        )


def select_orders(orders: Sequence[PurgeOrder], order_ids: Sequence[str]) -> Sequence[PurgeOrder]:
    """Return the purge orders with these ids, or all where no id is given.

    Raises InvalidInput for an id that no order has.
    """
    by_id = {order.order_id: order for order in orders}
    check_order_ids(order_ids, orders)
    if not order_ids:
        return orders
    return [by_id[order_id] for order_id in dict.fromkeys(order_ids)]


def check_order_ids(
    order_ids: Sequence[str] | Mapping[str, str], known: Sequence[PurgeOrder]
) -> None:
    """Raise InvalidInput for the first id that no known purge order has."""
    known_ids = {order.order_id for order in known}
    for order_id in order_ids:
        if order_id not in known_ids:
            raise InvalidInput(
                f"There is no order {order_id!r}.",
                code="input.order",
                fix="`consentry purge plan` lists them",
            )


def parse_exemptions(pairs: Sequence[str]) -> dict[str, str]:
    """Return the exemptions of a purge: order id → reason, of texts ORDER=REASON.

    Raises InvalidInput where a part is missing.
    """
    reasons: dict[str, str] = {}
    for pair in pairs:
        order_id, equals, reason = pair.partition("=")
        if not (order_id and equals and reason.strip()):
            raise InvalidInput(
                f"--exempt {pair!r} is not ORDER=REASON.",
                code="input.exempt",
                fix="say why the rows may stay",
            )
        reasons[order_id] = reason.strip()
    return reasons


def check_receipts_file(path: Path) -> None:
    """Raise InvalidInput before a purge if its receipts' directory does not exist."""
    if not path.absolute().parent.is_dir():
        raise InvalidInput(
            f"The directory of {str(path)!r} does not exist.",
            code="input.file",
            fix="make it, or name another",
        )


def check_version(dataset: Dataset, expected: str) -> None:
    """Raise Unavailable where the data set is not the version that the purge was planned for."""
    version = dataset.version()
    if version != expected:
        raise Unavailable(
            f"The data set has the version {version}, not {expected}: it was written to since.",
            code="purge.dataset_changed",
            fix="plan it again",
        )


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise Unavailable for a purge's error of the disk or of Arrow, without Arrow's text.

    Arrow's own texts may quote rows.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        detail = ""
        if isinstance(error, OSError) and error.strerror:
            detail = f": {error.strerror} ({error.filename})"
        raise Unavailable(
            f"The data set could not be worked on: {type(error).__name__}{detail}.",
            code="purge.failed",
            fix="mend that and run the same command again; each file is whole, the old one or the "
            "new one",
        ) from error
