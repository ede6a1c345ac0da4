"""Pin the local stack's Java files anew in `artifacts.lock.json`, by `python -m` of this module.

That is `python -m consentry.local.lock`. For a change of version: change the roots below, run it,
and read the difference before you commit it. The checksums are those of the files that the
repository served just now.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jgo.maven import Dependency, MavenContext

from consentry.local.artifacts import LOCK_FORMAT, Artifact, ArtifactLock, sha256_of

KAFKA = ("org.apache.kafka", "kafka_2.13", "4.3.1")
# At the version of log4j-core that Kafka brings.
LOG_BINDING = ("org.apache.logging.log4j", "log4j-slf4j-impl")
REGISTRY = ("io.apicurio", "apicurio-registry-app", "3.3.3")
LOCK_PATH = Path(__file__).with_name("artifacts.lock.json")


def resolve_lock(directory: Path) -> ArtifactLock:
    """Find the local stack's Maven files with all their dependencies, and download them.

    They go into `directory`.
    """
    context = MavenContext(repo_cache=directory)
    broker = Dependency(_artifact(context, *KAFKA, "", "jar"))
    inputs, transitive = context.resolver.resolve([broker])
    files: list[Any] = []
    for dependency in inputs + transitive:
        if dependency.scope in ("compile", "runtime", None):
            files.append(dependency.artifact)
    log_version = next(file.version for file in files if file.artifactId == "log4j-core")
    files.append(_artifact(context, *LOG_BINDING, log_version, "", "jar"))
    registry = _artifact(context, *REGISTRY, "all", "tar.gz")
    return ArtifactLock(kafka=tuple(_pinned(file) for file in files), registry=_pinned(registry))


def render(lock: ArtifactLock) -> str:
    """Return the text of the lock file, which pins the local stack's Maven files.

    It has one line for each artifact, so that a difference is easy to read.
    """
    lines = [f"    {json.dumps(asdict(artifact))}" for artifact in lock.kafka]
    kafka = ",\n".join(lines)
    registry = json.dumps(asdict(lock.registry))
    return (
        f'{{\n  "format": {LOCK_FORMAT},\n  "kafka": [\n{kafka}\n  ],\n  "registry": '
        f"{registry}\n}}\n"
    )


def _artifact(
    context: MavenContext, group: str, name: str, version: str, classifier: str, packaging: str
) -> Any:
    return context.project(group, name).at_version(version).artifact(classifier, packaging)


def _pinned(file: Any) -> Artifact:
    path = Path(file.resolve())
    return Artifact(
        group=file.groupId,
        artifact=file.artifactId,
        version=file.version,
        classifier=file.classifier,
        packaging=file.packaging,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
    )


def main(arguments: Iterable[str]) -> int:
    """Write the lock file of the local stack's Maven files anew.

    An argument names a directory of earlier downloads to use.
    """
    earlier_directory = next(iter(arguments), None)
    with tempfile.TemporaryDirectory(prefix="consentry-lock-") as new_directory:
        lock = resolve_lock(Path(earlier_directory or new_directory))
    LOCK_PATH.write_text(render(lock), "utf-8")
    size = sum(artifact.size_bytes for artifact in lock.everything)
    sys.stdout.write(f"{LOCK_PATH}: {len(lock.everything)} files, {size / 1e6:.0f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
