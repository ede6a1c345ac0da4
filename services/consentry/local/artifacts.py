"""The Java programs of the local stack, downloaded from a Maven repository.

They are pinned in `artifacts.lock.json`, fetched once and verified by checksum. A file enters the
cache only by an atomic rename after its sha256 was verified. So a killed download, or two processes
that download at the same time, can never leave a file that looks whole and is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jgo.maven import MavenContext, PythonResolver

from consentry.local.errors import Cancelled, LocalStackError
from consentry.local.exclusive import exclusive_file

DOWNLOADS_AT_ONCE = 4
DOWNLOAD_ATTEMPTS_MAX = 3
SILENCE_SECONDS_MAX = 10  # a repository that sends nothing for this long has not answered
CACHE_WAIT_SECONDS_MAX = 900.0  # another process may be fetching everything over a slow line
LOCK_FORMAT = 1

Report = Callable[[str], None]
Progress = Callable[[int, int, str], None]
"""Called with the bytes fetched, the bytes to fetch in all, and the name of the current file.

Several threads call it, one at a time.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file of a Maven repository that the local stack needs, pinned by its content.

    `size_bytes` is its exact length.
    """

    group: str
    artifact: str
    version: str
    classifier: str
    packaging: str
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        """The name that Maven gives this file of the local stack."""
        classifier = f"-{self.classifier}" if self.classifier else ""
        return f"{self.artifact}-{self.version}{classifier}.{self.packaging}"

    @property
    def coordinates(self) -> str:
        """The Maven file's name in messages: `group:artifact:version[:classifier]`."""
        parts = [self.group, self.artifact, self.version]
        if self.classifier:
            parts.append(self.classifier)
        return ":".join(parts)

    def path_in(self, cache: Path) -> Path:
        """Return the path of the verified Maven file in the download cache."""
        return cache.joinpath(
            "artifacts", *self.group.split("."), self.artifact, self.version, self.file_name
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactLock:
    """The pinned Maven files of the local stack: the broker's, in order, and the registry's.

    The broker's are its class path; the registry's is an archive.
    """

    kafka: tuple[Artifact, ...]
    registry: Artifact

    @property
    def everything(self) -> tuple[Artifact, ...]:
        """All Maven files that the local stack needs."""
        return (*self.kafka, self.registry)


def load_lock(text: str | None = None) -> ArtifactLock:
    """Return the local stack's pinned Maven files, from the package or from `text`.

    Raises ValueError where the format is another.
    """
    if text is None:
        file = resources.files("consentry.local").joinpath("artifacts.lock.json")
        text = file.read_text("utf-8")
    document = json.loads(text)
    if document["format"] != LOCK_FORMAT:
        raise ValueError(
            f"artifacts.lock.json has format {document['format']}, this version reads {LOCK_FORMAT}"
        )
    return ArtifactLock(
        kafka=tuple(Artifact(**entry) for entry in document["kafka"]),
        registry=Artifact(**document["registry"]),
    )


def sha256_of(path: Path) -> str:
    """Return the sha256 of a downloaded file of the local stack, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole(artifact: Artifact, path: Path) -> bool:
    """Return True if a downloaded file is exactly the pinned one of the local stack.

    False without a file at `path`.
    """
    try:
        return path.stat().st_size == artifact.size_bytes and sha256_of(path) == artifact.sha256
    except FileNotFoundError:
        return False


def fetch(
    artifacts: Sequence[Artifact],
    *,
    cache: Path,
    repository: str | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
    cancelled: threading.Event | None = None,
) -> tuple[Path, ...]:
    """Return the path of each Maven file in `cache`; download what is missing or damaged.

    With a whole cache this makes no network request and takes no lock. `repository` is the address
    of a Maven repository to ask instead of the default one. Raises LocalStackError when a file
    cannot be had or is not the pinned one, and Cancelled soon after `cancelled` is set.
    """
    paths = tuple(artifact.path_in(cache) for artifact in artifacts)
    if not _missing(artifacts, cache):
        return paths
    report = report or (lambda line: None)
    cancelled = cancelled or threading.Event()
    with _cache_lock(cache, report, cancelled):
        # Another process may have fetched them while this one waited.
        missing = _missing(artifacts, cache)
        for artifact in missing:
            path = artifact.path_in(cache)
            if path.exists():
                report(f"{artifact.coordinates} in the cache is damaged: removed, fetched again")
                path.unlink()
        if missing:
            meter = _Meter(missing, progress, cancelled)
            _download_all(missing, cache, repository, meter)
    return paths


def _missing(artifacts: Sequence[Artifact], cache: Path) -> list[Artifact]:
    """Return the artifacts that are not in the cache, or are damaged there."""
    return [artifact for artifact in artifacts if not is_whole(artifact, artifact.path_in(cache))]


def unpack(
    archive: Artifact,
    *,
    cache: Path,
    report: Report | None = None,
    cancelled: threading.Event | None = None,
) -> Path:
    """Unpack a downloaded archive of the local stack, if it is not yet; return its directory.

    Raises LocalStackError if another process does not release the cache, and Cancelled.
    """
    target = cache / "unpacked" / f"{archive.artifact}-{archive.version}-{archive.sha256[:12]}"
    if target.is_dir():
        return target
    with _cache_lock(cache, report or (lambda line: None), cancelled or threading.Event()):
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _incoming(cache) as incoming, tarfile.open(archive.path_in(cache)) as tar:
                tar.extractall(incoming / "unpacked", filter="data")
                (incoming / "unpacked").rename(target)
    return target


@contextmanager
def _cache_lock(cache: Path, report: Report, cancelled: threading.Event) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with exclusive_file(
        cache / "lock",
        wait_seconds_max=CACHE_WAIT_SECONDS_MAX,
        on_wait=lambda: report(f"another process is filling {cache}: waiting for it"),
        cancelled=cancelled,
    ) as is_held:
        if not is_held and cancelled.is_set():
            raise Cancelled
        if not is_held:
            raise LocalStackError(
                f"Another process has been filling the cache {cache} for "
                f"{CACHE_WAIT_SECONDS_MAX:.0f} s.",
                code="local.cache_busy",
                fix="end that process, or choose another cache with --cache-dir (lock file: "
                f"{cache / 'lock'})",
            )
        # We hold the lock, so nobody is writing these: the process that made them was killed.
        for leftover in cache.glob("incoming-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


@contextmanager
def _incoming(cache: Path) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="incoming-", dir=cache))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Meter:
    """Counts the bytes of several downloads as one, and stops them all once the caller cancels."""

    def __init__(
        self, artifacts: Sequence[Artifact], progress: Progress | None, cancelled: threading.Event
    ) -> None:
        self._total = sum(artifact.size_bytes for artifact in artifacts)
        self._progress = progress
        self._cancelled = cancelled
        self._lock = threading.Lock()
        self._done = 0

    def check(self) -> None:
        """Raise Cancelled if the caller has asked to stop."""
        if self._cancelled.is_set():
            raise Cancelled

    def add(self, count: int, file_name: str) -> None:
        """Count bytes, negative ones when an attempt is thrown away."""
        self.check()
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total, file_name)

    @contextmanager
    def watch(self, file_name: str, size: int) -> Iterator[Callable[[int], None]]:
        """Count one attempt, with the signature that jgo calls; `size` is the announced size."""
        counted = 0

        def update(count: int) -> None:
            nonlocal counted
            counted += count
            self.add(count, file_name)

        try:
            yield update
        except BaseException:
            with self._lock:
                self._done -= counted
            raise


def _download_all(
    missing: Sequence[Artifact], cache: Path, repository: str | None, meter: _Meter
) -> None:
    with _incoming(cache) as incoming, ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        tasks: list[Future[None]] = []
        for artifact in missing:
            tasks.append(pool.submit(_download, artifact, cache, incoming, repository, meter))
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _download(
    artifact: Artifact, cache: Path, incoming: Path, repository: str | None, meter: _Meter
) -> None:
    for attempt in range(1, DOWNLOAD_ATTEMPTS_MAX + 1):
        meter.check()
        # A directory of its own for each attempt: jgo refuses to overwrite a partial file that it
        # left behind.
        attempt_directory = incoming / f"{artifact.sha256[:16]}-{attempt}"
        try:
            download = _resolve(artifact, attempt_directory, repository, meter)
        except (OSError, RuntimeError) as error:  # every error of the HTTP client is an OSError
            if attempt == DOWNLOAD_ATTEMPTS_MAX or not isinstance(error, OSError):
                raise _unreachable(artifact, error, repository) from error
            continue
        if not is_whole(artifact, download):
            raise _mismatch(artifact, download, repository)
        target = artifact.path_in(cache)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(download, target)
        return


def _resolve(artifact: Artifact, directory: Path, repository: str | None, meter: _Meter) -> Path:
    repositories = None
    if repository is not None:
        repositories = {"repository": repository.rstrip("/")}
    context = MavenContext(
        resolver=PythonResolver(progress_callback=meter.watch),
        repo_cache=directory,
        remote_repos=repositories,
        timeout=SILENCE_SECONDS_MAX,
    )
    component = context.project(artifact.group, artifact.artifact).at_version(artifact.version)
    return Path(component.artifact(artifact.classifier, artifact.packaging).resolve())


def _unreachable(artifact: Artifact, error: Exception, repository: str | None) -> LocalStackError:
    source = f"the repository {repository}" if repository else "the default Maven repository"
    if isinstance(error, OSError):
        first = _first_cause(error)
        reason = f"could not be reached, or the file not written ({type(first).__name__}: {first})"
    else:
        reason = "answered that it does not have this file"
    return LocalStackError(
        f"{artifact.coordinates} ({artifact.size_bytes / 1e6:.1f} MB) is not in the cache and "
        f"could not be fetched: {source} {reason}.",
        code="local.artifact_unreachable",
        fix="check the network and run the command again, files that have arrived are kept; behind "
        "a mirror, set --maven-repository (CONSENTRY_MAVEN_REPOSITORY) to its address; without a "
        "network, copy the cache directory of a machine that has it and set --cache-dir "
        "(CONSENTRY_CACHE_DIR)",
    )


def _first_cause(error: BaseException) -> BaseException:
    """Return the first cause of an error: the HTTP client wraps a refused connection thrice."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def _mismatch(artifact: Artifact, download: Path, repository: str | None) -> LocalStackError:
    return LocalStackError(
        f"{artifact.coordinates} was fetched from {repository or 'the default Maven repository'}, "
        f"but is not the pinned file: expected sha256 {artifact.sha256} in {artifact.size_bytes} "
        f"bytes, got {sha256_of(download)} in {download.stat().st_size} bytes. It was thrown away "
        "and nothing was started.",
        code="local.artifact_mismatch",
        fix="run the command again; if the error stays, a mirror or proxy alters the file: set "
        "--maven-repository (CONSENTRY_MAVEN_REPOSITORY) to a repository that serves the published "
        "one",
    )
