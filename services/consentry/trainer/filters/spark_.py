"""Spark DataFrames: the rows that may be used, by plain joins; no Python runs on the executors.

The decision is made of small tables (see decision_tables) that the rows are left-joined with. Spark
chooses how: it broadcasts what is small, and shuffles the members where they are many.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import weakref
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from consentry.domain.errors import InvalidInput, Refused
from consentry.domain.values import DAY_MICROS, MEMBER_ID_PATTERN, Micros, Reason
from consentry.ops.clock import system_clock
from consentry.trainer.deciding.columns import Columns, find_columns
from consentry.trainer.deciding.decide_table import REASONS
from consentry.trainer.deciding.decider import Decider
from consentry.trainer.deciding.join_tables import JoinTables, decision_tables
from consentry.trainer.deciding.snapshot import Snapshot
from consentry.wire.freshness import FOREVER

GOOD_FOR_SECONDS: Final = 3600.0
"""A plan that is run later than this after it was made fails: what it knows is too old to train on.
"""
_SMALL: Final = 100_000
"""So many members go with the plan itself; more are written to files."""
_FILE_ROWS: Final = 2_000_000
_MEMBER_ID: Final = rf"\A(?:{MEMBER_ID_PATTERN.pattern})\z"
_SEED: Final = 0x9747B28C
_M: Final = 0x5BD1E995
_HELPER: Final = "__consentry_"
_ALLOWING: Final = tuple(reason.value for reason in Reason if reason.allows)

Join = Literal["auto", "broadcast", "shuffle"]


def filter(
    decider: Decider,
    data: DataFrame,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    tally: Counter[Reason] | None = None,
    reason_column: str | None = None,
    directory: str | Path | None = None,
    join: Join = "auto",
    good_for_seconds: float = GOOD_FOR_SECONDS,
    checkpoint: bool = False,
) -> DataFrame:
    """The rows of a DataFrame that may be used for `purpose`, as known now; columns as they were.

    The plan is made now and runs later: what is recorded meanwhile is not in it, so make it right
    before the action. Run later than `good_for_seconds`, it fails; with `checkpoint` the rows are
    decided and kept at once. Where freshness is not proven, or `at_least` not reached, no row is
    allowed.

    `directory` is where members are written as Parquet when they are many: a path or URL that
    driver and executors read; it may be left out where both are one machine. `join` says how
    members are joined where Spark should not choose. `reason_column` adds the reason of each row.
    `tally` runs the plan once to count the reasons. The column of member ids carries the view's id
    in its metadata, as `consentry`.
    """
    judged = with_reasons(
        decider,
        data,
        purpose=purpose,
        columns=columns,
        at_least=at_least,
        reason_column=reason_column or f"{_HELPER}reason",
        directory=directory,
        join=join,
        good_for_seconds=good_for_seconds,
    )
    reason = _column(reason_column or f"{_HELPER}reason")
    if checkpoint:
        judged = judged.localCheckpoint()
    if tally is not None:
        counts = judged.groupBy(reason.alias("reason")).count().collect()
        tally.update({Reason(row["reason"]): row["count"] for row in counts})
    kept = judged.where(reason.isin(*_ALLOWING))
    return kept if reason_column else kept.drop(f"{_HELPER}reason")


def with_reasons(
    decider: Decider,
    data: DataFrame,
    *,
    purpose: str,
    columns: Columns | None = None,
    at_least: str | None = None,
    reason_column: str = "consentry_reason",
    directory: str | Path | None = None,
    join: Join = "auto",
    good_for_seconds: float = GOOD_FOR_SECONDS,
) -> DataFrame:
    """Every row with the reason why it may or may not be used; see `filter`, whose arguments these
    are.
    """
    columns = _checked(data, columns, reason_column)
    snapshot_id = decider.snapshot_id
    if _is_stale(decider, purpose, at_least):
        reason, judged = F.lit(Reason.STALE.value), data
    else:
        snapshot = _snapshot_of(decider)
        tables = decision_tables(
            snapshot, purpose=purpose, at=_moment(decider, snapshot), known_at=FOREVER
        )
        snapshot_id = tables.snapshot_id
        judged = _joined(
            data, columns, tables, _members(data.sparkSession, tables, directory, join)
        )
        reason = _while_good(_reason(judged), good_for_seconds)
    field = data.schema[columns.member]
    told = {**field.metadata, "consentry": {"snapshot": snapshot_id, "purpose": purpose}}
    own = [
        _column(name).alias(name, metadata=told) if name == columns.member else _column(name)
        for name in data.columns
    ]
    return judged.select(*own, reason.alias(reason_column))


def _checked(data: DataFrame, columns: Columns | None, reason_column: str) -> Columns:
    """The columns to decide by.

    Raises InvalidInput where they are missing, or the DataFrame cannot be filtered.
    """
    columns = find_columns(data.columns, columns)
    names = [name.lower() for name in data.columns]
    if (
        len(set(names)) < len(names)
        or reason_column.lower() in names
        or any(_HELPER in name for name in names)
    ):
        raise InvalidInput(
            f"The columns {', '.join(map(repr, data.columns))} cannot be told apart, or one is "
            "named as the reason is.",
            code="input.column",
            fix="give each column a name of its own, whatever its case, and none that begins with "
            "__consentry_",
        )
    if data.isStreaming:
        raise InvalidInput(
            "A streaming DataFrame would be decided for ever by what is known now.",
            code="input.streaming",
            fix="filter each batch by itself, in foreachBatch",
        )
    return columns


def _is_stale(decider: Decider, purpose: str, at_least: str | None) -> bool:
    """Whether no row is allowed now.

    Asked as every question is, so that a token is waited for in the same way.
    """
    probe = decider.decide_table(pa.table({"member_id": ["-"]}), purpose=purpose, at_least=at_least)
    return REASONS[probe.reasons[0]] is Reason.STALE


def _snapshot_of(decider: Decider) -> Snapshot:
    snapshot = getattr(decider, "snapshot", None)
    if not isinstance(snapshot, Snapshot):
        raise Refused(
            f"Spark needs every member that {type(decider).__name__} knows, and it cannot list "
            "them.",
            code="trainer.no_view",
            fix="give a client, or a judge that holds a view, such as that of a bundle",
        )
    return snapshot


def _moment(decider: Decider, snapshot: Snapshot) -> Micros:
    """The time asked about: the judge's own, where it has one, or now."""
    at: Micros | None = getattr(decider, "_at", None)
    return (
        max(getattr(decider, "_clock", system_clock)(), snapshot.newest_frontier)
        if at is None
        else at
    )


# ---- the members, where Spark can read them


def _members(
    spark: SparkSession, tables: JoinTables, directory: str | Path | None, join: Join
) -> DataFrame:
    """The members as a DataFrame, with the hint that was asked for."""
    table = tables.members.rename_columns([f"{_HELPER}member", f"{_HELPER}state"])
    if directory is None and table.num_rows <= _SMALL:
        members = spark.createDataFrame(table)
    else:
        members = _written(spark, table, directory)
    if join == "auto":
        return members
    return F.broadcast(members) if join == "broadcast" else members.hint("merge")


def _written(spark: SparkSession, table: pa.Table, directory: str | Path | None) -> DataFrame:
    """The members as Parquet files; those in a place of our own are deleted with the session."""
    if directory is None:
        if not (spark.conf.get("spark.master", "") or "").startswith("local"):
            raise InvalidInput(
                f"{table.num_rows} members are too many to be part of a plan, and no directory "
                "was named.",
                code="input.directory",
                fix="name with directory= a path or URL that the driver writes and the executors "
                "read",
            )
        directory = tempfile.mkdtemp(prefix="consentry-members-")
        weakref.finalize(spark, shutil.rmtree, directory, ignore_errors=True)
    elif "://" not in str(directory):
        directory = Path(directory).resolve()
    place = f"{directory}/consentry-members-{uuid.uuid4().hex}"
    files, path = fsspec.core.url_to_fs(place)
    files.makedirs(path)
    for number, start in enumerate(range(0, max(table.num_rows, 1), _FILE_ROWS)):
        with files.open(f"{path}/part-{number:05}.parquet", "wb") as out:
            pq.write_table(table.slice(start, _FILE_ROWS), out)
    # Whoever is in a file that is not read would be nobody, and allowed: so a session's leniency
    # must not hold here.
    strict = {"ignoreMissingFiles": "false", "ignoreCorruptFiles": "false"}
    reader = spark.read.options(**strict).schema(f"{_HELPER}member string, {_HELPER}state int")
    return reader.parquet(place if "://" in place else f"file://{place}")


# ---- the decision, in columns


def _joined(data: DataFrame, columns: Columns, tables: JoinTables, members: DataFrame) -> DataFrame:
    """The rows with the place of their reason in REASONS, beside helper columns."""
    spark = data.sparkSession
    keys = {f"{_HELPER}id": _id(data, columns.member)}
    if columns.jurisdiction is not None:
        keys[f"{_HELPER}jurisdiction"] = _text(data, columns.jurisdiction)
    if columns.category is not None:
        keys[f"{_HELPER}category"] = _text(data, columns.category)
    joined = data.withColumns(keys).join(members, _own("id") == _own("member"), "left")

    place, kind = F.lit(tables.no_place), F.lit(tables.no_kind)
    if columns.jurisdiction is not None:
        joined = _looked_up(joined, spark, tables.places, _own("jurisdiction"))
        place = _or_stand_in("jurisdiction", "place", tables.no_place, tables.unknown_place)
    if columns.category is not None:
        joined = _looked_up(joined, spark, tables.kinds, _own("category"))
        kind = _or_stand_in("category", "kind", tables.no_kind, tables.other_kind)
    code = _state(tables).cast("long")
    for size, value in zip(
        tables.sizes, (place, kind, _reached(data, columns, tables)), strict=True
    ):
        code = code * size + value
    joined = joined.withColumn(f"{_HELPER}asked", code)
    return _looked_up(joined, spark, tables.answers, _own("asked"))


def _looked_up(rows: DataFrame, spark: SparkSession, table: pa.Table, key: Column) -> DataFrame:
    """The rows with what a small table of (key, value) has for their key."""
    own = table.rename_columns(
        [f"{_HELPER}key_{table.column_names[0]}", f"{_HELPER}{table.column_names[1]}"]
    )
    return rows.join(
        F.broadcast(spark.createDataFrame(own)), key == _own(f"key_{table.column_names[0]}"), "left"
    )


def _or_stand_in(key: str, value: str, none: int, other: int) -> Column:
    return F.when(_own(key).isNull(), none).otherwise(F.coalesce(_own(value), F.lit(other)))


def _state(tables: JoinTables) -> Column:
    """The member's state: that of their record; else of nobody, unless they could be held
    without one.
    """
    found = F.when(_own("id").isNull(), tables.quarantined).when(
        _own("state").isNotNull(), _own("state")
    )
    if tables.tainted:
        partition = _partition(_own("id"), tables.partitions)
        found = found.when(partition.isin(*sorted(tables.tainted)), tables.quarantined)
    return found.otherwise(tables.nobody)


def _reason(joined: DataFrame) -> Column:
    """The reason's name; QUARANTINED, were there no answer to a code."""
    names = F.array(*(F.lit(reason.value) for reason in REASONS))
    place = F.coalesce(_own("reason"), F.lit(REASONS.index(Reason.QUARANTINED)))
    return F.element_at(names, place.cast("int") + 1)


def _while_good(reason: Column, seconds: float) -> Column:
    """The reason, as long as the plan is not older than that when it is run."""
    until = F.timestamp_micros(F.lit(int(system_clock() + seconds * 1_000_000)))
    text = (
        f"consentry: this plan was made more than {seconds:g} s before it was run "
        "[trainer.stale]; filter again"
    )
    return F.when(
        F.current_timestamp() > until, F.raise_error(F.lit(text)).cast("string")
    ).otherwise(reason)


def _id(data: DataFrame, name: str) -> Column:
    """The member id as text; null for what is none."""
    kind = data.schema[name].dataType
    if isinstance(kind, T.ByteType | T.ShortType | T.IntegerType | T.LongType):
        found = _column(name).cast("string")
    elif isinstance(kind, T.StringType):
        found = _binary_text(_column(name), kind)
    else:
        return F.lit(None).cast("string")
    return F.when(found.rlike(_MEMBER_ID), found)


def _text(data: DataFrame, name: str) -> Column:
    """A jurisdiction or category as text."""
    kind = data.schema[name].dataType
    if isinstance(kind, T.StringType):
        return _binary_text(_column(name), kind)
    if isinstance(kind, T.BinaryType | T.IntegralType | T.NullType):
        return _column(name).cast("string")
    raise InvalidInput(
        f"The column {name!r} holds {kind.simpleString()}, which is no text.",
        code="input.column",
        fix="cast it to a string as the controls write it, or name another column",
    )


def _binary_text(column: Column, kind: T.StringType) -> Column:
    """The text compared by its bytes: by another collation one member could be taken for
    another.
    """
    return column if kind == T.StringType() else F.collate(column, "UTF8_BINARY")


def _reached(data: DataFrame, columns: Columns, tables: JoinTables) -> Column:
    """How many cut-offs the time of collection has reached; 0 where nobody knows when."""
    if columns.collected is None:
        return F.lit(0)
    name = columns.collected
    column, kind = _column(name), data.schema[name].dataType
    if isinstance(kind, T.DateType):
        days = [F.lit(-(-instant // DAY_MICROS)) for instant in tables.cut_offs]
        return _count_reached(F.unix_date(column), days)
    if isinstance(kind, T.TimestampNTZType):
        # As in Arrow, a time without a zone is one of UTC, whatever the session's zone is.
        texts = [F.lit(_in_utc(instant)).cast("timestamp_ntz") for instant in tables.cut_offs]
        return _count_reached(column, texts)
    if isinstance(kind, T.TimestampType):
        return _count_reached(F.unix_micros(column), list(map(F.lit, tables.cut_offs)))
    if isinstance(kind, T.IntegralType | T.NullType):
        return _count_reached(column.cast("long"), list(map(F.lit, tables.cut_offs)))
    raise InvalidInput(
        f"The column {name!r} holds {kind.simpleString()}, which is not a time of collection.",
        code="input.column",
        fix="give it a date or timestamp type, or microseconds since 1970-01-01 UTC",
    )


def _in_utc(instant: Micros) -> str:
    return (datetime(1970, 1, 1) + timedelta(microseconds=instant)).isoformat(sep=" ")  # noqa: DTZ001 - zoneless


def _count_reached(value: Column, cut_offs: list[Column], below: int = 0) -> Column:
    """How many of the ascending cut-offs are at or before the value, by halves; all before a null
    are not.
    """
    if not cut_offs:
        return F.lit(below)
    middle = len(cut_offs) // 2
    later = _count_reached(value, cut_offs[middle + 1 :], below + middle + 1)
    return F.when(value >= cut_offs[middle], later).otherwise(
        _count_reached(value, cut_offs[:middle], below)
    )


def _column(name: str) -> Column:
    """The column of exactly this name, which may have dots in it."""
    return F.col("`" + name.replace("`", "``") + "`")


def _own(name: str) -> Column:
    return F.col(f"{_HELPER}{name}")


# ---- murmur2 in columns, as in wire.partitions


def _partition(key: Column, partitions: int) -> Column:
    """The partition of a text of at most 64 ASCII characters: Kafka's murmur2 of it."""
    whole = (F.length(key) / 4).cast("int")
    words = F.filter(F.sequence(F.lit(0), F.lit(15)), lambda word: word < whole)
    start = F.lit(_SEED).bitwiseXOR(F.length(key).cast("long"))
    hashed = F.aggregate(
        words, start, lambda before, word: _mixed(before, _bytes(key, word * 4, 4))
    )
    rest = _bytes(key, whole * 4, 3)
    hashed = F.when(F.length(key) % 4 == 0, hashed).otherwise(_times_m(hashed.bitwiseXOR(rest)))
    return _folded(_times_m(_folded(hashed, 13)), 15).bitwiseAND(F.lit(0x7FFFFFFF)) % partitions


def _mixed(before: Column, word: Column) -> Column:
    return _times_m(before).bitwiseXOR(_times_m(_folded(_times_m(word), 24)))


def _bytes(key: Column, start: Column, count: int) -> Column:
    """The characters from `start` on as a number, the first the lowest; those beyond the end are
    0.
    """
    found = F.lit(0).cast("long")
    for place in range(count):
        one = F.ascii(F.substring(key, start + place + 1, 1)).cast("long")
        found = found + F.shiftleft(one, 8 * place)
    return found


def _times_m(value: Column) -> Column:
    """The product with murmur2's number modulo 2**32: in halves, as the whole would not fit into 64
    bits.
    """

    def product(one: Column) -> Column:
        high = F.shiftleft((one * (_M >> 16)).bitwiseAND(F.lit(0xFFFF)), 16)
        return (one * (_M & 0xFFFF) + high).bitwiseAND(F.lit(0xFFFFFFFF))

    return _once(value, product)


def _folded(value: Column, bits: int) -> Column:
    return _once(value, lambda one: one.bitwiseXOR(F.shiftright(one, bits)))


def _once(value: Column, use: Callable[[Column], Column]) -> Column:
    """What `use` makes of the value, which is computed once however often it is used."""
    return F.element_at(F.transform(F.array(value), use), 1)
