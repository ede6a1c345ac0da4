"""YAML 1.2 text that people write (so NO is Norway) as plain values, and the line of a field."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from consentry.domain.errors import InvalidInput
from consentry.forms.document import InvalidDocument

CHARACTERS_MAX: Final = 1_000_000
_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+)\]")

_Form = TypeVar("_Form")


def read_form(text: str, parse: Callable[[object], _Form], *, source: str) -> _Form:
    """Return the result of `parse` for the plain values of a YAML text that people write.

    Raises InvalidInput naming `source`, line and field.
    """
    data = _load(text, source)
    try:
        return parse(data)
    except InvalidDocument as error:
        raise InvalidInput(
            f"{source}, line {line_of(text, error.field)}, {error.field}: {error.problem}.",
            code=error.code,
            fix=error.fix,
        ) from error


def _load(text: str, source: str) -> Any:
    if len(text) > CHARACTERS_MAX:
        raise _not_yaml(source, 1, f"it has more than {CHARACTERS_MAX} characters")
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1
        if mark:
            line = mark.line + 1
        raise _not_yaml(source, line, str(error.problem or error.context)) from error
    except (YAMLError, ValueError, OverflowError, RecursionError) as error:
        # A date that no calendar has, a character that no text has, or brackets without end.
        line = _line_of_problem(text, error)
        raise _not_yaml(source, line, str(error).splitlines()[0]) from error


def _not_yaml(source: str, line: int, problem: str) -> InvalidInput:
    return InvalidInput(
        f"{source}, line {line}: it is not YAML: {problem}.",
        code="input.form",
        fix="correct the line; dates are YYYY-MM-DD, and a text with ': ' or '#' in it needs "
        "quotes",
    )


def _line_of_problem(text: str, error: Exception) -> int:
    """The line of the first value that cannot be made, such as 2024-13-01;

    1 where nothing shows it.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            YAML(typ="safe", pure=True).load(line.strip().removeprefix("- "))
        except MarkedYAMLError:
            continue  # a part of something longer
        except type(error):
            return number
    return 1


@lru_cache(maxsize=4)
def _composed(text: str) -> Node | None:
    """The nodes of a text, which know their lines; a report asks for many lines of one file."""
    found: Node | None = YAML(typ="safe", pure=True).compose(text)
    return found


def line_of(text: str, field: str) -> int:
    """The line, from 1, in which a field of a written YAML text stands.

    That of the nearest thing around it if it does not.
    """
    node: Node | None = _composed(text)
    line = 1
    for name, number in _STEP.findall(field):
        if isinstance(node, MappingNode):
            found = [(key, value) for key, value in node.value if str(key.value) == name]
            if not found:
                break
            key, node = found[0]
            line = key.start_mark.line + 1
        elif isinstance(node, SequenceNode) and number and int(number) < len(node.value):
            node = node.value[int(number)]
            line = node.start_mark.line + 1
        else:
            break
    return line


def document_text(document: Any, made_by: str) -> str:
    """Plain values as the text of a YAML document, under a line that says what made it.

    The same text for the same values.
    """
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.representer.ignore_aliases = lambda _: True  # repeated is easier to read than &id001
    out = io.StringIO()
    out.write(f"# {made_by}\n")
    yaml.dump(document, out)
    return out.getvalue()
