"""The consent table in Redis or Valkey: one hash of meta and some buckets a partition, written by
one function.
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
from consentry.table.refusals import refuse

_BUCKET_MEMBERS: Final = 100
"""Members per bucket at the expected size: small enough to stay a listpack, large enough to share
its overhead.
"""
_SERVER_FLOOR: Final = (7, 0)
_SOCKET_SECONDS: Final = 2.0
_LAYOUT_TRIES: Final = 3

_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")


class _Call(NamedTuple):
    """One call of a function of ours: its short name, keys and arguments."""

    name: str
    keys: list[str]
    arguments: Sequence[Any]


class _Found(NamedTuple):
    """What one partition holds, as of one moment: its meta, and a record or None per member asked
    for.
    """

    meta: Meta
    records: list[bytes | None]


def _translated(call: Callable[_Parameters, _Returned]) -> Callable[_Parameters, _Returned]:
    """Turn the client's errors into ours, in one place."""

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
    """See ConsentTable.

    `members` is how many the whole table is laid out for, `partitions` how many share them.
    """

    def __init__(self, url: str, *, namespace: str, partitions: int, members: int) -> None:
        try:
            self._redis = redis.Redis.from_url(
                url,
                protocol=3,
                socket_timeout=_SOCKET_SECONDS,
                socket_connect_timeout=_SOCKET_SECONDS,
                # A repeated store is recognised by the offset check; more than one retry would only
                # hide an outage.
                retry=Retry(ExponentialBackoff(cap=0.2, base=0.01), 1),
            )
        except ValueError as error:
            raise Refused(
                "CONSENTRY_REDIS_URL is not a Redis address.",
                code="settings.redis_url",
                fix="write redis://HOST:PORT/0, or rediss:// for TLS",
            ) from error
        self._namespace = namespace
        self._buckets_wanted = max(1, members // partitions // _BUCKET_MEMBERS)
        self._buckets: dict[int, int] = {}

    def _meta_key(self, partition: int) -> str:
        return f"{self._namespace}:{{{partition}}}:meta"

    def _bucket_key(self, partition: int, bucket: int) -> str:
        return f"{self._namespace}:{{{partition}}}:b:{bucket}"

    @_translated
    def check(self) -> None:
        """See ConsentTable; also loads the function library."""
        info: dict[str, Any] = self._redis.info()
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
        if version < _SERVER_FLOOR:
            raise _unsafe("version", info["redis_version"], "7.0 or newer: functions are needed")
        wanted = {"maxmemory-policy": "noeviction", "aof-load-truncated": "no"}
        for setting, value in wanted.items():
            try:
                found = self._redis.config_get(setting).get(setting)
            except ResponseError as error:
                raise _unsafe(
                    setting, "unreadable", f"{value}; allow this user CONFIG GET to prove it"
                ) from error
            if found != value:
                raise _unsafe(setting, found, value)
        self._load_library()

    def _load_library(self) -> None:
        self._redis.function_load(
            (files("consentry.table") / "function.lua").read_text(), replace=True
        )

    @_translated
    def claim(self, partition: int, *, floor: int) -> PartitionClaim:
        """See ConsentTable."""
        reply = self._call("claim", [self._meta_key(partition)], [floor, self._buckets_wanted])
        epoch, next_offset, generation, buckets, tainted = reply
        self._buckets[partition] = int(buckets)
        return PartitionClaim(
            int(epoch), _number(next_offset), generation.decode() or None, tainted == b"1"
        )

    @_translated
    def begin(
        self, partition: int, *, epoch: int, generation: str, next_offset: int, tainted: bool
    ) -> None:
        """See ConsentTable."""
        self._write("begin", partition, [], [epoch, generation, next_offset, int(tainted)], epoch)

    def load(self, partition: int, members: Sequence[bytes]) -> list[bytes | None]:
        """See ConsentTable."""
        return self.load_all({partition: members})[partition]

    @_translated
    def load_all(self, wanted: Mapping[int, Sequence[bytes]]) -> dict[int, list[bytes | None]]:
        """See ConsentTable."""
        found = self._found(
            {partition: members for partition, members in wanted.items() if members}
        )
        return {
            partition: found[partition].records if partition in found else []
            for partition in wanted
        }

    @_translated
    def read(self, member: bytes, partitions: Sequence[int]) -> dict[int, Reading]:
        """See ConsentTable."""
        found = self._found({partition: [member] for partition in partitions})
        return {
            partition: Reading(meta, records[0]) for partition, (meta, records) in found.items()
        }

    def _found(self, wanted: Mapping[int, Sequence[bytes]]) -> dict[int, _Found]:
        """What the partitions hold.

        One that was laid out anew since its layout was learned is asked again.
        """
        found: dict[int, _Found] = {}
        for _ in range(_LAYOUT_TRIES):
            asked = {
                p: self._read_call(p, members) for p, members in wanted.items() if p not in found
            }
            if not asked:
                return found
            replies = self._call_all([call for call, _ in asked.values()])
            for (partition, (_, order)), reply in zip(asked.items(), replies, strict=True):
                if reply[0] == b"LAYOUT":
                    self._buckets[partition] = int(reply[1])
                    continue
                records: list[bytes | None] = [None] * len(order)
                for place, value in zip(order, reply[2], strict=True):
                    records[place] = value or None
                found[partition] = _Found(_meta(reply[1]), records)
        if len(found) < len(wanted):
            raise _laid_out_anew()
        return found

    def _read_call(self, partition: int, members: Sequence[bytes]) -> tuple[_Call, list[int]]:
        """The call, and the place among the members of each record that it returns."""
        buckets = self._bucket_count(partition)
        places: dict[int, list[int]] = {}
        for place, member in enumerate(members):
            places.setdefault(crc32(member) % buckets, []).append(place)
        arguments: list[Any] = [buckets]
        for inside in places.values():
            arguments.append(len(inside))
            arguments.extend(members[place] for place in inside)
        keys = [
            self._meta_key(partition),
            *(self._bucket_key(partition, bucket) for bucket in places),
        ]
        return _Call("read", keys, arguments), [
            place for inside in places.values() for place in inside
        ]

    def store(
        self,
        partition: int,
        records: Mapping[bytes, bytes],
        *,
        epoch: int,
        expected_offset: int | None,
        next_offset: int | None,
        tainted: bool = False,
    ) -> None:
        """See ConsentTable."""
        [refusal] = self.store_all(
            [Write(partition, records, epoch, expected_offset, next_offset, tainted)]
        )
        if refusal is not None:
            raise refusal

    @_translated
    def store_all(self, writes: Sequence[Write]) -> list[Fenced | TableWentBack | None]:
        """See ConsentTable."""
        replies = self._call_all([self._store_call(write) for write in writes])
        return [
            self._refusal(reply, write.partition, write.epoch, write.next_offset)
            for write, reply in zip(writes, replies, strict=True)
        ]

    def _store_call(self, write: Write) -> _Call:
        buckets = self._bucket_count(write.partition)
        pairs: dict[int, list[bytes]] = {}
        for member, record in write.records.items():
            pairs.setdefault(crc32(member) % buckets, []).extend((member, record))
        offsets = (
            "" if offset is None else offset
            for offset in (write.expected_offset, write.next_offset)
        )
        arguments: list[Any] = [write.epoch, *offsets, int(write.tainted)]
        for inside in pairs.values():
            arguments.append(len(inside))
            arguments.extend(inside)
        keys = [
            self._meta_key(write.partition),
            *(self._bucket_key(write.partition, bucket) for bucket in pairs),
        ]
        return _Call("store", keys, arguments)

    @_translated
    def beat(
        self, partition: int, *, epoch: int, expected_offset: int, frontier_at: Micros
    ) -> None:
        """See ConsentTable."""
        self._write("beat", partition, [], [epoch, expected_offset, frontier_at], epoch)

    @_translated
    def empty(self, partition: int, *, epoch: int) -> None:
        """See ConsentTable."""
        keys = [
            self._bucket_key(partition, bucket) for bucket in range(self._bucket_count(partition))
        ]
        self._write("empty", partition, keys, [epoch], epoch)

    @_translated
    def meta(self, partition: int) -> Meta:
        """See ConsentTable."""
        fields = ("epoch", "next_offset", "generation", "frontier", "tainted")
        found: list[Any] = list(self._redis.hmget(self._meta_key(partition), *fields))
        return _meta(found)

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """See ConsentTable.

        Raises Unavailable, at its end too, where the table was laid out anew meanwhile.
        """
        self._buckets.pop(partition, None)
        buckets = self._bucket_count(partition)
        for bucket in range(buckets):
            yield from self._bucket(partition, bucket).items()
        self._buckets.pop(partition, None)
        if self._bucket_count(partition) != buckets:
            raise _laid_out_anew()

    @_translated
    def _bucket(self, partition: int, bucket: int) -> dict[bytes, bytes]:
        found: Any = self._redis.hgetall(self._bucket_key(partition, bucket))
        return dict(found)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    @_translated
    def _bucket_count(self, partition: int) -> int:
        """The layout as it was learned; only a check on the server shows that it still holds."""
        if partition not in self._buckets:
            stored = _number(self._redis.hget(self._meta_key(partition), "buckets"))
            if stored is None:
                return self._buckets_wanted
            self._buckets[partition] = stored
        return self._buckets[partition]

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
            call(f"consentry_{name}_1", len(keys), *keys, *arguments)
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
        if reply[0] == b"OK":
            return None
        held_epoch, held_offset = _number(reply[1]), _number(reply[2])
        if (
            reply[0] == b"OFFSET"
            and held_epoch == epoch
            and next_offset is not None
            and held_offset == next_offset
        ):
            return None  # our own write, whose answer was lost before it was repeated
        self._buckets.pop(partition, None)
        return refuse(
            reply[0].decode(),
            partition,
            epoch=epoch,
            held_epoch=held_epoch,
            held_offset=held_offset,
        )


def _number(value: Any) -> int | None:
    return int(value) if value else None


def _meta(values: Sequence[Any]) -> Meta:
    """Meta of the values of epoch, next_offset, generation, frontier and tainted; more are
    ignored.
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


def _unsafe(setting: str, found: object, wanted: str) -> UnsafeSetting:
    return UnsafeSetting(
        f"The consent table's server has {setting} = {found}; it must be {wanted}. "
        "Otherwise an opt-out could be evicted or forgotten.",
        code=f"table.unsafe.{setting}",
        fix=f"set `{setting} {wanted.split(';')[0]}` in the server's configuration "
        "(deploy/redis.conf has it)",
    )
