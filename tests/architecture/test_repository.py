"""The repository keeps its own rules.

Each rule lists complaints, and is tried on a bad case beside the real one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAVY_EXTRAS = ("torch", "ray", "spark", "openlineage", "mlflow")
"""Tested by `make test-all` alone."""
TOP_LEVEL = {
    ".ci", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "bench", "deploy", "docker-compose.yml", "docs",
    "pyproject.toml", "requirements.lock", "schemas", "services", "tests",
}  # fmt: skip
DOTFILES = {".dockerignore", ".gitattributes", ".github", ".gitignore", ".pre-commit-config.yaml"}

# Written with brackets so that this file does not find itself.
REGISTRY_HOSTS = re.compile(
    r"py[p]i\.org|pythonhoste[d]\.org|npm[j]s\.(?:org|com)|crate[s]\.io|proxy\.golan[g]\.org|rep[o]1\.maven"
    r"|docke[r]\.io|ghc[r]\.io|gc[r]\.io|qua[y]\.io"
    r"|https?://(?:[\w-]+\.)*(?:artifactory|nexus|mirror|mirrors|packages|pkgs)[\w-]*\.[\w.-]+"
    r"|https?://(?:10|172|192)\.\d+\.\d+\.\d+"
    r"|(?:index|proxy|mirror)[-_]?url\W{0,4}https?://",
    re.IGNORECASE,
)
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E)\b(?P<rest>.*)")
REASON = re.compile(r"\([^)]+\): \S.{9,}")
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)")
HASH = re.compile(r"^\s+--hash=sha256:[0-9a-f]{64}(?: \\)?$")


def registry_addresses(texts: Mapping[str, str]) -> list[str]:
    """Return each place that names a source of packages or images.

    The machine chooses these, not we.
    """
    return [
        f"{name}:{number}: {match.group()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in REGISTRY_HOSTS.finditer(line)
    ]


def unexplained_leftovers(texts: Mapping[str, str]) -> list[str]:
    """Return each note of unfinished work without its owner and its reason."""
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for match in UNFINISHED.finditer(line)
        if not REASON.match(match["rest"])
    ]


def pins(lock: str) -> dict[str, set[str]]:
    """Return the versions that a lock file pins, by package; several if they differ by platform."""
    versions: dict[str, set[str]] = {}
    for line in lock.splitlines():
        if match := PIN.match(line):
            versions.setdefault(canonicalize_name(match["name"]), set()).add(match["version"])
    return versions


def lock_complaints(lock: str, requirements: Iterable[str]) -> list[str]:
    """Return each fault of a lock file.

    A fault is a line that is neither a pin nor a hash, a pin without a hash, or a requirement
    without a fitting pin.
    """
    complaints = [f"an address: {line}" for line in lock.splitlines() if "://" in line]
    hashes = 1
    package = ""
    for line in [*lock.splitlines(), "end==0"]:
        if match := PIN.match(line):
            if not hashes:
                complaints.append(f"no hash: {package}")
            package, hashes = match["name"], 0
        elif HASH.match(line):
            hashes += 1
        elif line.strip() and not line.lstrip().startswith("#"):
            complaints.append(f"neither a pin nor a hash: {line}")
    pinned = pins(lock)
    for text in requirements:
        requirement = Requirement(text)
        versions = pinned.get(canonicalize_name(requirement.name))
        if versions is None:
            complaints.append(f"not pinned: {text}")
        elif not any(
            requirement.specifier.contains(version, prereleases=True) for version in versions
        ):
            complaints.append(f"pinned to {sorted(versions)}, which does not fit: {text}")
    return complaints


def strangers(lock: str, main: str) -> list[str]:
    """Return the pins of one lock file that the main one lacks, though it should have all."""
    known = pins(main)
    return [
        f"{name} {sorted(versions)}"
        for name, versions in pins(lock).items()
        if not versions <= known.get(name, set())
    ]


def layout_complaints(files: Iterable[Path]) -> list[str]:
    """Return what is missing at the top of the repository, and what has no place there."""
    names = {path.parts[0] for path in files}
    missing = [f"missing: {name}" for name in sorted(TOP_LEVEL - names)]
    return missing + [f"has no place: {name}" for name in sorted(names - TOP_LEVEL - DOTFILES)]


def declared(pyproject: Mapping[str, Any]) -> list[str]:
    """Return every requirement of pyproject.toml, also the optional ones and those to build."""
    project = pyproject["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [
        *project["dependencies"],
        *(text for extra in extras for text in extra),
        *pyproject["build-system"]["requires"],
    ]


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


class TestAddresses:
    def test_no_file_says_where_packages_come_from(self, project_texts: dict[str, str]) -> None:
        """A company behind its own mirror could not build us, and a host that changes hands could
        poison us.
        """
        assert registry_addresses(project_texts) == []

    @pytest.mark.parametrize(
        "line",
        [
            "--index-" + "url https://example.com/simple",
            "PIP_INDEX_" + "URL=https://example.com/simple",
            "FROM gh" + "cr.io/example/image",
            "see https://py" + "pi.org/project/consentry",
            "http://" + "10.1.2.3:4873/",
            "https://" + "nexus.example.com/",
        ],
    )
    def test_an_address_is_noticed(self, line: str) -> None:
        """Hurt when this breaks: whoever trusts the test above."""
        assert registry_addresses({"file": f"fine\n{line}\n"}) != []

    def test_our_own_services_are_no_registries(self) -> None:
        """A guard that cries at `http://registry:8080` gets switched off."""
        assert (
            registry_addresses(
                {"file": "http://registry:8080 https://example.com --no-emit-index-url"}
            )
            == []
        )


class TestLeftovers:
    def test_unfinished_work_says_whose_and_why(self, project_texts: dict[str, str]) -> None:
        """The next reader has to know whether a note is a warning, a plan or a ghost."""
        assert unexplained_leftovers(project_texts) == []

    def test_a_bare_note_is_noticed_and_an_explained_one_is_not(self) -> None:
        """Hurt when this breaks: whoever trusts the test above."""
        word = "TO" + "DO"

        assert unexplained_leftovers({"file": f"# {word}: later"}) == [f"file:1: # {word}: later"]
        assert (
            unexplained_leftovers(
                {"file": f"# {word}(table): goes once Redis 7.0 is no longer supported"}
            )
            == []
        )


class TestLocks:
    def test_every_dependency_is_pinned_by_hash(
        self, root: Path, pyproject: dict[str, Any]
    ) -> None:
        """A package replaced on its way would run inside of the service that knows who opted
        out.
        """
        main = (root / "requirements.lock").read_text(encoding="utf-8")
        heavy = (root / "tests" / "heavy" / "requirements.lock").read_text(encoding="utf-8")
        extras = pyproject["project"]["optional-dependencies"]
        kept_out = {text for name in HEAVY_EXTRAS for text in extras[name]}

        assert (
            lock_complaints(main, [text for text in declared(pyproject) if text not in kept_out])
            == []
        )
        assert lock_complaints(heavy, declared(pyproject)) == []
        assert strangers(main, heavy) == []

    def test_the_image_installs_nothing_that_was_not_tested(
        self, root: Path, pyproject: dict[str, Any]
    ) -> None:
        """What runs in production has to be what the gate ran."""
        main = (root / "requirements.lock").read_text(encoding="utf-8")
        image = (root / "deploy" / "requirements.lock").read_text(encoding="utf-8")
        build = (root / "deploy" / "build-requirements.lock").read_text(encoding="utf-8")
        project = pyproject["project"]
        needed = [*project["dependencies"], *project["optional-dependencies"]["processor"]]

        assert lock_complaints(image, needed) == []
        assert lock_complaints(build, pyproject["build-system"]["requires"]) == []
        assert strangers(image, main) == []
        assert strangers(build, main) == []

    def test_a_lock_that_promises_too_little_is_noticed(self) -> None:
        """Hurt when this breaks: whoever trusts the tests above."""
        good = f"alpha==1.0 \\\n    --hash=sha256:{'0' * 64}\n"

        assert lock_complaints(good, ["alpha>=1"]) == []
        assert lock_complaints(good, ["beta"]) == ["not pinned: beta"]
        assert lock_complaints(good, ["alpha>=2"]) == [
            "pinned to ['1.0'], which does not fit: alpha>=2"
        ]
        assert lock_complaints("alpha==1.0\n", []) == ["no hash: alpha"]
        assert lock_complaints(f"{good}beta>=2\n", []) == ["neither a pin nor a hash: beta>=2"]
        assert lock_complaints(f"# https://example.com\n{good}", []) == [
            "an address: # https://example.com"
        ]
        assert strangers("alpha==1.1", good) == ["alpha ['1.1']"]


class TestShape:
    def test_the_top_level_is_the_one_agreed_on(self, project_files: tuple[Path, ...]) -> None:
        """A newcomer finds a thing by its folder, and nothing lies about that nobody answers
        for.
        """
        assert layout_complaints(project_files) == []

    def test_a_stray_or_missing_folder_is_noticed(self) -> None:
        """Hurt when this breaks: whoever trusts the test above."""
        files = [Path(name) / "file" for name in TOP_LEVEL - {"docs"}]

        assert layout_complaints([*files, Path("misc/notes.txt")]) == [
            "missing: docs",
            "has no place: misc",
        ]

    def test_the_licence_is_apache_2(self, root: Path, pyproject: dict[str, Any]) -> None:
        """A company may not use what does not say under which terms."""
        text = (root / "LICENSE").read_text(encoding="utf-8")

        assert "Apache License\n                           Version 2.0, January 2004" in text
        assert "END OF TERMS AND CONDITIONS" in text
        assert pyproject["project"]["license"] == "Apache-2.0"
