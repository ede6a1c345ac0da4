"""The image: it runs as nobody in particular, holds nothing but the service, and starts without a
shell.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Each instruction and its arguments, with continued lines joined and comments left out."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
        for line in joined.splitlines()
        if line.strip()
    ]


def complaints(dockerfile: str) -> list[str]:
    """What would make the image heavier, weaker or less certain than it has to be."""
    steps = instructions(dockerfile)
    last_stage = max(number for number, (name, _) in enumerate(steps) if name == "FROM")
    final = steps[last_stage + 1 :]
    users = [argument for name, argument in final if name == "USER"]
    found = []
    if users != ["10001:10001"]:
        found.append("the final stage does not run as 10001")
    if [argument for name, argument in final if name == "ENTRYPOINT"] != ['["consentry"]']:
        found.append("the entry point is not the plain command")
    if any(name == "RUN" and "pip" in argument for name, argument in final):
        found.append("the final stage installs packages")
    for _, argument in [step for step in steps if step[0] == "FROM"]:
        if ":" not in argument or ":latest" in argument:
            found.append(f"no version: FROM {argument}")
    for _, argument in [step for step in steps if step[0] == "RUN"]:
        installs = [part for part in argument.split("&&") if "pip install" in part]
        found += [
            f"unchecked: {part.strip()}"
            for part in installs
            if not re.search(r"--require-hashes|--no-deps", part)
        ]
    found += [
        f"{name} {argument}"
        for name, argument in steps
        if name == "ADD" or argument.startswith(". ")
    ]
    found += [
        f"a secret: {argument}"
        for name, argument in steps
        if name in {"ARG", "ENV"} and "PASSWORD" in argument
    ]
    return found


def test_the_image_is_as_small_and_as_weak_as_it_can_be() -> None:
    """Whoever breaks into a service must find no root, no compiler and nothing that was not
    checked.
    """
    assert complaints(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("USER 10001:10001\n", "", "the final stage does not run as 10001"),
        ("USER 10001:10001", "USER root", "the final stage does not run as 10001"),
        ('ENTRYPOINT ["consentry"]', "ENTRYPOINT consentry", "the entry point is not the plain "
                                                             "command"),
        ("USER 10001", "RUN pip download x\nUSER 10001", "the final stage installs packages"),
        ("FROM python:3.11-slim-bookworm\n", "FROM python\n", "no version: FROM python"),
        (" --require-hashes -r deploy/", " -r deploy/", "unchecked: /opt/build/bin/pip install -r"),
        ("COPY services ./services", "COPY . .", "COPY . ."),
    ],
)  # fmt: skip
def test_a_weaker_image_is_noticed(old: str, new: str, complaint: str) -> None:
    """A rule that cannot fail protects nobody."""
    assert old in DOCKERFILE
    assert any(complaint in found for found in complaints(DOCKERFILE.replace(old, new)))


def test_the_places_that_are_written_to_belong_to_who_runs_there() -> None:
    """An empty volume takes over owner and mode: root's could take no key, an open one would show
    it.
    """
    made = [
        part
        for name, argument in instructions(DOCKERFILE)
        if name == "RUN"
        for part in argument.split("&&")
    ]
    places = {
        part.split()[-1]: part.split()[1:-1]
        for part in made
        if part.split()[:2] == ["install", "--directory"]
    }

    assert (
        places["/data"] == places["/bundles"] == ["--directory", "--owner=10001", "--group=10001"]
    )
    secret = ["--directory", "--owner=10001", "--group=10001", "--mode=0700"]
    assert places["/access"] == places["/signing"] == secret


def test_everything_that_is_copied_gets_past_the_dockerignore() -> None:
    """A build that cannot see a file fails at whoever builds first, long after the change."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in ignore if line.startswith("!")]
    copies = [
        argument
        for name, argument in instructions(DOCKERFILE)
        if name == "COPY" and "--from" not in argument
    ]
    sources = [word for argument in copies for word in argument.split()[:-1]]

    assert "*" in ignore
    assert [source for source in sources if source not in allowed] == []
    assert [source for source in sources if not (ROOT / source).exists()] == []
