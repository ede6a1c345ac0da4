"""The pages keep up with the code: settings, metrics, alerts, links, public names.

Each rule lists complaints, and is tried on a bad case beside the real one.
"""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.pages import snippets

from consentry.ops.metrics import DEFINITIONS
from consentry.ops.settings import Settings

README_LINES_MAX = 110
README_WORDS_MAX = 900
PUBLIC = {
    "consentry.bundles": "read and verify signed bundles",
    "consentry.events": "the events that a producer may send",
    "consentry.producer": "send events",
    "consentry.producer.outbox": "write events in a database transaction",
    "consentry.trainer": "exclude, purge and prove",
}
"""The modules that a page may import from, and what each is for."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
GLOSSARY_ENTRY = re.compile(r"^\*\*(.+?)\*\*: .+$", re.MULTILINE)


def pages_of(texts: Mapping[str, str]) -> dict[str, str]:
    """Every page of documentation, by path."""
    return {path: text for path, text in texts.items() if path.endswith(".md")}


def imports_of(program: str) -> Iterator[tuple[str, str]]:
    """Each (module, name) of ours that a program imports; the name is empty for a module."""
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("consentry"):
            for alias in node.names:
                yield node.module or "", alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("consentry"):
                    yield alias.name, ""


def import_complaints(programs: Mapping[str, str]) -> list[str]:
    """Each import of a program that is not from the public surface, or of a name it has not."""
    complaints = []
    for path, program in programs.items():
        for module, name in imports_of(program):
            if module not in PUBLIC:
                complaints.append(f"{path}: {module} is not public")
            elif name and not is_public(module, name):
                complaints.append(f"{path}: {module} has no {name}")
    return complaints


def is_public(module: str, name: str) -> bool:
    """True if the module lists the name; its own library may be missing, so it is not loaded."""
    loaded = importlib.import_module(module)
    return name in getattr(loaded, "__all__", dir(loaded))


def programs_of(texts: Mapping[str, str]) -> dict[str, str]:
    """Every Python program on a page or beside the pages, by its place."""
    programs = {
        f"{path}:{snippet.line}": snippet.text
        for path, text in pages_of(texts).items()
        for snippet in snippets(text)
        if snippet.language == "python"
    }
    examples = (path for path in texts if path.startswith("docs/") and path.endswith(".py"))
    return programs | {path: texts[path] for path in examples}


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in HEADING.findall(FENCE.sub("", text))
    }


def link_complaints(texts: Mapping[str, str], root: Path) -> list[str]:
    """Each link of a page to a file or a heading that is not there."""
    complaints = []
    for path, text in pages_of(texts).items():
        for link in LINK.findall(FENCE.sub("", text)):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = (root / path).parent / name
            if name and not target.exists():
                complaints.append(f"{path}: {link} is not there")
                continue
            target_text = target.read_text(encoding="utf-8") if anchor and name else text
            if anchor and anchor not in anchors_of(target_text):
                complaints.append(f"{path}: {link} has no such heading")
    return complaints


def table_cells(text: str) -> set[str]:
    """The first cell of each row of the tables of a page, without its marks."""
    rows = re.findall(r"^\| *([^|]+?) *\|", text, re.MULTILINE)
    return {row.strip("`") for row in rows}


def metric_row(name: str) -> str:
    """The row of docs/sre.md for a metric, as ops/metrics.py declares it."""
    definition = DEFINITIONS[name]
    labels = ", ".join(definition.labels)
    return f"| `{name}` | {definition.kind} | {labels} | {definition.meaning} |"


def layers_of(pyproject: str) -> list[str]:
    """The layers of every import contract that has some, from the top down."""
    contracts = tomllib.loads(pyproject)["tool"]["importlinter"]["contracts"]
    return [layer for contract in contracts for layer in contract.get("layers", [])]


def undrawn_layers(layers: Iterable[str], page: str) -> list[str]:
    """The layers that no line of a page begins with."""
    drawn = {line.partition("   ")[0].rstrip() for line in page.splitlines()}
    return [layer for layer in layers if layer not in drawn]


def missing(wanted: Iterable[str], text: str) -> list[str]:
    """The lines that a page lacks."""
    lines = set(text.splitlines())
    return [line for line in wanted if line not in lines]


class TestPublicNames:
    def test_pages_import_from_the_public_surface_only(self, project_texts: dict[str, str]) -> None:
        """A reader builds on what a page shows; an inner module moves without a word."""
        programs = programs_of(project_texts)

        assert len(programs) > 10
        assert import_complaints(programs) == []

    def test_an_inner_module_and_a_missing_name_are_noticed(self) -> None:
        """Hurt when this breaks: whoever trusts the test above."""
        programs = {
            "a": "from consentry.wire.tokens import TokenKeys\n",
            "b": "import consentry.domain.events\n",
            "c": "from consentry.trainer import Client, Sieve\n",
            "d": "import os\nfrom consentry.producer.outbox import Relay\n",
        }

        assert import_complaints(programs) == [
            "a: consentry.wire.tokens is not public",
            "b: consentry.domain.events is not public",
            "c: consentry.trainer has no Sieve",
        ]


class TestLinks:
    def test_every_link_leads_somewhere(self, project_texts: dict[str, str], root: Path) -> None:
        """A newcomer who meets a dead link stops reading."""
        assert link_complaints(project_texts, root) == []

    def test_a_dead_link_is_noticed(self, root: Path) -> None:
        """Hurt when this breaks: whoever trusts the test above."""
        page = "# A title\n[a](README.md) [b](#a-title) [c](nowhere.md) [d](README.md#nowhere)\n"

        assert link_complaints({"page.md": page}, root) == [
            "page.md: nowhere.md is not there",
            "page.md: README.md#nowhere has no such heading",
        ]

    def test_the_index_names_every_page(self, project_texts: dict[str, str], root: Path) -> None:
        """A page that no index names is read by its author alone."""
        index = project_texts["docs/index.md"]
        linked = {
            (root / "docs" / link.partition("#")[0]).resolve() for link in LINK.findall(index)
        }
        pages = [path for path in pages_of(project_texts) if path.startswith("docs/")]

        assert [
            path for path in pages if path != "docs/index.md" and root / path not in linked
        ] == []


class TestTables:
    def test_the_page_of_settings_names_each_setting_and_no_other(
        self, project_texts: dict[str, str]
    ) -> None:
        """An operator who finds no setting for it believes that there is none."""
        cells = table_cells(project_texts["docs/settings.md"])
        named = {cell for cell in cells if cell.startswith("CONSENTRY_")}

        assert named == {f"CONSENTRY_{name.upper()}" for name in Settings.model_fields}

    def test_the_page_for_the_sre_has_each_metric_as_declared(
        self, project_texts: dict[str, str]
    ) -> None:
        """A dashboard is built from this table."""
        page = project_texts["docs/sre.md"]
        named = {cell for cell in table_cells(page) if cell.startswith("consentry_")}

        assert missing(map(metric_row, DEFINITIONS), page) == []
        assert named == set(DEFINITIONS)

    def test_the_page_for_the_sre_links_each_runbook(
        self, project_texts: dict[str, str], root: Path
    ) -> None:
        """Whoever is on call has one page open, not a folder of 22."""
        page = project_texts["docs/sre.md"]
        runbooks = sorted(path.name for path in (root / "deploy" / "runbooks").iterdir())

        assert [name for name in runbooks if f"](../deploy/runbooks/{name})" not in page] == []

    def test_the_architecture_draws_each_layer_of_the_contracts(
        self, project_texts: dict[str, str]
    ) -> None:
        """A drawing that is not the house sends every newcomer to the wrong room."""
        layers = layers_of(project_texts["pyproject.toml"])

        assert len(layers) > 20
        assert undrawn_layers(layers, project_texts["docs/architecture.md"]) == []
        assert undrawn_layers(["cli", "cellar"], "cli      wires everything\n") == ["cellar"]

    def test_a_missing_line_is_noticed(self) -> None:
        """Hurt when this breaks: whoever trusts the tests above."""
        name = "consentry_build_info"

        assert missing([metric_row(name)], metric_row(name)) == []
        assert missing([metric_row(name)], f"| `{name}` | gauge |  | other |") != []
        assert table_cells("| variable | meaning |\n|---|---|\n| `A_B` | text |\n") >= {"A_B"}


class TestReading:
    def test_the_readme_can_be_read_in_one_go(self, project_texts: dict[str, str]) -> None:
        """Whoever meets the project first has five minutes; the rest belongs in docs/."""
        readme = project_texts["README.md"]

        assert len(readme.splitlines()) <= README_LINES_MAX
        assert len(readme.split()) <= README_WORDS_MAX

    def test_the_glossary_is_in_order(self, project_texts: dict[str, str]) -> None:
        """A word that is not where the alphabet has it is not found."""
        words = GLOSSARY_ENTRY.findall(project_texts["docs/glossary.md"])

        assert len(words) >= 30
        assert words == sorted(words, key=str.casefold)
