"""Names say what they hold: each class name stands once, no module is named by a participle, and
no docstring begins with a question word.

Each rule lists complaints, and is tried on a bad case beside the real one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import pytest

CODE = ("services", "bench", "schemas")
PACKAGE = "services/consentry"

PARTICIPLE = re.compile(r"(?:ing|ed)_?$")
NOT_PARTICIPLES: Mapping[str, str] = {
    "services/consentry/bundles/roaring": "Roaring is the name of a format",
    "services/consentry/domain/wording": "wording is a noun: the words of an explanation",
    "services/consentry/trainer/agent/feed": "feed is a noun: a list of events to read from",
    "services/consentry/trainer/bundled": "a snapshot that comes from a bundle; a noun would be "
    "the name of another room",
    "services/consentry/trainer/checking": "a room named by what it does; check.py is inside",
    "services/consentry/trainer/deciding": "a room named by what it does; decider.py is inside",
    "services/consentry/trainer/sharing": "share is a method of the client; the noun is sharing",
    "services/consentry/schema_gate/published": "the schemas in the folder `published`",
}
"""Modules and folders that look like participles and may stay, each with its reason."""

QUESTION = re.compile(r"(?:What|Which|Who|Whom|Whose|How|Whether|Where|Why)\b")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_of(texts: Mapping[str, str], *folders: str) -> dict[str, str]:
    """The Python files of some folders, by path."""
    prefixes = tuple(f"{folder}/" for folder in folders)
    return {
        path: text
        for path, text in texts.items()
        if path.endswith(".py") and path.startswith(prefixes)
    }


def classes_named_twice(texts: Mapping[str, str]) -> list[str]:
    """Each class name that stands more than once, with the files that it stands in."""
    files: dict[str, list[str]] = {}
    for path, text in code_of(texts, "services").items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                files.setdefault(node.name, []).append(path)
    return [f"{name}: {', '.join(paths)}" for name, paths in files.items() if len(paths) > 1]


def modules_named_by_a_participle(texts: Mapping[str, str]) -> list[str]:
    """Each module or folder of code whose name ends in -ing or -ed and has no reason to."""
    modules: set[PurePosixPath] = set()
    for path in code_of(texts, *CODE):
        module = PurePosixPath(path).with_suffix("")
        modules |= {module, *module.parents}
    return sorted(
        str(module)
        for module in modules
        if PARTICIPLE.search(module.name) and str(module) not in NOT_PARTICIPLES
    )


def question_docstrings(text: str) -> Iterator[str]:
    """The first line of each docstring that begins with a question word."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Documented):
            docstring = ast.get_docstring(node) or ""
            if QUESTION.match(docstring):
                yield docstring.partition("\n")[0]


def question_complaints(texts: Mapping[str, str]) -> list[str]:
    """Return each docstring of the package that begins with a question word, with its file."""
    return [
        f"{path}: {line}"
        for path, text in code_of(texts, PACKAGE).items()
        for line in question_docstrings(text)
    ]


class TestClasses:
    def test_each_class_name_stands_once(self, project_texts: dict[str, str]) -> None:
        """Whoever reads `Batch` in a traceback must not have to ask: of which room?"""
        assert classes_named_twice(project_texts) == []

    def test_a_second_class_of_a_name_is_noticed(self) -> None:
        """Hurt when this breaks: whoever trusts the test above."""
        texts = {
            "services/consentry/wire/a.py": "class Batch: ...\n",
            "services/consentry/table/b.py": "class Batch: ...\nclass Row: ...\n",
            "tests/c.py": "class Row: ...\n",
        }

        assert classes_named_twice(texts) == [
            "Batch: services/consentry/wire/a.py, services/consentry/table/b.py"
        ]


class TestModules:
    def test_no_module_is_named_by_a_participle(self, project_texts: dict[str, str]) -> None:
        """`reading` may read, be read, or be what was read; `reader` is one thing."""
        assert modules_named_by_a_participle(project_texts) == []

    def test_each_exception_is_still_there(self, project_texts: dict[str, str]) -> None:
        """An exception for a file that is gone would let in the next file of that name."""
        modules = {path.removesuffix(".py") for path in project_texts}
        folders = {str(PurePosixPath(path).parent) for path in project_texts}

        assert set(NOT_PARTICIPLES) <= modules | folders

    @pytest.mark.parametrize(
        "path",
        [
            "services/consentry/wire/writing.py",
            "services/consentry/wire/quarantined.py",
            "services/consentry/healing/records.py",
            "bench/timed_.py",
        ],
    )
    def test_a_participle_is_noticed(self, path: str) -> None:
        """Hurt when this breaks: whoever trusts the tests above."""
        texts = {path: "", "services/consentry/wire/writer.py": "", "tests/reading.py": ""}

        assert len(modules_named_by_a_participle(texts)) == 1


class TestDocstrings:
    def test_no_docstring_begins_with_a_question_word(self, project_texts: dict[str, str]) -> None:
        """A first line names the thing or the act: a question leaves both to be guessed."""
        assert question_complaints(project_texts) == []

    def test_a_question_is_noticed_and_a_name_is_not(self) -> None:
        """Hurt when this breaks: whoever trusts the test above."""
        bad = '"""What a row says."""\ndef one() -> None:\n    """Whether it counts."""\n'
        good = '"""The words of a row."""\nclass One:\n    """Whatever a row says."""\n'

        assert list(question_docstrings(bad)) == ["What a row says.", "Whether it counts."]
        assert list(question_docstrings(good)) == []
        assert question_complaints({"services/consentry/a.py": bad, "tests/b.py": bad}) == [
            "services/consentry/a.py: What a row says.",
            "services/consentry/a.py: Whether it counts.",
        ]
