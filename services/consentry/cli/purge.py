"""`consentry purge …`: delete from a data set what orders name: what it would cost, doing it, a
second look.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from consentry.domain.errors import ConsentryError, InvalidInput, Refused, Unavailable

if TYPE_CHECKING:
    from consentry.domain.orders import PurgeOrder, Receipt
    from consentry.ops.settings import Settings
    from consentry.trainer.deciding.decider import Decider
    from consentry.trainer.deciding.snapshot import Snapshot
    from consentry.trainer.purge.dataset import Dataset, Progress, PurgePlan, PurgeResult, Verified
    from consentry.trainer.purge.row_selector import RowSelector

app = typer.Typer(
    name="purge",
    help="Delete from a data set what orders name, and look whether it is gone.",
    no_args_is_help=True,
)
OPEN: Final = "open"
_BUNDLE_SECONDS_MAX: Final = 86_400.0

DatasetArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="Directory of Parquet files, delta:PATH, or iceberg:CATALOG.NAMESPACE.TABLE.",
    ),
]
OrdersOption = Annotated[
    str | None,
    typer.Option(
        help="File of orders, or 'open' for the open ones in Kafka (default without --excluded)."
    ),
]
OrderOption = Annotated[list[str] | None, typer.Option(help="Only this order; may be repeated.")]
ExcludedOption = Annotated[
    str | None, typer.Option(metavar="PURPOSE", help="Every row that may not be used for it now.")
]
UnknownOption = Annotated[
    str, typer.Option(help="keep or purge: rows excluded only as something is not known.")
]
MemberOption = Annotated[str | None, typer.Option(help="Column of member ids; default: member_id.")]
JurisdictionOption = Annotated[
    str | None, typer.Option(help="Default: jurisdiction, where there is one.")
]
CategoryOption = Annotated[str | None, typer.Option(help="Default: category, where there is one.")]
CollectedOption = Annotated[
    str | None, typer.Option(help="Default: collected_at, where there is one.")
]
BundleOption = Annotated[
    str | None, typer.Option(help="Know the members by the newest bundle there, without Kafka.")
]
BundleKeyOption = Annotated[
    Path | None, typer.Option(help="File with the public key that bundles are signed by.")
]
SparkOption = Annotated[
    str | None,
    typer.Option(
        metavar="MASTER", help="Work on the files of a directory by Spark; '' as it is set up."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _PurgeRequest:
    """What all three commands are asked."""

    dataset: str
    orders: str | None
    order: Sequence[str]
    excluded: str | None
    unknown: str
    columns: tuple[str | None, str | None, str | None, str | None]
    bundle: str | None
    bundle_key: Path | None
    spark: str | None

    @property
    def from_kafka(self) -> bool:
        """Whether the orders are those in Kafka."""
        return self.orders == OPEN or (self.orders is None and self.excluded is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PurgeContext:
    """The data set, the orders, and what is known of members."""

    dataset: Dataset
    orders: Sequence[PurgeOrder]
    snapshot: Snapshot
    decider: Decider
    excluded: str | None
    purge_unknown: bool

    def selector(self, exempt: Mapping[str, str]) -> RowSelector:
        """What rows go for: the orders that are not exempt, and the excluded."""
        from consentry.ops.clock import system_clock
        from consentry.trainer.purge.row_selector import (
            ExcludedSelector,
            JointSelector,
            OrdersSelector,
        )

        bound = [order for order in self.orders if order.order_id not in exempt]
        covers: list[RowSelector] = [OrdersSelector(bound, self.snapshot, system_clock())]
        if self.excluded is not None:
            covers.append(
                ExcludedSelector(self.decider, self.excluded, purge_unknown=self.purge_unknown)
            )
        return JointSelector(covers)


@app.command()
def plan(
    dataset: DatasetArgument,
    orders: OrdersOption = None,
    order: OrderOption = None,
    excluded: ExcludedOption = None,
    unknown: UnknownOption = "keep",
    member_col: MemberOption = None,
    jurisdiction_col: JurisdictionOption = None,
    category_col: CategoryOption = None,
    collected_col: CollectedOption = None,
    bundle: BundleOption = None,
    bundle_key: BundleKeyOption = None,
    spark: SparkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which files, rows and bytes a purge would touch, by order. Writes nothing.

    Exit 0: planned; rows kept because something about them is not known are told, and apply exits 2
    then. 2: refused.
    """
    asked = _PurgeRequest(
        dataset=dataset,
        orders=orders,
        order=order or (),
        excluded=excluded,
        unknown=unknown,
        columns=(member_col, jurisdiction_col, category_col, collected_col),
        bundle=bundle,
        bundle_key=bundle_key,
        spark=spark,
    )
    with _known(asked, settled=False) as known, _plainly(), _progress("looking") as progress:
        selector = known.selector({})
        found = known.dataset.plan(selector, progress)
    typer.echo(
        json.dumps(_plan_fields(known.dataset, found, selector))
        if as_json
        else _plan_text(found, selector)
    )


@app.command()
def apply(
    dataset: DatasetArgument,
    orders: OrdersOption = None,
    order: OrderOption = None,
    excluded: ExcludedOption = None,
    unknown: UnknownOption = "keep",
    exempt: Annotated[
        list[str] | None,
        typer.Option(metavar="ORDER=REASON", help="Keep this order's rows, for a reason."),
    ] = None,
    subscriber: Annotated[
        str | None,
        typer.Option(help="Send the receipts of Kafka's orders under this subscriber's name."),
    ] = None,
    receipts: Annotated[
        Path | None, typer.Option(help="Write the receipts to this file, as JSON.")
    ] = None,
    if_version: Annotated[
        str | None, typer.Option(help="Only if the data set still has this plan's version.")
    ] = None,
    vacuum: Annotated[
        bool,
        typer.Option("--vacuum", help="Destroy a table's older versions, for all who read them."),
    ] = False,
    member_col: MemberOption = None,
    jurisdiction_col: JurisdictionOption = None,
    category_col: CategoryOption = None,
    collected_col: CollectedOption = None,
    bundle: BundleOption = None,
    bundle_key: BundleKeyOption = None,
    spark: SparkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete the rows, and answer each order with a receipt.

    Killed at any point, it may be run again.

    Exit 0: done. 2: refused, failed, or rows were kept because something about them is not known.
    """
    from consentry.domain.values import parse_name

    asked = _PurgeRequest(
        dataset=dataset,
        orders=orders,
        order=order or (),
        excluded=excluded,
        unknown=unknown,
        columns=(member_col, jurisdiction_col, category_col, collected_col),
        bundle=bundle,
        bundle_key=bundle_key,
        spark=spark,
    )
    name = "" if subscriber is None else parse_name(subscriber, what="subscriber")
    if name and not asked.from_kafka:
        raise InvalidInput(
            f"--subscriber {name!r} sends the receipts of Kafka's orders, and others were named.",
            code="input.subscriber",
            fix="leave it out; --receipts FILE writes the receipts of any order",
        )
    reasons = _exempt(exempt or ())
    if receipts is not None and not receipts.absolute().parent.is_dir():
        raise InvalidInput(
            f"The directory of {str(receipts)!r} does not exist.",
            code="input.file",
            fix="make it, or name another",
        )
    with _known(asked, settled=False) as known:
        _check_exempt(reasons, known.orders)
        if vacuum and not known.dataset.keeps_versions:
            known.dataset.vacuum()  # says that there are none
        answer = _ReceiptSender(asked, known, reasons, name, receipts)
        try:
            if if_version is not None:
                _check_version(known.dataset, if_version)
            with _plainly(), _progress("purging") as progress:
                result = known.dataset.apply(known.selector(reasons), progress)
                gone = known.dataset.vacuum() if vacuum else ()
        except ConsentryError as error:
            answer.give(error)
            raise
        detail = _kept_by_old_versions(known.dataset, vacuum=vacuum)
        given = answer.give(result, detail)
    typer.echo(
        json.dumps(_result_fields(known.dataset, result, given, gone))
        if as_json
        else _result_text(known.dataset, result, given, gone, detail)
    )
    raise typer.Exit(2 if result.unknown else 0)


@app.command()
def verify(
    dataset: DatasetArgument,
    orders: OrdersOption = None,
    order: OrderOption = None,
    excluded: ExcludedOption = None,
    unknown: UnknownOption = "keep",
    exempt: Annotated[
        list[str] | None, typer.Option(metavar="ORDER=REASON", help="As for apply.")
    ] = None,
    current_only: Annotated[
        bool, typer.Option("--current-only", help="Leave a table's older versions out.")
    ] = False,
    member_col: MemberOption = None,
    jurisdiction_col: JurisdictionOption = None,
    category_col: CategoryOption = None,
    collected_col: CollectedOption = None,
    bundle: BundleOption = None,
    bundle_key: BundleKeyOption = None,
    spark: SparkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at every row again, of open orders and of erasures that are settled.

    Exit 0: nothing is left. 1: rows are left, here or in an older version. 2: it cannot be told.
    """
    asked = _PurgeRequest(
        dataset=dataset,
        orders=orders,
        order=order or (),
        excluded=excluded,
        unknown=unknown,
        columns=(member_col, jurisdiction_col, category_col, collected_col),
        bundle=bundle,
        bundle_key=bundle_key,
        spark=spark,
    )
    reasons = _exempt(exempt or ())
    with _known(asked, settled=True) as known, _plainly(), _progress("looking") as progress:
        _check_exempt(reasons, known.orders)
        selector = known.selector(reasons)
        found = known.dataset.verify(selector, progress, old_versions=not current_only)
    fields = asdict(found) | {"dataset": known.dataset.name, "orders": list(selector.order_ids)}
    typer.echo(json.dumps(fields) if as_json else _verified_text(known.dataset, found, selector))
    raise typer.Exit(found.exit_status)


@contextmanager
def _plainly() -> Iterator[None]:
    """Lets what the disk or a library says end as an error of ours;

    Arrow's own texts may quote rows.
    """
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        detail = (
            f": {error.strerror} ({error.filename})"
            if isinstance(error, OSError) and error.strerror
            else ""
        )
        raise Unavailable(
            f"The data set could not be worked on: {type(error).__name__}{detail}.",
            code="purge.failed",
            fix="mend that and run the same command again; what was swapped is whole and counted",
        ) from error


# ---- what is known


@contextmanager
def _known(asked: _PurgeRequest, *, settled: bool) -> Iterator[_PurgeContext]:
    """Opens what is asked for: the data set first, as that is quick to refuse.

    Raises ConsentryError.
    """
    from consentry.domain.values import parse_name
    from consentry.ops.clock import system_clock
    from consentry.ops.logs import set_up_logs
    from consentry.trainer.deciding.columns import Columns
    from consentry.trainer.purge.open_dataset import open_dataset

    set_up_logs(style="text", level="error")
    if asked.unknown not in ("keep", "purge"):
        raise InvalidInput(
            f"--unknown is {asked.unknown!r}, neither keep nor purge.",
            code="input.unknown",
            fix="write one of them",
        )
    if asked.excluded is not None:
        parse_name(asked.excluded, what="purpose")
    member, jurisdiction, category, collected = asked.columns
    columns = (
        Columns(
            member=member or "member_id",
            jurisdiction=jurisdiction,
            category=category,
            collected=collected,
        )
        if any(asked.columns)
        else None
    )
    dataset = open_dataset(
        asked.dataset, clock=system_clock, columns=columns, spark_master=asked.spark
    )
    with _members(asked, settled=settled) as (orders, snapshot, decider):
        _check_purpose(asked.excluded, snapshot)
        yield _PurgeContext(
            dataset=dataset,
            orders=_chosen(orders, asked.order),
            snapshot=snapshot,
            decider=decider,
            excluded=asked.excluded,
            purge_unknown=asked.unknown == "purge",
        )


def _check_purpose(purpose: str | None, snapshot: Snapshot) -> None:
    """Raise Refused for a purpose that no policy names: nobody is allowed for it, and all rows
    would be deleted.
    """
    known = snapshot.controls.purposes
    if purpose is not None and purpose not in known:
        raise Refused(
            f"No policy names the purpose {purpose!r}: everybody is excluded from it, and every "
            "row would go.",
            code="purge.purpose_unknown",
            fix="ask for one of "
            f"{', '.join(known)[:300] or 'those of a policy; none was published yet'}",
        )


@contextmanager
def _members(
    asked: _PurgeRequest, *, settled: bool
) -> Iterator[tuple[Sequence[PurgeOrder], Snapshot, Decider]]:
    """The orders, and what tells where members live and who is excluded: a client, a bundle, or
    nothing.
    """
    from consentry.trainer.deciding.decider import SnapshotDecider
    from consentry.trainer.deciding.snapshot import Snapshot
    from consentry.trainer.purge.orders_file import read_orders
    from consentry.wire.jurisdictions import iso_jurisdictions

    if (asked.bundle is None) != (asked.bundle_key is None) or (
        asked.bundle is not None and asked.from_kafka
    ):
        raise InvalidInput(
            "A bundle needs the key that it is signed by, and a file of orders or --excluded.",
            code="input.bundle",
            fix="give --bundle, --bundle-key and one of --orders FILE, --excluded PURPOSE; or "
            "none of the first two",
        )
    listed = [] if asked.from_kafka or asked.orders is None else read_orders(Path(asked.orders))
    if asked.bundle is not None and asked.bundle_key is not None:
        decider = _bundle_judge(asked.bundle, asked.bundle_key)
        yield listed, decider.snapshot, decider
    elif asked.from_kafka or asked.excluded is not None:
        yield from _following(asked, listed, settled=settled)
    elif any(order.member is None for order in listed):
        raise Refused(
            "An order of the file is about a jurisdiction, and nobody says who lives there.",
            code="purge.no_members",
            fix="give --bundle and --bundle-key, or have the orders read from Kafka",
        )
    else:
        snapshot = Snapshot(1, iso_jurisdictions())
        yield listed, snapshot, SnapshotDecider(snapshot)


def _bundle_judge(url: str, key_file: Path) -> Any:
    from consentry.bundles import PublicKeys
    from consentry.ops.settings import Settings
    from consentry.trainer.bundled import bundle_decider

    return bundle_decider(
        url,
        keys=PublicKeys.read(key_file),
        namespace=Settings.parse().namespace,
        max_age_seconds=_BUNDLE_SECONDS_MAX,
    )


def _following(
    asked: _PurgeRequest, listed: Sequence[PurgeOrder], *, settled: bool
) -> Iterator[tuple[Sequence[PurgeOrder], Snapshot, Decider]]:
    import os

    from consentry.cli.connections import load_settings
    from consentry.ops.clock import system_clock
    from consentry.trainer.client import Client
    from consentry.trainer.deciding.decider import SnapshotDecider

    settings = load_settings()
    with Client.connect(
        settings.kafka(),
        name=f"purge-{os.getpid()}",
        registry_url=settings.registry_url,
        registry=settings.registry(),
        namespace=settings.namespace,
        staleness_seconds=settings.staleness_seconds,
    ) as client:
        orders = listed
        if asked.from_kafka:
            orders = (
                _all_orders(settings, asked.order)
                if settled or asked.order
                else client.open_orders()
            )
        if asked.spark is None:
            yield orders, client.snapshot, client
        else:
            # What travels to the executors stands still: a client can be in one process only.
            client.stop()
            yield orders, client.snapshot, SnapshotDecider(client.snapshot, at=system_clock())


def _all_orders(settings: Settings, chosen: Sequence[str]) -> list[PurgeOrder]:
    """The orders that are open, that are chosen, or that nothing can end: an erasure holds for what
    comes later too.
    """
    from consentry.cli.connections import open_catalog
    from consentry.domain.orders import PurgeReason
    from consentry.kafka.clients import read_all
    from consentry.wire.purge_orders import read_order
    from consentry.wire.schemas import PURGE_ORDERS, topic_name

    catalog = open_catalog(settings)
    newest: dict[str, PurgeOrder] = {}
    for message in read_all(settings.kafka(), topic_name(settings.namespace, PURGE_ORDERS)):
        if message.value is not None:
            order = read_order(message.value, catalog)
            newest[order.order_id] = order
    return [
        order
        for order in newest.values()
        if not order.is_settled or order.because is PurgeReason.ERASURE or order.order_id in chosen
    ]


def _chosen(orders: Sequence[PurgeOrder], chosen: Sequence[str]) -> Sequence[PurgeOrder]:
    known = {order.order_id: order for order in orders}
    if missing := [name for name in chosen if name not in known]:
        raise _no_order(missing[0])
    return [known[name] for name in dict.fromkeys(chosen)] if chosen else orders


def _no_order(name: str) -> InvalidInput:
    return InvalidInput(
        f"There is no order {name!r}.", code="input.order", fix="`consentry purge plan` lists them"
    )


def _exempt(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        order, equals, reason = pair.partition("=")
        if not (order and equals and reason.strip()):
            raise InvalidInput(
                f"--exempt {pair!r} is not ORDER=REASON.",
                code="input.exempt",
                fix="say why the rows may stay",
            )
        found[order] = reason.strip()
    return found


def _check_exempt(reasons: Mapping[str, str], orders: Sequence[PurgeOrder]) -> None:
    known = {order.order_id for order in orders}
    if missing := [name for name in reasons if name not in known]:
        raise _no_order(missing[0])


def _check_version(dataset: Dataset, expected: str) -> None:
    if (found := dataset.version()) != expected:
        raise Unavailable(
            f"The data set has the version {found}, not {expected}: it was written to since.",
            code="purge.dataset_changed",
            fix="plan it again",
        )


# ---- what is answered


@dataclass(frozen=True, slots=True)
class _ReceiptSender:
    """Gives the receipts: to a file, and to Kafka where the orders came from there."""

    asked: _PurgeRequest
    known: _PurgeContext
    exempt: Mapping[str, str]
    subscriber: str
    file: Path | None

    def give(self, outcome: PurgeResult | Exception, detail: str = "") -> list[Receipt]:
        """The receipts, once they are written and acknowledged."""
        from consentry.ops.clock import system_clock
        from consentry.trainer.purge.receipts import as_fields, receipts

        given = receipts(
            self.known.orders,
            self.exempt,
            outcome,
            subscriber=self.subscriber,
            dataset=self.known.dataset.name,
            completed_at=system_clock(),
            detail=detail,
        )
        if self.file is not None:
            temporary = self.file.with_name(f".{self.file.name}.tmp")
            temporary.write_text(json.dumps([as_fields(one) for one in given], indent=2) + "\n")
            temporary.replace(self.file)
        if self.subscriber and self.asked.from_kafka and given:
            _publish(given)
            what = "1 receipt was" if len(given) == 1 else f"{len(given):,} receipts were"
            typer.echo(f"{what} sent for {self.subscriber}", err=True)
        return given


def _publish(receipts: Sequence[Receipt]) -> None:
    from confluent_kafka import Producer

    from consentry.cli.connections import load_settings, open_catalog
    from consentry.kafka.clients import producer_config, send
    from consentry.wire.purge_orders import write_receipt
    from consentry.wire.schemas import RECEIPTS, topic_name

    settings = load_settings()
    catalog = open_catalog(settings)
    key = receipts[0].subscriber.encode()
    producer = Producer(producer_config(settings.kafka(), "consentry-purge"))
    send(
        producer,
        topic_name(settings.namespace, RECEIPTS),
        [(key, write_receipt(receipt, catalog)) for receipt in receipts],
    )


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as shown:
        task = shown.add_task(what, total=None)

        def told(done: int, files: int) -> None:
            shown.update(task, completed=done, total=files)

        yield told


# ---- as text and as JSON


def _plan_fields(dataset: Dataset, found: PurgePlan, selector: RowSelector) -> dict[str, Any]:
    by_order = {
        order: dict(zip(("files", "rows", "bytes"), found.covered(order), strict=True))
        for order in selector.order_ids
    }
    return asdict(found) | {"dataset": dataset.name, "orders": by_order}


def _plan_text(found: PurgePlan, selector: RowSelector) -> str:
    lines = [
        f"version {found.version}: {found.files_looked_at:,} files, {found.rows_looked_at:,} rows",
        f"{'files':>8} {'rows':>12} {'bytes':>16}  order",
    ]
    for order in selector.order_ids:
        files, rows, size = found.covered(order)
        lines.append(f"{files:>8,} {rows:>12,} {size:>16,}  {order}")
    rows = sum(sum(file.covered.values()) for file in found.files)
    lines.append(
        f"{len(found.files):>8,} {rows:>12,} {sum(file.bytes for file in found.files):>16,}  in all"
    )
    told = "; without `--unknown purge` apply and verify will exit 2"
    return "\n".join(lines + [text + told for text in _unknown_text(found.unknown)])


def _unknown_text(unknown: int) -> list[str]:
    return [f"{unknown:,} rows are kept: something about them is not known"] if unknown else []


def _kept_by_old_versions(dataset: Dataset, *, vacuum: bool) -> str:
    from consentry.trainer.purge.receipts import KEPT_BY_OLD_VERSIONS

    return KEPT_BY_OLD_VERSIONS if dataset.keeps_versions and not vacuum else ""


def _result_fields(
    dataset: Dataset, result: PurgeResult, given: Sequence[Receipt], gone: Sequence[str]
) -> dict[str, Any]:
    from consentry.trainer.purge.receipts import as_fields

    return asdict(result) | {
        "dataset": dataset.name,
        "receipts": [as_fields(one) for one in given],
        "vacuumed": list(gone),
    }


def _result_text(
    dataset: Dataset,
    result: PurgeResult,
    given: Sequence[Receipt],
    gone: Sequence[str],
    detail: str,
) -> str:
    removed = sum(result.rows_removed.values())
    lines = [f"{dataset.name}: {removed:,} rows removed from {result.files_rewritten:,} files"]
    lines.append(f"version {result.version_before} -> {result.version_after}")
    lines += [f"{one.result.value:<10} {one.rows_removed:>12,}  {one.order_id}" for one in given]
    # Nobody ordered these, so no receipt says it.
    lines += [
        f"{'DELETED' if rows else 'NOT_FOUND':<10} {rows:>12,}  {name}"
        for name, rows in result.rows_removed.items()
        if name.startswith("excluded:")
    ]
    lines += [f"vacuumed: {len(gone)} old"] if gone else []
    lines += [detail] if detail and removed else []
    return "\n".join(lines + sorted(set(result.notes)) + _unknown_text(result.unknown))


def _verified_text(dataset: Dataset, found: Verified, selector: RowSelector) -> str:
    lines = [
        f"{dataset.name}: {found.files:,} files, {found.rows:,} rows, {len(selector.order_ids)} "
        "orders"
    ]
    lines += [f"left: {rows:,} rows of {order}" for order, rows in found.rows_left.items()]
    lines += [
        f"left: {rows:,} rows in the older version {version}"
        for version, rows in found.old_versions.items()
    ]
    lines += [f"cannot be read: {why}" for why in found.unreadable]
    lines += [f"{found.unknown:,} rows of which something is not known"] if found.unknown else []
    lines.append(("clean", "rows are left", "it cannot be told")[found.exit_status])
    return "\n".join(lines)
