"""The consent table on a real server: the contract, and what only a real server can get wrong."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socket import create_connection, socket

import pytest
import redis
from tests.contract.table_contract import MIN_EPOCH, ONE, ConsentTableContract, owned
from tests.sizes import PATIENCE
from tests.strategies import folded, moved
from tests.table import load_partition, store_partition

from consentry.domain.errors import Fenced, Refused, TableWentBack, Unavailable, UnsafeSetting
from consentry.domain.values import Micros
from consentry.local.ports import LOOPBACK, Listener, find_listener, free_ports
from consentry.local.services import find_redis
from consentry.table.redis_table import RedisTable
from consentry.wire.frames import frame
from consentry.wire.records import write_record

pytestmark = pytest.mark.stack

CONF = Path(__file__).parents[2] / "deploy" / "redis.conf"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A server of our own with the settings of deploy/redis.conf, proven to be our child, ended by
    its id.
    """
    [port] = free_ports(1)
    command = [str(find_redis()), str(CONF), "--port", str(port), "--bind", LOOPBACK]
    folder = tmp_path_factory.mktemp("redis")
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE * 20
        while find_listener(port, child_pid=child.pid) is not Listener.OURS:
            assert child.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.05)
        client = redis.Redis(host=LOOPBACK, port=port)
        yield client
        client.close()
    finally:
        child.terminate()
        child.wait(timeout=20)


def url_of(server: redis.Redis) -> str:
    """The address of the server."""
    return f"redis://{LOOPBACK}:{server.connection_pool.connection_kwargs['port']}/0"


@pytest.fixture
def table(server: redis.Redis) -> Iterator[RedisTable]:
    """A table on an empty server that has its sound settings and our functions."""
    server.flushall()
    server.config_set("maxmemory-policy", "noeviction")
    server.config_set("aof-load-truncated", "no")
    table = RedisTable(url_of(server), namespace="consentry", partitions=8, members=8000)
    table.check()
    yield table
    table.close()


class TestRedisTable(ConsentTableContract):
    """The same suite as the in-memory form."""


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "value"), [("maxmemory-policy", "allkeys-lru"), ("aof-load-truncated", "yes")]
    )
    def test_a_server_that_could_forget_is_refused_by_the_name_of_its_setting(
        self, server: redis.Redis, table: RedisTable, setting: str, value: str
    ) -> None:
        """An evicted or torn-off opt-out is a forgotten one."""
        server.config_set(setting, value)

        with pytest.raises(UnsafeSetting, match=f"{setting} = {value}") as caught:
            table.check()

        assert caught.value.code == f"table.unsafe.{setting}"
        assert caught.value.fix

    def test_an_address_that_is_none_is_refused_without_being_repeated(self) -> None:
        """It may hold a password."""
        with pytest.raises(Refused) as caught:
            RedisTable("http://:secret@nowhere", namespace="consentry", partitions=8, members=8000)

        assert "secret" not in str(caught.value)

    def test_a_server_that_is_not_there_is_unavailable(self) -> None:
        """The worker waits and asks again; nothing is known to be lost."""
        [port] = free_ports(1)
        table = RedisTable(
            f"redis://{LOOPBACK}:{port}/0", namespace="consentry", partitions=8, members=8000
        )

        with pytest.raises(Unavailable):
            load_partition(table, 3, [ONE])


class TestLoss:
    def test_a_wiped_server_has_gone_back(self, server: redis.Redis, table: RedisTable) -> None:
        """An empty table answers nothing about anybody; going on would store over the loss."""
        epoch = owned(table)
        server.flushall()

        with pytest.raises(TableWentBack):
            store_partition(table, 3, {ONE: b"1"}, epoch=epoch, expected_offset=10, next_offset=11)
        with pytest.raises(TableWentBack):
            table.heartbeat(3, epoch=epoch, expected_offset=10, frontier_at=Micros(0))

    def test_a_server_that_lost_our_functions_gets_them_again(
        self, server: redis.Redis, table: RedisTable
    ) -> None:
        """A server that came back empty must not need an operator."""
        owned(table)

        server.function_flush()

        assert load_partition(table, 3, [ONE]) == [None]
        server.function_flush()
        assert table.claim(3, min_epoch=MIN_EPOCH).next_offset == 10

    def test_an_old_epoch_is_fenced_also_after_a_wipe_and_a_new_owner(
        self, server: redis.Redis, table: RedisTable
    ) -> None:
        """The server forgot all epochs; `min_epoch` keeps the new one above the old."""
        old = owned(table)
        server.flushall()
        table.claim(3, min_epoch=old + 1000)

        with pytest.raises(Fenced):
            store_partition(table, 3, {ONE: b"old"}, epoch=old, expected_offset=10, next_offset=11)

    def test_a_write_whose_answer_was_lost_is_recognised_when_it_is_repeated(
        self, server: redis.Redis, table: RedisTable
    ) -> None:
        """Taken for another's, it would cost a rebuild each time a connection breaks."""
        epoch = owned(table)
        with CuttingProxy(server.connection_pool.connection_kwargs["port"]) as proxy:
            behind = RedisTable(
                f"redis://{LOOPBACK}:{proxy.port}/0",
                namespace="consentry",
                partitions=8,
                members=8000,
            )
            load_partition(behind, 3, [ONE])  # learns the layout while answers still come
            proxy.lose_answers(1)

            store_partition(behind, 3, {ONE: b"1"}, epoch=epoch, expected_offset=10, next_offset=11)

            assert proxy.lost == 1
            behind.close()
        assert load_partition(table, 3, [ONE]) == [b"1"]
        assert table.meta(3).next_offset == 11


class TestSize:
    def test_buckets_stay_compact_with_records_of_usual_size(
        self, server: redis.Redis, table: RedisTable
    ) -> None:
        """A hash that turns into a table costs twice the memory, and a hundred million members do
        not fit any more.
        """
        epoch = owned(table)
        members = [b"urn:li:member:%d" % number for number in range(1000)]
        record = folded(moved("US", 1, on=1), moved("HK", 2, on=2))
        assert record is not None
        raw = write_record(record, frame(1))

        store_partition(
            table, 3, dict.fromkeys(members, raw), epoch=epoch, expected_offset=10, next_offset=11
        )

        assert {server.object("ENCODING", key) for key in server.keys("*{3}:b:*")} == {b"listpack"}

    def test_buckets_stay_compact_when_a_record_is_full(
        self, server: redis.Redis, table: RedisTable
    ) -> None:
        """One member who changes their mind often must not double the memory of a hundred
        others.
        """
        epoch = owned(table)
        record = folded(*(moved("US-CA", number, on=number) for number in range(1, 65)))
        assert record is not None

        store_partition(
            table,
            3,
            {ONE: write_record(record, frame(1))},
            epoch=epoch,
            expected_offset=10,
            next_offset=11,
        )

        assert {server.object("ENCODING", key) for key in server.keys("*{3}:b:*")} == {b"listpack"}

    def test_the_layout_of_a_partition_stays_when_another_worker_expects_more_members(
        self, server: redis.Redis, table: RedisTable
    ) -> None:
        """A worker with another setting would look for members in the wrong buckets and take them
        for unknown.
        """
        epoch = owned(table)
        store_partition(
            table,
            3,
            {b"m%d" % n: b"1" for n in range(300)},
            epoch=epoch,
            expected_offset=10,
            next_offset=11,
        )

        larger = RedisTable(url_of(server), namespace="consentry", partitions=8, members=1_000_000)

        assert load_partition(larger, 3, [b"m7"]) == [b"1"]
        assert len(dict(larger.scan(3))) == 300
        larger.claim(3, min_epoch=MIN_EPOCH)
        assert load_partition(larger, 3, [b"m7"]) == [b"1"]
        larger.close()

    def test_a_reader_learns_that_the_table_was_laid_out_anew(
        self, server: redis.Redis, table: RedisTable
    ) -> None:
        """A gateway that runs on would look in the old buckets, and find nothing of anybody's
        opt-out or erasure.
        """
        members = {b"m%d" % number: b"1" for number in range(300)}
        assert table.claim(3, min_epoch=MIN_EPOCH) is not None
        assert load_partition(table, 3, list(members)) == [None] * 300
        server.flushall()
        larger = RedisTable(url_of(server), namespace="consentry", partitions=8, members=1_000_000)
        epoch = larger.claim(3, min_epoch=MIN_EPOCH + 100).epoch
        larger.start_generation(3, epoch=epoch, generation="life-2", next_offset=10, tainted=False)
        store_partition(larger, 3, members, epoch=epoch, expected_offset=10, next_offset=11)
        unaware = [
            RedisTable(url_of(server), namespace="consentry", partitions=8, members=8000)
            for _ in range(3)
        ]
        for reader in unaware:
            reader._bucket_counts.update(table._bucket_counts)
        reading, loading, scanning = unaware

        assert {reading.read(member, [3])[3].record for member in members} == {b"1"}
        assert reading.read(b"m7", [3])[3].meta.generation == "life-2"
        assert load_partition(loading, 3, list(members)) == list(members.values())
        assert dict(scanning.scan(3)) == members
        for reader in (larger, *unaware):
            reader.close()

    def test_a_reading_is_one_step_of_the_server(
        self, server: redis.Redis, table: RedisTable
    ) -> None:
        """Between two steps the table may be emptied: whole by the first, and without the record by
        the second.
        """
        owned(table)
        table.read(ONE, [3])
        server.config_resetstat()

        table.read(ONE, [3])

        used = {name: held["calls"] for name, held in server.info("commandstats").items()}
        assert used.pop("cmdstat_fcall_ro") == 1
        assert used.pop("cmdstat_hmget") == 2, "meta and bucket, inside the one function"
        assert used.keys() <= {"cmdstat_config|resetstat", "cmdstat_info"}


class CuttingProxy:
    """Passes bytes to the server, and can drop the connection where the server's next answer would
    come back.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket()
        self._listener.bind((LOOPBACK, 0))
        self._listener.listen()
        self._listener.settimeout(0.1)
        self.port = int(self._listener.getsockname()[1])
        self.lost = 0
        self._to_lose = 0
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    def lose_answers(self, count: int) -> None:
        """Lose so many of the answers to come."""
        self._to_lose = count

    def __enter__(self) -> CuttingProxy:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=5)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._pass_on, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, client: socket) -> None:
        with client, create_connection((LOOPBACK, self._port)) as server:
            client.settimeout(0.1)
            while not self._stopping.is_set():
                try:
                    request = client.recv(1 << 20)
                except TimeoutError:
                    continue
                if not request:
                    return
                server.sendall(request)
                answer = server.recv(1 << 20)
                if self._to_lose and b"consentry_store" in request:
                    self._to_lose -= 1
                    self.lost += 1
                    return
                client.sendall(answer)
