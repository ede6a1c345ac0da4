"""What enters the cache is exactly what is pinned, whatever the repository, the network or a killed
process does.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consentry.local.artifacts import Artifact, fetch, is_whole, load_lock
from consentry.local.errors import Cancelled, LocalStackError
from consentry.local.lock import KAFKA, LOCK_PATH, REGISTRY, render
from consentry.local.ports import free_ports

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator
    from typing import Protocol

    class MavenRepository(Protocol):
        address: str
        files: dict[str, bytes]
        truncations: Counter[str]
        requests: Counter[str]

        def publish(
            self, name: str, content: bytes, *, served: bytes | None = None
        ) -> Artifact: ...

        def path(self, artifact: Artifact) -> str: ...


@pytest.fixture
def broken_off() -> Iterator[None]:
    """For tests of downloads that break off: jgo leaves the broken answer, an open socket, to the
    collector.
    """
    yield
    gc.collect()


JGO_LEAVES_BROKEN_ANSWERS_OPEN = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


class TestLock:
    """The pinned list that ships with the package."""

    def test_the_lock_pins_the_broker_and_the_registry_that_the_roots_name(self) -> None:
        """A newcomer would run another Kafka than the one whose faults we test against."""
        lock = load_lock()
        assert (lock.kafka[0].group, lock.kafka[0].artifact, lock.kafka[0].version) == KAFKA
        assert (lock.registry.group, lock.registry.artifact, lock.registry.version) == REGISTRY

    def test_every_artifact_is_pinned_by_content_and_listed_once(self) -> None:
        """A file without a checksum would be a program from the network that nobody has vouched
        for.
        """
        everything = load_lock().everything
        assert all(
            re.fullmatch("[0-9a-f]{64}", each.sha256) and each.size_bytes > 0 for each in everything
        )
        assert len({each.coordinates for each in everything}) == len(everything)

    def test_the_lock_names_no_repository(self) -> None:
        """A company with a mirror of its own could not use a lock that names another host."""
        assert "//" not in LOCK_PATH.read_text("utf-8")

    def test_writing_the_lock_anew_changes_nothing_but_what_was_changed(self) -> None:
        """Whoever raises a version reads the difference; noise in it would hide a swapped
        checksum.
        """
        assert render(load_lock()) == LOCK_PATH.read_text("utf-8")

    def test_a_lock_of_another_format_is_refused(self) -> None:
        """An old package that guesses at a new format could start without verifying anything."""
        with pytest.raises(ValueError, match="format 99"):
            load_lock(json.dumps({"format": 99, "kafka": [], "registry": {}}))


class TestFetch:
    """Downloads from a repository on loopback."""

    def test_a_file_that_is_not_the_pinned_one_is_refused_and_the_next_try_cures_it(
        self, maven: MavenRepository, tmp_path: Path
    ) -> None:
        """A tampered mirror would otherwise run its program on the computer of everyone who tries
        Consentry.
        """
        artifact = maven.publish("broker", b"the broker", served=b"not the broker")
        with pytest.raises(LocalStackError) as refused:
            fetch([artifact], cache=tmp_path, repository=maven.address)
        assert refused.value.code == "local.artifact_mismatch"
        assert artifact.coordinates in str(refused.value)
        assert artifact.sha256 in str(refused.value)
        assert not artifact.path_in(tmp_path).exists()

        maven.publish("broker", b"the broker")
        assert (
            fetch([artifact], cache=tmp_path, repository=maven.address)[0].read_bytes()
            == b"the broker"
        )

    def test_a_damaged_file_in_the_cache_is_noticed_and_fetched_again(
        self, maven: MavenRepository, tmp_path: Path
    ) -> None:
        """After a full disk or a killed copy the stack would fail with a Java error that nobody
        understands.
        """
        artifact = maven.publish("broker", b"the broker")
        path = artifact.path_in(tmp_path)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"the brokeR")  # the same length
        lines: list[str] = []
        fetch([artifact], cache=tmp_path, repository=maven.address, report=lines.append)
        assert path.read_bytes() == b"the broker"
        assert any("damaged" in line and artifact.coordinates in line for line in lines)

    def test_a_full_cache_needs_no_network(self, maven: MavenRepository, tmp_path: Path) -> None:
        """Someone on a train has to be able to start the stack that worked yesterday."""
        artifact = maven.publish("broker", b"the broker")
        fetch([artifact], cache=tmp_path, repository=maven.address)
        requests_before = maven.requests.total()
        fetch([artifact], cache=tmp_path, repository=maven.address)
        assert maven.requests.total() == requests_before

    def test_an_unreachable_repository_is_one_paragraph_with_the_fix(self, tmp_path: Path) -> None:
        """A newcomer behind a firewall would see eighty lines of traceback and leave."""
        artifact = Artifact(
            group="org.example",
            artifact="broker",
            version="1.0",
            classifier="",
            packaging="jar",
            sha256="0" * 64,
            size_bytes=1,
        )
        (closed,) = free_ports(1)
        with pytest.raises(LocalStackError) as refused:
            fetch([artifact], cache=tmp_path, repository=f"http://127.0.0.1:{closed}")
        assert refused.value.code == "local.artifact_unreachable"
        assert "CONSENTRY_MAVEN_REPOSITORY" in refused.value.fix
        assert "\n" not in str(refused.value)

    def test_a_file_that_the_repository_does_not_have_is_said_to_be_missing(
        self, maven: MavenRepository, tmp_path: Path
    ) -> None:
        """Whoever set an incomplete mirror has to learn that it is the mirror, not the network."""
        artifact = maven.publish("broker", b"the broker")
        maven.files.clear()
        with pytest.raises(LocalStackError, match="does not have this file"):
            fetch([artifact], cache=tmp_path, repository=maven.address)

    @JGO_LEAVES_BROKEN_ANSWERS_OPEN
    @pytest.mark.usefixtures("broken_off")
    def test_a_download_that_breaks_off_is_tried_again(
        self, maven: MavenRepository, tmp_path: Path
    ) -> None:
        """On a bad line every first start would fail, of forty-seven files one always does."""
        artifact = maven.publish("broker", b"the broker" * 1000)
        maven.truncations[maven.path(artifact)] = 1
        (path,) = fetch([artifact], cache=tmp_path, repository=maven.address)
        assert is_whole(artifact, path)

    def test_what_a_killed_download_left_behind_is_removed(
        self, maven: MavenRepository, tmp_path: Path
    ) -> None:
        """Each Ctrl-C would leave up to two hundred megabytes on the disk."""
        (tmp_path / "incoming-of-the-dead").mkdir()
        (tmp_path / "incoming-of-the-dead" / "half.jar").write_bytes(b"ha")
        fetch([maven.publish("broker", b"the broker")], cache=tmp_path, repository=maven.address)
        assert not list(tmp_path.glob("incoming-*"))

    def test_a_cancelled_download_stops_and_leaves_nothing_half_done(
        self, maven: MavenRepository, tmp_path: Path
    ) -> None:
        """Ctrl-C during the first download has to work."""
        artifact = maven.publish("broker", b"the broker")
        cancelled = threading.Event()
        cancelled.set()
        with pytest.raises(Cancelled):
            fetch([artifact], cache=tmp_path, repository=maven.address, cancelled=cancelled)
        assert not artifact.path_in(tmp_path).exists()
        assert not list(tmp_path.glob("incoming-*"))

    @JGO_LEAVES_BROKEN_ANSWERS_OPEN
    @pytest.mark.usefixtures("broken_off")
    def test_progress_counts_every_byte_once(self, maven: MavenRepository, tmp_path: Path) -> None:
        """A bar that passes its end, or never reaches it, tells the waiting newcomer nothing."""
        artifacts = [
            maven.publish(f"part-{number}", bytes([number]) * 20_000) for number in range(6)
        ]
        maven.truncations[maven.path(artifacts[0])] = 1
        seen: list[tuple[int, int]] = []
        fetch(
            artifacts,
            cache=tmp_path,
            repository=maven.address,
            progress=lambda done, total, name: seen.append((done, total)),
        )
        assert seen[-1] == (120_000, 120_000)
        assert max(done for done, _ in seen) == 120_000

    def test_two_processes_that_fetch_at_once_download_each_file_once(
        self, maven: MavenRepository, tmp_path: Path
    ) -> None:
        """Two terminals, or two test runs, would overwrite each other's half-written files."""
        artifacts = [
            maven.publish(f"part-{number}", bytes([number]) * 200_000) for number in range(6)
        ]
        program = (
            "import json, pathlib, sys\n"
            "from consentry.local.artifacts import Artifact, fetch\n"
            "artifacts = [Artifact(**each) for each in json.loads(sys.argv[1])]\n"
            "fetch(artifacts, cache=pathlib.Path(sys.argv[2]), repository=sys.argv[3])\n"
        )
        arguments = [json.dumps([asdict(each) for each in artifacts]), str(tmp_path), maven.address]
        both = [subprocess.Popen([sys.executable, "-c", program, *arguments]) for _ in range(2)]
        assert [process.wait(60) for process in both] == [0, 0]
        assert all(is_whole(each, each.path_in(tmp_path)) for each in artifacts)
        assert [maven.requests[maven.path(each)] for each in artifacts] == [1] * len(artifacts)
