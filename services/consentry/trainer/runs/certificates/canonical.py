"""JSON of a certificate, one spelling a value: the part of RFC 8785 all languages write alike.

For example `{"b": 1, "a": null}` is written as `{"a":null,"b":1}`, and nothing else is read as it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from consentry.domain.errors import InvalidInput

_NUMBER_MAX: Final = (1 << 53) - 1
"""The greatest whole number that every language reads exactly."""
_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)
"""Names of fields: they sort alike by characters, bytes and UTF-16 units."""


def canonical(value: Any) -> bytes:
    """Return the one JSON spelling of a value, as a training run's certificate is written.

    A value is of objects, lists, texts, whole numbers, true, false and null. Names are sorted,
    without spaces, in UTF-8. Raises ValueError for anything else, such as a fraction.
    """
    _check(value)
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str) or _NAME.fullmatch(name) is None:
                raise ValueError(f"{str(name)[:80]!r} cannot be the name of a field")
            _check(part)
    elif isinstance(value, list):
        for part in value:
            _check(part)
    elif isinstance(value, str):
        value.encode()  # a lone surrogate has no bytes
    elif isinstance(value, int):
        if not -_NUMBER_MAX <= value <= _NUMBER_MAX:
            raise ValueError(f"{value} has more than 53 bits")
    elif value is not None:
        raise ValueError(f"a {type(value).__name__} has more than one spelling")


def read_canonical(raw: bytes, *, what: str, code: str) -> dict[str, Any]:
    """Return the object that the canonical JSON of a training run's certificate holds.

    Raises InvalidInput for bytes that are not exactly its one spelling, such as those with a
    duplicate name. `what` names the object in the error's text, `code` is the error's code.
    """
    try:
        value = json.loads(raw)
        if isinstance(value, dict) and canonical(value) == raw:
            return value
    except (ValueError, RecursionError):
        pass
    raise InvalidInput(
        f"The {what} is not in canonical form: it was altered, or cut short.",
        code=code,
        fix=f"take the {what} as it was written, every byte of it",
    )
