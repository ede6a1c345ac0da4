"""The base of every document that people write: declared once, as a frozen pydantic model.

A document is a mapping of fields, as a YAML or JSON reader returns it. `Document.read` accepts it
whole, or raises `InvalidDocument`, which names the first field that does not fit by its path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, NoReturn, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError

from consentry.domain.errors import InvalidInput
from consentry.forms.json_schema import or_null

_NUMBER_MAX: Final = 10**40
_SHOWN_CHARACTERS_MAX: Final = 80
_MISFIT: Final = "misfit"
_SENTENCES: Final[Mapping[str, tuple[str, str]]] = {
    "string_type": ("is not a text", "write it in quotes"),
    "string_unicode": ("is not a text", "write it in quotes"),
    "bool_type": ("is neither true nor false", "write true or false"),
    "int_type": ("is not a whole number", "write such as 1"),
    "float_type": ("is not a number", "write such as 1.5"),
    "dict_type": ("is not a mapping of fields", "write fields and their values"),
}
"""Problem and fix for each of pydantic's kinds of error whose sentence needs only the value."""

_Value = TypeVar("_Value")


class InvalidDocument(InvalidInput):
    """Raised for a value that does not fit in a document that people write.

    `field` is the path of the value, such as `terms[0].regime`. `problem` is the sentence without
    its full stop.
    """

    def __init__(self, field: str, problem: str, fix: str) -> None:
        super().__init__(f"In {field}: {problem}.", code="input.form", fix=fix)
        self.field = field
        self.problem = problem


class _UnknownField(InvalidInput):
    """Raised for a field that a document does not have, before the document's place is known."""

    def __init__(self, field: object, known: Sequence[str]) -> None:
        super().__init__("unknown field", code="input.form")
        self.field = field
        self.known = known

    def in_document(self, path: str, name: str) -> InvalidDocument:
        """Return the error with the place of the document."""
        field_path = _joined(path, shown(self.field))
        problem = f"is not a field of {path or name}"
        return _described(field_path, self.field, problem, f"use {', '.join(self.known)}")


class Document(BaseModel):
    """The base of written documents: a mapping with exactly the declared fields.

    Each field is of exactly its type. The mapping is frozen.

    Where `null_is_absent`, a field that is null is read as one that was left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    null_is_absent: ClassVar[bool] = False

    @classmethod
    def read(cls, data: object, *, name: str, path: str = "") -> Self:
        """Read a written document from `data`, plain values as YAML or JSON readers return.

        `name` is what error sentences call the document, such as "the pause". `path` is its place
        in the text around it, such as `timeline[3].pause_imposed`; it is empty where the document
        is the whole text. Raises InvalidDocument.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise _invalid_document(first, name=name, path=path) from error

    @classmethod
    def check_fields(cls, fields: Mapping[str, Any]) -> None:
        """Refuse fields of a written document that do not go together, before each is read.

        Called with the declared fields that are there. Raises InvalidDocument, whose `field` is a
        path from this document on; empty for the document itself.
        """

    @model_validator(mode="before")
    @classmethod
    def _check_shape(cls, data: Any) -> Any:
        """Refuse what is not a mapping, and a field that is not declared.

        This comes before any field is read, so that a misspelt field is reported as such, and not
        as a missing one.
        """
        if not isinstance(data, Mapping):
            fix = f"write fields such as {', '.join([*cls.model_fields][:3])}"
            raise _pydantic_error(_described("", data, "is not a mapping of fields", fix))
        for field in data:
            if field not in cls.model_fields:
                raise _pydantic_error(_UnknownField(field, [*cls.model_fields]))
        fields = dict(data)
        if cls.null_is_absent:
            fields = {field: value for field, value in data.items() if value is not None}
        as_validator(cls.check_fields)(fields)
        return fields

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        reference = handler(core)
        if cls.null_is_absent:
            schema = handler.resolve_ref_schema(reference)
            properties = schema.get("properties", {})
            for field in properties.keys() - schema.get("required", ()):
                properties[field] = or_null(properties[field])
        return reference


def as_validator(parse: Callable[[Any], _Value]) -> Callable[[Any], _Value]:
    """Return `parse` as a validator of a written document's field.

    An InvalidInput that it raises is reported there.

    The `field` of an InvalidDocument it raises is a path from that field on, such as `[2]`.
    """

    def validate(value: Any) -> _Value:
        try:
            return parse(value)
        except InvalidInput as error:
            raise _pydantic_error(error) from error

    return validate


def _list_to_tuple(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return value


ListOf = Annotated[tuple[_Value, ...], BeforeValidator(_list_to_tuple)]
"""A list in the text, kept as a tuple, which a strict model would not make of a list."""


def refuse(field: str, value: object, problem: str, fix: str) -> NoReturn:
    """Raise InvalidDocument for the value of a written document's field.

    Its sentence is the value, then `problem`.
    """
    raise _described(field, value, problem, fix)


def shown(value: object) -> str:
    """Return a value of a written document as it stands in an error sentence.

    A list or mapping is only named: its parts may be without number.
    """
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            return "[]"
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= _NUMBER_MAX:
        return "a very long number"
    return str(value)


def _described(field: str, value: object, problem: str, fix: str) -> InvalidDocument:
    return InvalidDocument(field, f"{shown(value)[:_SHOWN_CHARACTERS_MAX]!r} {problem}", fix)


def _pydantic_error(error: InvalidInput) -> PydanticCustomError:
    # The error itself is handed on: pydantic cannot carry a text with half a surrogate pair.
    return PydanticCustomError(_MISFIT, "does not fit", {"error": error})


def _invalid_document(details: ErrorDetails, *, name: str, path: str) -> InvalidDocument:
    """Return one of pydantic's errors as ours, with the field's path in the text around it."""
    kind = details["type"]
    value = details["input"]
    context = details.get("ctx", {})
    location = details["loc"]
    field = _path_to(path, location)
    where = field or name
    if kind == "missing":
        # Reported at the mapping that lacks it: a missing field has no line of its own.
        missing = str(location[-1])
        parent = _path_to(path, location[:-1]) or name
        return _described(parent, missing, "is missing", f"add {missing}")
    if kind == _MISFIT:
        return _at_path(context["error"], field, name)
    if kind == "tuple_type":
        return _described(where, value, "is not a list", f"write [{shown(value)}]")
    if kind in ("literal_error", "enum"):
        words = str(context["expected"]).replace(" or ", ", ").replace("'", "")
        return _described(where, value, "is not one of the known words", f"use {words}")
    problem, fix = _SENTENCES.get(kind, (f"does not fit: {details['msg']}", "correct it"))
    return _described(where, value, problem, fix)


def _at_path(error: InvalidInput, path: str, name: str) -> InvalidDocument:
    """Return an error of a validator with the path of its field."""
    if isinstance(error, _UnknownField):
        return error.in_document(path, name)
    if isinstance(error, InvalidDocument):
        return InvalidDocument(_joined(path, error.field) or name, error.problem, error.fix)
    return InvalidDocument(path or name, error.message.removesuffix("."), error.fix)


def _path_to(path: str, location: Sequence[int | str]) -> str:
    for step in location:
        below = f"[{step}]" if isinstance(step, int) else step
        path = _joined(path, below)
    return path


def _joined(path: str, below: str) -> str:
    if not path or not below or below.startswith("["):
        return f"{path}{below}"
    return f"{path}.{below}"
