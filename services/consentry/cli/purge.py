"""`consentry purge …`: plan the deletion of rows from a data set, delete, and verify.

Purge orders name the rows. It verifies that the rows are gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from consentry.cli.connections import open_catalog
from consentry.cli.deciders import connect_client, open_bundle_decider
from consentry.cli.options import (
    BundleKeyOption,
    BundleOption,
    CategoryColumnOption,
    CollectedColumnOption,
    JsonOption,
    JurisdictionColumnOption,
    MemberColumnOption,
)
from consentry.cli.settings import load_settings
from consentry.domain.errors import InvalidInput
from consentry.domain.orders import PurgeOrder, Receipt
from consentry.domain.values import parse_name
from consentry.ops.clock import system_clock
from consentry.ops.logs import set_up_logs
from consentry.trainer.deciding.columns import Columns
from consentry.trainer.deciding.decider import SnapshotDecider
from consentry.trainer.purge.dataset import Progress
from consentry.trainer.purge.open_dataset import open_dataset
from consentry.trainer.purge.order_log import read_orders_to_verify, send_receipts
from consentry.trainer.purge.orders_file import read_orders
from consentry.trainer.purge.reports import (
    plan_fields,
    plan_text,
    result_fields,
    result_text,
    verified_fields,
    verified_text,
)
from consentry.trainer.purge.session import (
    ApplyOptions,
    KnownMembers,
    PurgeSession,
    check_receipts_file,
    parse_exemptions,
    translate_errors,
)

app = typer.Typer(
    name="purge",
    help="Delete rows that purge orders name, and check again.",
    no_args_is_help=True,
    add_completion=False,
)
OPEN: Final = "open"
_BUNDLE_SECONDS_MAX: Final = 86_400.0
_EXIT_UNKNOWN: Final = 2

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
        help="File of orders, or 'open' for the open orders in Kafka. Default: 'open', but none "
        "with --excluded."
    ),
]
OrderOption = Annotated[
    list[str] | None, typer.Option(metavar="ID", help="Only this order; repeatable.")
]
ExcludedOption = Annotated[
    str | None,
    typer.Option(
        metavar="PURPOSE", help="Also every row that may not be used for this purpose now."
    ),
]
UnknownOption = Annotated[
    str,
    typer.Option(
        metavar="keep|purge",
        help="What to do with rows that --excluded selects only because something is not known.",
    ),
]
ExemptOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORDER=REASON", help="Keep the rows of this order, for this reason; repeatable."
    ),
]
SubscriberOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Send the receipts of Kafka's orders under this subscriber's name."
    ),
]
ReceiptsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the receipts to this file, as JSON.")
]
IfVersionOption = Annotated[
    str | None,
    typer.Option(metavar="VERSION", help="Only if the data set still has the plan's version."),
]
VacuumOption = Annotated[
    bool, typer.Option("--vacuum", help="Also destroy a table's older versions, for every reader.")
]
SparkOption = Annotated[
    str | None,
    typer.Option(
        metavar="MASTER",
        help="Work on a directory's files with this Spark master; '' takes Spark's own.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeRequest:
    """The command-line arguments that `consentry purge` plan, apply and verify share."""

    dataset: str
    orders: str | None
    order_ids: Sequence[str]
    excluded: str | None
    unknown: str
    columns: Columns | None
    bundle: str | None
    bundle_key: Path | None
    spark: str | None

    @property
    def takes_orders_from_kafka(self) -> bool:
        """True if the arguments let the purge orders come from Kafka."""
        return self.orders == OPEN or (self.orders is None and self.excluded is None)


@app.command()
def plan(
    dataset: DatasetArgument,
    orders: OrdersOption = None,
    order: OrderOption = None,
    excluded: ExcludedOption = None,
    unknown: UnknownOption = "keep",
    member_col: MemberColumnOption = None,
    jurisdiction_col: JurisdictionColumnOption = None,
    category_col: CategoryColumnOption = None,
    collected_col: CollectedColumnOption = None,
    bundle: BundleOption = None,
    bundle_key: BundleKeyOption = None,
    spark: SparkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the files, rows and bytes that a purge would touch, by order.

    Nothing is written. Rows are kept where something about them is not known: the plan counts
    them, and apply then exits with 2.

    Exit 0: planned. 2: refused.
    """
    request = PurgeRequest(
        dataset=dataset,
        orders=orders,
        order_ids=order or (),
        excluded=excluded,
        unknown=unknown,
        columns=_columns(member_col, jurisdiction_col, category_col, collected_col),
        bundle=bundle,
        bundle_key=bundle_key,
        spark=spark,
    )
    with _open_session(request, for_verify=False) as session:
        selector = session.selector({}, now=system_clock())
        with translate_errors(), _progress_bar("looking") as progress:
            purge_plan = session.dataset.plan(selector, progress)
    if as_json:
        typer.echo(json.dumps(plan_fields(session.dataset, purge_plan, selector)))
    else:
        typer.echo(plan_text(purge_plan, selector))


@app.command()
def apply(
    dataset: DatasetArgument,
    orders: OrdersOption = None,
    order: OrderOption = None,
    excluded: ExcludedOption = None,
    unknown: UnknownOption = "keep",
    exempt: ExemptOption = None,
    subscriber: SubscriberOption = None,
    receipts: ReceiptsOption = None,
    if_version: IfVersionOption = None,
    vacuum: VacuumOption = False,
    member_col: MemberColumnOption = None,
    jurisdiction_col: JurisdictionColumnOption = None,
    category_col: CategoryColumnOption = None,
    collected_col: CollectedColumnOption = None,
    bundle: BundleOption = None,
    bundle_key: BundleKeyOption = None,
    spark: SparkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete the rows that purge orders name, and answer each with a receipt.

    If it is killed, run it again: each file is the old one or the new one.

    Exit 0: done. 2: refused or failed, or rows were kept because something about them is not known.
    """
    request = PurgeRequest(
        dataset=dataset,
        orders=orders,
        order_ids=order or (),
        excluded=excluded,
        unknown=unknown,
        columns=_columns(member_col, jurisdiction_col, category_col, collected_col),
        bundle=bundle,
        bundle_key=bundle_key,
        spark=spark,
    )
    options = ApplyOptions(
        exemptions=parse_exemptions(exempt or ()),
        subscriber=_subscriber(subscriber, request),
        receipts_file=receipts,
        if_version=if_version,
        vacuum=vacuum,
    )
    if receipts is not None:
        check_receipts_file(receipts)
    with _open_session(request, for_verify=False) as session:
        applied = session.apply(
            options, clock=system_clock, send=_send, progress=lambda: _progress_bar("purging")
        )
    if as_json:
        typer.echo(json.dumps(result_fields(session.dataset, applied)))
    else:
        typer.echo(result_text(session.dataset, applied))
    if applied.result.unknown:
        raise typer.Exit(_EXIT_UNKNOWN)
    raise typer.Exit(0)


@app.command()
def verify(
    dataset: DatasetArgument,
    orders: OrdersOption = None,
    order: OrderOption = None,
    excluded: ExcludedOption = None,
    unknown: UnknownOption = "keep",
    exempt: ExemptOption = None,
    current_only: Annotated[
        bool, typer.Option("--current-only", help="Leave out a table's older versions.")
    ] = False,
    member_col: MemberColumnOption = None,
    jurisdiction_col: JurisdictionColumnOption = None,
    category_col: CategoryColumnOption = None,
    collected_col: CollectedColumnOption = None,
    bundle: BundleOption = None,
    bundle_key: BundleKeyOption = None,
    spark: SparkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for rows that should have been purged, and print those that are left.

    It looks by open orders and by all erasures. Exit 0: nothing is left. 1: rows are left, here or
    in an older version. 2: cannot tell.
    """
    request = PurgeRequest(
        dataset=dataset,
        orders=orders,
        order_ids=order or (),
        excluded=excluded,
        unknown=unknown,
        columns=_columns(member_col, jurisdiction_col, category_col, collected_col),
        bundle=bundle,
        bundle_key=bundle_key,
        spark=spark,
    )
    exemptions = parse_exemptions(exempt or ())
    with _open_session(request, for_verify=True) as session:
        selector = session.selector(exemptions, now=system_clock())
        with translate_errors(), _progress_bar("looking") as progress:
            verified = session.dataset.verify(selector, progress, old_versions=not current_only)
    if as_json:
        typer.echo(json.dumps(verified_fields(session.dataset, verified, selector)))
    else:
        typer.echo(verified_text(session.dataset, verified, selector))
    raise typer.Exit(verified.exit_status)


def _columns(
    member: str | None, jurisdiction: str | None, category: str | None, collected: str | None
) -> Columns | None:
    """Return the columns that the options name, or None where they name no column."""
    if not (member or jurisdiction or category or collected):
        return None
    return Columns(
        member=member or "member_id",
        jurisdiction=jurisdiction,
        category=category,
        collected=collected,
    )


def _subscriber(name: str | None, request: PurgeRequest) -> str:
    """Return the name that receipts are sent under; empty where none are sent.

    Raises InvalidInput.
    """
    if name is None:
        return ""
    subscriber = parse_name(name, what="subscriber")
    if not request.takes_orders_from_kafka:
        raise InvalidInput(
            f"--subscriber {subscriber!r} sends the receipts of Kafka's orders, and other orders "
            "were named.",
            code="input.subscriber",
            fix="leave it out; --receipts FILE writes the receipts of any order",
        )
    return subscriber


def _send(receipts: Sequence[Receipt]) -> None:
    settings = load_settings()
    send_receipts(
        settings.kafka(), open_catalog(settings), namespace=settings.namespace, receipts=receipts
    )
    count = f"{len(receipts):,} receipts were"
    if len(receipts) == 1:
        count = "1 receipt was"
    typer.echo(f"{count} sent for {receipts[0].subscriber}", err=True)


@contextmanager
def _open_session(request: PurgeRequest, *, for_verify: bool) -> Iterator[PurgeSession]:
    """Open the data set, then the orders and what is known of members. Raises ConsentryError."""
    set_up_logs(style="text", level="error")
    if request.unknown not in ("keep", "purge"):
        raise InvalidInput(
            f"--unknown is {request.unknown!r}, neither keep nor purge.",
            code="input.unknown",
            fix="write one of them",
        )
    if request.excluded is not None:
        parse_name(request.excluded, what="purpose")
    # The data set first: its refusals come at once.
    dataset = open_dataset(
        request.dataset, clock=system_clock, columns=request.columns, spark_master=request.spark
    )
    with _open_members(request, for_verify=for_verify) as (orders, members):
        yield PurgeSession.open(
            dataset,
            orders,
            members,
            order_ids=request.order_ids,
            excluded=request.excluded,
            purge_unknown=request.unknown == "purge",
        )


OrdersAndMembers = tuple[Sequence[PurgeOrder], KnownMembers | None]
"""The orders, and what is known of members; None where orders name their members themselves."""


@contextmanager
def _open_members(request: PurgeRequest, *, for_verify: bool) -> Iterator[OrdersAndMembers]:
    """Open a client or a bundle, where one is needed, and read the orders."""
    from_kafka = request.takes_orders_from_kafka
    if (request.bundle is None) != (request.bundle_key is None) or (
        request.bundle is not None and from_kafka
    ):
        raise InvalidInput(
            "A bundle needs the key that it is signed with, and a file of orders or --excluded.",
            code="input.bundle",
            fix="give --bundle, --bundle-key and one of --orders FILE, --excluded PURPOSE; or "
            "none of the first two",
        )
    orders: Sequence[PurgeOrder] = ()
    if not from_kafka and request.orders is not None:
        orders = read_orders(Path(request.orders))
    if request.bundle is not None and request.bundle_key is not None:
        decider = open_bundle_decider(
            request.bundle, request.bundle_key, max_age_seconds=_BUNDLE_SECONDS_MAX
        )
        yield orders, KnownMembers(decider.snapshot, decider)
    elif from_kafka or request.excluded is not None:
        yield from _follow_kafka(request, orders, for_verify=for_verify)
    else:
        yield orders, None


def _follow_kafka(
    request: PurgeRequest, orders: Sequence[PurgeOrder], *, for_verify: bool
) -> Iterator[OrdersAndMembers]:
    settings = load_settings()
    with connect_client(settings, "purge") as client:
        if request.takes_orders_from_kafka:
            orders = client.open_orders()
            if for_verify or request.order_ids:
                orders = read_orders_to_verify(
                    settings.kafka(),
                    open_catalog(settings),
                    namespace=settings.namespace,
                    order_ids=request.order_ids,
                )
        if request.spark is None:
            yield orders, KnownMembers(client.snapshot, client)
        else:
            # A client lives in one process. What travels to the executors has to stand still.
            client.stop()
            still = SnapshotDecider(client.snapshot, at=system_clock())
            yield orders, KnownMembers(client.snapshot, still)


@contextmanager
def _progress_bar(label: str) -> Iterator[Progress]:
    """Show a bar on standard error where that is a terminal; yields what advances it."""
    console = Console(stderr=True)
    columns = (
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeRemainingColumn(),
    )
    with ProgressBar(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(label, total=None)

        def advance(done: int, files: int) -> None:
            bar.update(task, completed=done, total=files)

        yield advance
