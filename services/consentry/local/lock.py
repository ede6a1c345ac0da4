"""Write `artifacts.lock.json` anew: `python -m consentry.local.lock`.

For whoever raises a version. Change the roots below, run it, and read the difference before it is
committed: the checksums are those of the files that the repository served just now.
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
LOG_BINDING = (
    "org.apache.logging.log4j",
    "log4j-slf4j-impl",
)  # at the version of log4j-core that Kafka brings
REGISTRY = ("io.apicurio", "apicurio-registry-app", "3.3.3")
LOCK_PATH = Path(__file__).with_name("artifacts.lock.json")


def resolve_lock(directory: Path) -> ArtifactLock:
    """Resolve the roots with everything that they need, downloading into `directory`."""
    context = MavenContext(repo_cache=directory)
    broker = Dependency(_artifact(context, *KAFKA, "", "jar"))
    inputs, transitive = context.resolver.resolve([broker])
    needed = [
        entry.artifact
        for entry in inputs + transitive
        if entry.scope in ("compile", "runtime", None)
    ]
    log_version = next(found.version for found in needed if found.artifactId == "log4j-core")
    needed.append(_artifact(context, *LOG_BINDING, log_version, "", "jar"))
    return ArtifactLock(
        kafka=tuple(_pinned(found) for found in needed),
        registry=_pinned(_artifact(context, *REGISTRY, "all", "tar.gz")),
    )


def render(lock: ArtifactLock) -> str:
    """Return the text of the lock file, one line for each artifact, so that differences read
    well.
    """
    kafka = ",\n".join(f"    {json.dumps(asdict(artifact))}" for artifact in lock.kafka)
    registry = json.dumps(asdict(lock.registry))
    return (
        f'{{\n  "format": {LOCK_FORMAT},\n  "kafka": [\n{kafka}\n  ],\n  "registry": '
        f"{registry}\n}}\n"
    )


def _artifact(
    context: MavenContext, group: str, name: str, version: str, classifier: str, packaging: str
) -> Any:
    return context.project(group, name).at_version(version).artifact(classifier, packaging)


def _pinned(found: Any) -> Artifact:
    path = Path(found.resolve())
    return Artifact(
        group=found.groupId,
        artifact=found.artifactId,
        version=found.version,
        classifier=found.classifier,
        packaging=found.packaging,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
    )


def main(arguments: Iterable[str]) -> int:
    """Write the lock file; an argument names a directory of earlier downloads to use."""
    given = next(iter(arguments), None)
    with tempfile.TemporaryDirectory(prefix="consentry-lock-") as fresh:
        lock = resolve_lock(Path(given or fresh))
    LOCK_PATH.write_text(render(lock), "utf-8")
    size = sum(artifact.size_bytes for artifact in lock.everything)
    sys.stdout.write(f"{LOCK_PATH}: {len(lock.everything)} files, {size / 1e6:.0f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
