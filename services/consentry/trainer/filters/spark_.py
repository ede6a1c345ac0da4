"""The filter for Spark DataFrames: plain joins pick the rows; executors run no Python.

The decision is made of small tables (see decision_tables) that the rows are left-joined with. Spark
chooses how: it broadcasts small tables, and shuffles the members where they are many.
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
"""A plan fails that is run later than this after it was made: its answers are too old to train on.
"""
_MEMBERS_IN_PLAN_MAX: Final = 100_000
"""Members that go with the plan itself; more are written to files."""
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
    """Return a Spark DataFrame's rows that may be used for `purpose`, as known now.

    The columns stay as they were. The plan is made now and runs later: what is recorded meanwhile
    is not in it, so make it right before the action. Run later than `good_for_seconds`, it fails;
    with `checkpoint` the rows are decided and stored at once. Where freshness is not proven, or
    `at_least` not reached, no row is allowed.

    `directory` is where members are written as Parquet when they are many: a path or URL that
    driver and executors read; it may be left out where both are one machine. `join` says how
    members are joined where Spark should not choose. `reason_column` adds the reason of each row.
    `tally` runs the plan once to count the reasons. The column of member ids carries the snapshot's
    id in its metadata, as `consentry`.

    Raises InvalidInput where a column is missing or the DataFrame cannot be filtered, Refused where
    the decider holds no snapshot.
    """
    decided = with_reasons(
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
        decided = decided.localCheckpoint()
    if tally is not None:
        counts = decided.groupBy(reason.alias("reason")).count().collect()
        tally.update({Reason(row["reason"]): row["count"] for row in counts})
    allowed = decided.where(reason.isin(*_ALLOWING))
    return allowed if reason_column else allowed.drop(f"{_HELPER}reason")


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
    """Return every row of a Spark DataFrame with the reason that the filter has for it.

    The arguments are those of `filter`.
    """
    columns = _check_columns(data, columns, reason_column)
    snapshot_id = decider.snapshot_id
    if _is_stale(decider, purpose, at_least):
        reason, decided = F.lit(Reason.STALE.value), data
    else:
        snapshot = _snapshot_of(decider)
        tables = decision_tables(
            snapshot, purpose=purpose, at=_moment(decider, snapshot), known_at=FOREVER
        )
        snapshot_id = tables.snapshot_id
        members = _members(data.sparkSession, tables, directory, join)
        decided = _join_tables(data, columns, tables, members)
        reason = _while_good(_reason(decided), good_for_seconds)
    field = data.schema[columns.member]
    metadata = {**field.metadata, "consentry": {"snapshot": snapshot_id, "purpose": purpose}}
    selected: list[Column] = []
    for name in data.columns:
        column = _column(name)
        is_member = name == columns.member
        selected.append(column.alias(name, metadata=metadata) if is_member else column)
    return decided.select(*selected, reason.alias(reason_column))


def _check_columns(data: DataFrame, columns: Columns | None, reason_column: str) -> Columns:
    """Return the columns that decide.

    Raises InvalidInput where they are missing, or the DataFrame cannot be filtered.
    """
    columns = find_columns(data.columns, columns)
    names = [name.lower() for name in data.columns]
    has_twins = len(set(names)) < len(names)
    has_helper = any(_HELPER in name for name in names)
    if has_twins or has_helper or reason_column.lower() in names:
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
    """Return True where no row is allowed now.

    It decides a row as every other decision is made, and so waits for a token in the same way.
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
            fix="give a client, or a decider that holds a snapshot, such as that of a bundle",
        )
    return snapshot


def _moment(decider: Decider, snapshot: Snapshot) -> Micros:
    """Return the time to decide for: the decider's own, where it has one, or now."""
    at: Micros | None = getattr(decider, "_at", None)
    if at is not None:
        return at
    clock = getattr(decider, "_clock", system_clock)
    return max(clock(), snapshot.newest_frontier)


# ---- the members, in a form that Spark reads


def _members(
    spark: SparkSession, tables: JoinTables, directory: str | Path | None, join: Join
) -> DataFrame:
    """Return the members as a DataFrame, with the hint for the join."""
    table = tables.members.rename_columns([f"{_HELPER}member", f"{_HELPER}state"])
    if directory is None and table.num_rows <= _MEMBERS_IN_PLAN_MAX:
        members = spark.createDataFrame(table)
    else:
        members = _write_members(spark, table, directory)
    if join == "auto":
        return members
    return F.broadcast(members) if join == "broadcast" else members.hint("merge")


def _write_members(spark: SparkSession, table: pa.Table, directory: str | Path | None) -> DataFrame:
    """Write the members as Parquet files, and return them as a DataFrame.

    Without `directory` they are deleted with the session. Raises InvalidInput where the executors
    could not read them.
    """
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
    url = f"{directory}/consentry-members-{uuid.uuid4().hex}"
    files, path = fsspec.core.url_to_fs(url)
    files.makedirs(path)
    for number, start in enumerate(range(0, max(table.num_rows, 1), _FILE_ROWS)):
        with files.open(f"{path}/part-{number:05}.parquet", "wb") as out:
            pq.write_table(table.slice(start, _FILE_ROWS), out)
    # A member in a file that is not read would count as one without a record, and be allowed: so a
    # session's lenient settings must not hold here.
    strict = {"ignoreMissingFiles": "false", "ignoreCorruptFiles": "false"}
    reader = spark.read.options(**strict).schema(f"{_HELPER}member string, {_HELPER}state int")
    return reader.parquet(url if "://" in url else f"file://{url}")


# ---- the decision, in columns


def _join_tables(
    data: DataFrame, columns: Columns, tables: JoinTables, members: DataFrame
) -> DataFrame:
    """Return the rows with the index of their reason in REASONS, beside helper columns."""
    spark = data.sparkSession
    keys = {f"{_HELPER}id": _id(data, columns.member)}
    if columns.jurisdiction is not None:
        keys[f"{_HELPER}jurisdiction"] = _text(data, columns.jurisdiction)
    if columns.category is not None:
        keys[f"{_HELPER}category"] = _text(data, columns.category)
    joined = data.withColumns(keys).join(members, _own("id") == _own("member"), "left")

    place, kind = F.lit(tables.no_place), F.lit(tables.no_kind)
    if columns.jurisdiction is not None:
        joined = _look_up(joined, spark, tables.places, _own("jurisdiction"))
        place = _or_stand_in("jurisdiction", "place", tables.no_place, tables.unknown_place)
    if columns.category is not None:
        joined = _look_up(joined, spark, tables.kinds, _own("category"))
        kind = _or_stand_in("category", "kind", tables.no_kind, tables.other_kind)
    code = _state(tables).cast("long")
    values = (place, kind, _reached(data, columns, tables))
    for size, value in zip(tables.sizes, values, strict=True):
        code = code * size + value
    joined = joined.withColumn(f"{_HELPER}asked", code)
    return _look_up(joined, spark, tables.answers, _own("asked"))


def _look_up(rows: DataFrame, spark: SparkSession, table: pa.Table, key: Column) -> DataFrame:
    """Return the rows with the value that a small table of (key, value) has for their key."""
    key_name, value_name = table.column_names
    renamed = table.rename_columns([f"{_HELPER}key_{key_name}", f"{_HELPER}{value_name}"])
    small = F.broadcast(spark.createDataFrame(renamed))
    return rows.join(small, key == _own(f"key_{key_name}"), "left")


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
    """Return the reason's name; QUARANTINED, should a code have no answer."""
    names = F.array(*(F.lit(reason.value) for reason in REASONS))
    index = F.coalesce(_own("reason"), F.lit(REASONS.index(Reason.QUARANTINED)))
    return F.element_at(names, index.cast("int") + 1)


def _while_good(reason: Column, seconds: float) -> Column:
    """Return the reason, or an error where the plan is older than `seconds` when it is run."""
    until = F.timestamp_micros(F.lit(int(system_clock() + seconds * 1_000_000)))
    text = (
        f"consentry: this plan was made more than {seconds:g} s before it was run "
        "[trainer.stale]; filter again"
    )
    error = F.raise_error(F.lit(text)).cast("string")
    return F.when(F.current_timestamp() > until, error).otherwise(reason)


def _id(data: DataFrame, name: str) -> Column:
    """Return the member id as text; null for a value that is not a member id."""
    kind = data.schema[name].dataType
    if isinstance(kind, T.ByteType | T.ShortType | T.IntegerType | T.LongType):
        text = _column(name).cast("string")
    elif isinstance(kind, T.StringType):
        text = _binary_text(_column(name), kind)
    else:
        return F.lit(None).cast("string")
    return F.when(text.rlike(_MEMBER_ID), text)


def _text(data: DataFrame, name: str) -> Column:
    """Return a jurisdiction or category as text. Raises InvalidInput for other types."""
    kind = data.schema[name].dataType
    if isinstance(kind, T.StringType):
        return _binary_text(_column(name), kind)
    if isinstance(kind, T.BinaryType | T.IntegralType | T.NullType):
        return _column(name).cast("string")
    raise InvalidInput(
        f"The column {name!r} holds {kind.simpleString()}, which is not text.",
        code="input.column",
        fix="cast it to a string as the controls write it, or name another column",
    )


def _binary_text(column: Column, kind: T.StringType) -> Column:
    """Return the text compared by its bytes: other collations may equate two members."""
    return column if kind == T.StringType() else F.collate(column, "UTF8_BINARY")


def _reached(data: DataFrame, columns: Columns, tables: JoinTables) -> Column:
    """Return the number of cut-offs that the time of collection has reached; 0 for a null.

    Raises InvalidInput where the column holds no times.
    """
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
    """Return how many of the ascending cut-offs are at or before the value; 0 for a null.

    The expression searches by halves.
    """
    if not cut_offs:
        return F.lit(below)
    middle = len(cut_offs) // 2
    later = _count_reached(value, cut_offs[middle + 1 :], below + middle + 1)
    return F.when(value >= cut_offs[middle], later).otherwise(
        _count_reached(value, cut_offs[:middle], below)
    )


def _column(name: str) -> Column:
    """Return the column of exactly this name, which may have dots in it."""
    return F.col("`" + name.replace("`", "``") + "`")


def _own(name: str) -> Column:
    return F.col(f"{_HELPER}{name}")


# ---- murmur2 in columns, as in wire.partitions


def _partition(key: Column, partitions: int) -> Column:
    """Return the partition of a text of at most 64 ASCII characters, by Kafka's murmur2."""
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
    """Return the characters from `start` on as a number, little end first; 0 beyond the end."""
    number = F.lit(0).cast("long")
    for index in range(count):
        byte = F.ascii(F.substring(key, start + index + 1, 1)).cast("long")
        number = number + F.shiftleft(byte, 8 * index)
    return number


def _times_m(value: Column) -> Column:
    """Return the product with murmur2's number modulo 2**32.

    In halves, as the whole product would not fit into 64 bits.
    """

    def product(factor: Column) -> Column:
        high = F.shiftleft((factor * (_M >> 16)).bitwiseAND(F.lit(0xFFFF)), 16)
        return (factor * (_M & 0xFFFF) + high).bitwiseAND(F.lit(0xFFFFFFFF))

    return _once(value, product)


def _folded(value: Column, bits: int) -> Column:
    return _once(value, lambda word: word.bitwiseXOR(F.shiftright(word, bits)))


def _once(value: Column, use: Callable[[Column], Column]) -> Column:
    """Return the result of `use` for a value that is computed once, however often it is used."""
    return F.element_at(F.transform(F.array(value), use), 1)
