"""The consent table in Redis or Valkey, written by one library of Lua functions.

Each partition has a hash of its state ("meta") and some hashes of records ("buckets"). A member's
bucket is the CRC-32 of the id, modulo the number of buckets.
"""

from __future__ import annotations

import functools
from binascii import crc32
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from consentry.domain.errors import Fenced, Refused, TableWentBack, Unavailable, UnsafeSetting
from consentry.domain.values import Micros
from consentry.table.protocol import Meta, PartitionClaim, Reading, Write
from consentry.table.refusals import refusal_of

_BUCKET_MEMBERS: Final = 100
"""Members per bucket at the expected size: few enough that the hash stays a listpack, and enough
to share its overhead.
"""
_SERVER_VERSION_MIN: Final = (7, 0)
_SAFE_SETTINGS: Final = {"maxmemory-policy": "noeviction", "aof-load-truncated": "no"}
_SOCKET_SECONDS: Final = 2.0
_LAYOUT_TRIES: Final = 3

_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")


class _Call(NamedTuple):
    """One call of a function of our library: its short name, keys and arguments."""

    name: str
    keys: list[str]
    arguments: Sequence[Any]


class _PartitionContent(NamedTuple):
    """The state of a partition and the records that were asked for, as of one moment."""

    meta: Meta
    records: list[bytes | None]


def _translate_errors(call: Callable[_Parameters, _Returned]) -> Callable[_Parameters, _Returned]:
    """Turn the Redis client's errors into ours, in one place."""

    @functools.wraps(call)
    def translated(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Returned:
        try:
            return call(*args, **kwargs)
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise Unavailable(
                f"The consent table did not answer ({type(error).__name__}).",
                code="table.unavailable",
                fix="check CONSENTRY_REDIS_URL and that the server runs (`consentry local status` "
                "for the local one)",
            ) from error
        except RedisError as error:
            raise Unavailable(
                f"The consent table refused a command: {error}.",
                code="table.error",
                fix="check the server's log, memory and disk; the command is repeated",
            ) from error

    return translated


class RedisTable:
    """The consent table in Redis or Valkey, as ConsentTable describes it.

    The whole table is laid out for `members` members, who share `partitions` partitions.
    """

    def __init__(self, url: str, *, namespace: str, partitions: int, members: int) -> None:
        try:
            self._redis = redis.Redis.from_url(
                url,
                protocol=3,
                socket_timeout=_SOCKET_SECONDS,
                socket_connect_timeout=_SOCKET_SECONDS,
                # A repeated store is recognised by the offset check. More than one retry would
                # only hide an outage.
                retry=Retry(ExponentialBackoff(cap=0.2, base=0.01), 1),
            )
        except ValueError as error:
            raise Refused(
                "CONSENTRY_REDIS_URL is not a Redis address.",
                code="settings.redis_url",
                fix="write redis://HOST:PORT/0, or rediss:// for TLS",
            ) from error
        self._namespace = namespace
        self._new_bucket_count = max(1, members // partitions // _BUCKET_MEMBERS)
        self._bucket_counts: dict[int, int] = {}

    def _meta_key(self, partition: int) -> str:
        return f"{self._namespace}:{{{partition}}}:meta"

    def _bucket_key(self, partition: int, bucket: int) -> str:
        return f"{self._namespace}:{{{partition}}}:b:{bucket}"

    @_translate_errors
    def check(self) -> None:
        """See ConsentTable; also loads the table's function library into Redis."""
        info: dict[str, Any] = self._redis.info()
        numbers = str(info["redis_version"]).split(".")
        version = (int(numbers[0]), int(numbers[1]))
        if version < _SERVER_VERSION_MIN:
            raise _unsafe("version", info["redis_version"], "7.0 or newer: functions are needed")
        for setting, required in _SAFE_SETTINGS.items():
            try:
                value = self._redis.config_get(setting).get(setting)
            except ResponseError as error:
                raise _unsafe(
                    setting, "unreadable", f"{required}; allow this user CONFIG GET to prove it"
                ) from error
            if value != required:
                raise _unsafe(setting, value, required)
        self._load_library()

    def _load_library(self) -> None:
        library = files("consentry.table") / "function.lua"
        self._redis.function_load(library.read_text(), replace=True)

    @_translate_errors
    def claim(self, partition: int, *, min_epoch: int) -> PartitionClaim:
        """See ConsentTable."""
        arguments = [min_epoch, self._new_bucket_count]
        reply = self._call("claim", [self._meta_key(partition)], arguments)
        epoch, next_offset, generation, buckets, tainted = reply
        self._bucket_counts[partition] = int(buckets)
        return PartitionClaim(
            int(epoch), _number(next_offset), generation.decode() or None, tainted == b"1"
        )

    @_translate_errors
    def start_generation(
        self, partition: int, *, epoch: int, generation: str, next_offset: int, tainted: bool
    ) -> None:
        """See ConsentTable."""
        arguments = [epoch, generation, next_offset, int(tainted)]
        self._write("start_generation", partition, [], arguments, epoch)

    @_translate_errors
    def load(self, members: Mapping[int, Sequence[bytes]]) -> dict[int, list[bytes | None]]:
        """See ConsentTable."""
        # A partition without members needs no question.
        wanted = {partition: ids for partition, ids in members.items() if ids}
        contents = self._contents(wanted)
        loaded: dict[int, list[bytes | None]] = {}
        for partition in members:
            content = contents.get(partition)
            loaded[partition] = [] if content is None else content.records
        return loaded

    @_translate_errors
    def read(self, member: bytes, partitions: Sequence[int]) -> dict[int, Reading]:
        """See ConsentTable."""
        contents = self._contents({partition: [member] for partition in partitions})
        readings: dict[int, Reading] = {}
        for partition, content in contents.items():
            readings[partition] = Reading(content.meta, content.records[0])
        return readings

    def _contents(self, members: Mapping[int, Sequence[bytes]]) -> dict[int, _PartitionContent]:
        """Return the state and the members' records of each partition, in one round trip.

        Asks again for a partition that was laid out anew since its layout was learned.
        """
        contents: dict[int, _PartitionContent] = {}
        for _ in range(_LAYOUT_TRIES):
            missing = [partition for partition in members if partition not in contents]
            if not missing:
                return contents
            calls: list[_Call] = []
            orders: list[list[int]] = []
            for partition in missing:
                call, order = self._read_call(partition, members[partition])
                calls.append(call)
                orders.append(order)
            for partition, order, reply in zip(missing, orders, self._call_all(calls), strict=True):
                if reply[0] == b"LAYOUT":
                    self._bucket_counts[partition] = int(reply[1])
                    continue
                contents[partition] = _content(reply, order)
        if len(contents) < len(members):
            raise _laid_out_anew()
        return contents

    def _read_call(self, partition: int, members: Sequence[bytes]) -> tuple[_Call, list[int]]:
        """Return the call, and for each record that it will return the index of its member.

        The call asks bucket by bucket, so records come in another order than the members. With the
        members a, b, c in the buckets 7, 2, 7 it asks bucket 7 for a and c, then bucket 2 for b;
        the order is [0, 2, 1].
        """
        bucket_count = self._bucket_count(partition)
        indexes_by_bucket: dict[int, list[int]] = {}
        for index, member in enumerate(members):
            indexes_by_bucket.setdefault(crc32(member) % bucket_count, []).append(index)
        keys = [self._meta_key(partition)]
        arguments: list[Any] = [bucket_count]
        order: list[int] = []
        for bucket, indexes in indexes_by_bucket.items():
            keys.append(self._bucket_key(partition, bucket))
            arguments.append(len(indexes))
            arguments.extend([members[index] for index in indexes])
            order.extend(indexes)
        return _Call("read", keys, arguments), order

    @_translate_errors
    def store(self, writes: Sequence[Write]) -> list[Fenced | TableWentBack | None]:
        """See ConsentTable."""
        replies = self._call_all([self._store_call(write) for write in writes])
        refusals: list[Fenced | TableWentBack | None] = []
        for write, reply in zip(writes, replies, strict=True):
            refusal = self._refusal(reply, write.partition, write.epoch, write.next_offset)
            refusals.append(refusal)
        return refusals

    def _store_call(self, write: Write) -> _Call:
        bucket_count = self._bucket_count(write.partition)
        pairs_by_bucket: dict[int, list[bytes]] = {}
        for member, record in write.records.items():
            pairs_by_bucket.setdefault(crc32(member) % bucket_count, []).extend((member, record))
        keys = [self._meta_key(write.partition)]
        arguments: list[Any] = [
            write.epoch,
            _offset_argument(write.expected_offset),
            _offset_argument(write.next_offset),
            int(write.tainted),
        ]
        for bucket, pairs in pairs_by_bucket.items():
            keys.append(self._bucket_key(write.partition, bucket))
            arguments.append(len(pairs))
            arguments.extend(pairs)
        return _Call("store", keys, arguments)

    @_translate_errors
    def heartbeat(
        self, partition: int, *, epoch: int, expected_offset: int, frontier_at: Micros
    ) -> None:
        """See ConsentTable."""
        arguments = [epoch, expected_offset, frontier_at]
        self._write("heartbeat", partition, [], arguments, epoch)

    @_translate_errors
    def clear(self, partition: int, *, epoch: int) -> None:
        """See ConsentTable."""
        buckets = range(self._bucket_count(partition))
        bucket_keys = [self._bucket_key(partition, bucket) for bucket in buckets]
        self._write("clear", partition, bucket_keys, [epoch], epoch)

    @_translate_errors
    def meta(self, partition: int) -> Meta:
        """See ConsentTable."""
        fields = ("epoch", "next_offset", "generation", "frontier", "tainted")
        values: list[Any] = list(self._redis.hmget(self._meta_key(partition), *fields))
        return _meta(values)

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """See ConsentTable.

        Raises Unavailable, at its end too, where the table was laid out anew meanwhile.
        """
        self._bucket_counts.pop(partition, None)
        bucket_count = self._bucket_count(partition)
        for bucket in range(bucket_count):
            yield from self._bucket(partition, bucket).items()
        self._bucket_counts.pop(partition, None)
        if self._bucket_count(partition) != bucket_count:
            raise _laid_out_anew()

    @_translate_errors
    def _bucket(self, partition: int, bucket: int) -> dict[bytes, bytes]:
        records: Any = self._redis.hgetall(self._bucket_key(partition, bucket))
        return dict(records)

    def close(self) -> None:
        """Give the consent table's connections to Redis back."""
        self._redis.close()

    @_translate_errors
    def _bucket_count(self, partition: int) -> int:
        """Return the number of buckets as it was learned.

        Only a check on the server shows that it still holds.
        """
        if partition not in self._bucket_counts:
            stored = _number(self._redis.hget(self._meta_key(partition), "buckets"))
            if stored is None:
                return self._new_bucket_count
            self._bucket_counts[partition] = stored
        return self._bucket_counts[partition]

    def _call(self, name: str, keys: list[str], arguments: Sequence[Any]) -> list[Any]:
        [reply] = self._call_all([_Call(name, keys, arguments)])
        return reply

    def _call_all(self, calls: Sequence[_Call]) -> list[list[Any]]:
        """Call functions in one round trip, each atomic by itself."""
        try:
            return self._call_once(calls)
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
            # A server that came back empty has lost the library too.
            self._load_library()
            return self._call_once(calls)

    def _call_once(self, calls: Sequence[_Call]) -> list[list[Any]]:
        pipeline = self._redis.pipeline(transaction=False)
        for name, keys, arguments in calls:
            call = pipeline.fcall_ro if name == "read" else pipeline.fcall
            call(f"consentry_{name}_2", len(keys), *keys, *arguments)
        return list(pipeline.execute())

    def _write(
        self, name: str, partition: int, keys: list[str], arguments: Sequence[Any], epoch: int
    ) -> None:
        reply = self._call(name, [self._meta_key(partition), *keys], arguments)
        refusal = self._refusal(reply, partition, epoch, None)
        if refusal is not None:
            raise refusal

    def _refusal(
        self, reply: Sequence[Any], partition: int, epoch: int, next_offset: int | None
    ) -> Fenced | TableWentBack | None:
        """Return the refusal that a reply stands for; None where the write is in the table.

        `next_offset` is the one that was to be stored; None for writes that move no offset.
        """
        check = reply[0]
        if check == b"OK":
            return None
        held_epoch = _number(reply[1])
        held_offset = _number(reply[2])
        if check == b"OFFSET" and held_epoch == epoch:
            is_our_write = next_offset is not None and held_offset == next_offset
            if is_our_write:
                return None  # its first answer was lost, so the client repeated it
        self._bucket_counts.pop(partition, None)
        return refusal_of(
            check.decode(),
            partition,
            epoch=epoch,
            held_epoch=held_epoch,
            held_offset=held_offset,
        )


def _content(reply: Sequence[Any], order: Sequence[int]) -> _PartitionContent:
    """Return what a reply of `read` holds, with the records in the order of the members."""
    values = reply[2]
    records: list[bytes | None] = [None] * len(order)
    for index, value in zip(order, values, strict=True):
        records[index] = value or None
    return _PartitionContent(_meta(reply[1]), records)


def _offset_argument(offset: int | None) -> int | str:
    return "" if offset is None else offset


def _number(value: Any) -> int | None:
    return int(value) if value else None


def _meta(values: Sequence[Any]) -> Meta:
    """Return the state from the values of epoch, next_offset, generation, frontier and tainted.

    Values after these five are ignored.
    """
    epoch, next_offset, generation, frontier, tainted = values[:5]
    frontier_at = _number(frontier)
    return Meta(
        _number(epoch),
        _number(next_offset),
        generation.decode() if generation else None,
        None if frontier_at is None else Micros(frontier_at),
        tainted == b"1",
    )


def _laid_out_anew() -> Unavailable:
    return Unavailable(
        "The consent table was laid out anew while it was read.",
        code="table.layout",
        fix="ask again; the processor builds the table anew",
    )


def _unsafe(setting: str, value: object, required: str) -> UnsafeSetting:
    return UnsafeSetting(
        f"The consent table's server has {setting} = {value}; it must be {required}. "
        "Otherwise an opt-out could be evicted or forgotten.",
        code=f"table.unsafe.{setting}",
        fix=f"set `{setting} {required.split(';')[0]}` in the server's configuration "
        "(deploy/redis.conf has it)",
    )
