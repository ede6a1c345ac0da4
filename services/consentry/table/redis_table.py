"""The consent table in Redis or Valkey: one hash of meta and some buckets a partition, written by one function."""

from __future__ import annotations

import functools
from binascii import crc32
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, ParamSpec, TypeVar

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from consentry.domain.errors import Refused, Unavailable, UnsafeSetting
from consentry.domain.values import Micros
from consentry.table.protocol import Claim, Meta
from consentry.table.refusals import refuse

_BUCKET_MEMBERS: Final = 100
"""Members per bucket at the expected size: small enough to stay a listpack, large enough to share its overhead."""
_SERVER_FLOOR: Final = (7, 0)
_SOCKET_SECONDS: Final = 2.0

_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")


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
                fix="check CONSENTRY_REDIS_URL and that the server runs (`consentry local status` for the local one)",
            ) from error
        except RedisError as error:
            raise Unavailable(
                f"The consent table refused a command: {error}.",
                code="table.error",
                fix="check the server's log, memory and disk; the command is repeated",
            ) from error

    return translated


class RedisTable:
    """See ConsentTable. `members` is how many the whole table is laid out for, `partitions` how many share them."""

    def __init__(self, url: str, *, namespace: str, partitions: int, members: int) -> None:
        try:
            self._redis = redis.Redis.from_url(
                url,
                protocol=3,
                socket_timeout=_SOCKET_SECONDS,
                socket_connect_timeout=_SOCKET_SECONDS,
                # A repeated store is recognised by the offset check; more than one retry would only hide an outage.
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
                raise _unsafe(setting, "unreadable", f"{value}; allow this user CONFIG GET to prove it") from error
            if found != value:
                raise _unsafe(setting, found, value)
        self._load_library()

    def _load_library(self) -> None:
        self._redis.function_load((files("consentry.table") / "function.lua").read_text(), replace=True)

    @_translated
    def claim(self, partition: int, *, floor: int) -> Claim:
        """See ConsentTable."""
        reply = self._call("claim", [self._meta_key(partition)], [floor, self._buckets_wanted])
        epoch, next_offset, generation, buckets, tainted = reply
        self._buckets[partition] = int(buckets)
        return Claim(int(epoch), _number(next_offset), generation.decode() or None, tainted == b"1")

    @_translated
    def begin(self, partition: int, *, epoch: int, generation: str, next_offset: int, tainted: bool) -> None:
        """See ConsentTable."""
        self._write("begin", partition, [], [epoch, generation, next_offset, int(tainted)], epoch)

    @_translated
    def load(self, partition: int, members: Sequence[bytes]) -> list[bytes | None]:
        """See ConsentTable."""
        if not members:
            return []
        buckets = self._bucket_count(partition)
        places: dict[int, list[int]] = {}
        for place, member in enumerate(members):
            places.setdefault(crc32(member) % buckets, []).append(place)
        keys = [self._meta_key(partition), *(self._bucket_key(partition, bucket) for bucket in places)]
        arguments: list[bytes | int] = []
        for inside in places.values():
            arguments.append(len(inside))
            arguments.extend(members[place] for place in inside)
        reply = self._call("load", keys, arguments, read_only=True)
        found: list[bytes | None] = [None] * len(members)
        for place, value in zip((place for inside in places.values() for place in inside), reply, strict=True):
            found[place] = value or None
        return found

    @_translated
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
        buckets = self._bucket_count(partition)
        pairs: dict[int, list[bytes]] = {}
        for member, record in records.items():
            pairs.setdefault(crc32(member) % buckets, []).extend((member, record))
        arguments: list[Any] = [
            epoch,
            *("" if offset is None else offset for offset in (expected_offset, next_offset)),
            int(tainted),
        ]
        for inside in pairs.values():
            arguments.append(len(inside))
            arguments.extend(inside)
        keys = [self._bucket_key(partition, bucket) for bucket in pairs]
        self._write("store", partition, keys, arguments, epoch, next_offset)

    @_translated
    def beat(self, partition: int, *, epoch: int, expected_offset: int, frontier_at: Micros) -> None:
        """See ConsentTable."""
        self._write("beat", partition, [], [epoch, expected_offset, frontier_at], epoch)

    @_translated
    def empty(self, partition: int, *, epoch: int) -> None:
        """See ConsentTable."""
        keys = [self._bucket_key(partition, bucket) for bucket in range(self._bucket_count(partition))]
        self._write("empty", partition, keys, [epoch], epoch)

    @_translated
    def meta(self, partition: int) -> Meta:
        """See ConsentTable."""
        fields = ("epoch", "next_offset", "generation", "frontier", "tainted")
        found: list[Any] = list(self._redis.hmget(self._meta_key(partition), *fields))
        epoch, next_offset, generation, frontier, tainted = found
        frontier_at = _number(frontier)
        return Meta(
            _number(epoch),
            _number(next_offset),
            generation.decode() if generation else None,
            None if frontier_at is None else Micros(frontier_at),
            tainted == b"1",
        )

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """See ConsentTable."""
        for bucket in range(self._bucket_count(partition)):
            yield from self._bucket(partition, bucket).items()

    @_translated
    def _bucket(self, partition: int, bucket: int) -> dict[bytes, bytes]:
        found: Any = self._redis.hgetall(self._bucket_key(partition, bucket))
        return dict(found)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    @_translated
    def _bucket_count(self, partition: int) -> int:
        if partition not in self._buckets:
            stored = _number(self._redis.hget(self._meta_key(partition), "buckets"))
            if stored is None:
                return self._buckets_wanted
            self._buckets[partition] = stored
        return self._buckets[partition]

    def _call(self, name: str, keys: list[str], arguments: Sequence[Any], *, read_only: bool = False) -> list[Any]:
        call = self._redis.fcall_ro if read_only else self._redis.fcall
        try:
            return list(call(f"consentry_{name}_1", len(keys), *keys, *arguments))
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
            # A server that came back empty has lost the library too.
            self._load_library()
            return list(call(f"consentry_{name}_1", len(keys), *keys, *arguments))

    def _write(
        self,
        name: str,
        partition: int,
        keys: list[str],
        arguments: Sequence[Any],
        epoch: int,
        next_offset: int | None = None,
    ) -> None:
        reply = self._call(name, [self._meta_key(partition), *keys], arguments)
        if reply[0] == b"OK":
            return
        held_epoch, held_offset = _number(reply[1]), _number(reply[2])
        if reply[0] == b"OFFSET" and held_epoch == epoch and next_offset is not None and held_offset == next_offset:
            return  # our own write, whose answer was lost before the client repeated it
        self._buckets.pop(partition, None)
        raise refuse(reply[0].decode(), partition, epoch=epoch, held_epoch=held_epoch, held_offset=held_offset)


def _number(value: Any) -> int | None:
    return int(value) if value else None


def _unsafe(setting: str, found: object, wanted: str) -> UnsafeSetting:
    return UnsafeSetting(
        f"The consent table's server has {setting} = {found}; it must be {wanted}. "
        "Otherwise an opt-out could be evicted or forgotten.",
        code=f"table.unsafe.{setting}",
        fix=f"set `{setting} {wanted.split(';')[0]}` in the server's configuration (deploy/redis.conf has it)",
    )
