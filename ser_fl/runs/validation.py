"""Reading JSON of a run folder as the records that it should hold: a file may come from anybody."""

from __future__ import annotations

import json
import math
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from ser_fl.errors import shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_Form = TypeVar("_Form")
_LIMIT = 1 << 63
_WORDS = {"string": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list"}
"""What a value must be, by the first word of pydantic's name for the error."""


class _NullIsNaN:
    """Lets pydantic read null as NaN, since that is how `ser_fl.files.write_json` writes it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core.core_schema import no_info_before_validator_function

        return no_info_before_validator_function(lambda value: math.nan if value is None else value, handler(source))


Figure = Annotated[float, _NullIsNaN()]
"""A number that may be NaN; null in JSON."""


def parse_json(text: str) -> Any:
    """Content of a JSON document.

    Raises:
        ValueError: it is not JSON, nested too deeply, or holds a number beyond 64 bits or half a character.
    """
    try:
        real = partial(_bounded, float)
        content = json.loads(text, parse_int=partial(_bounded, int), parse_float=real, parse_constant=real)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()  # half a character is no text
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return content


def _bounded(kind: type[float], digits: str) -> float:
    if abs(number := kind(digits)) < _LIMIT:
        return number
    raise ValueError(f"a number must be finite and of 64 bits at most, got {shown(digits)}")


def record_of(kind: type[_Form], content: Any, name: str = "") -> _Form:
    """A dataclass, or a tuple of them, from JSON; entries that the class does not know are ignored.

    Args:
        kind: a class, or another type, annotated with JSON's own types, tuples, dataclasses and literals.
        content: what `parse_json` gave.
        name: what the error calls it; empty for a whole document.

    Raises:
        ValueError: an entry is missing, or a value is of another type. The message goes on from the file's name.
    """
    from pydantic import ValidationError

    try:
        # From JSON, where lists are tuples; of Python objects pydantic would either refuse lists or take "1" for 1.
        form: _Form = adapter(cast(Any, kind)).validate_json(json.dumps(content), strict=True)
        return form
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, filter(None, (name, *map(str, problem["loc"])))))
    if problem["type"] == "missing":
        raise ValueError(f"lacks {place}")
    wanted = _WORDS.get(problem["type"].split("_")[0]) or "a mapping"
    if problem["type"] in ("literal_error", "too_long"):
        wanted = problem["msg"].removeprefix("Input should be ").removeprefix("Tuple should have ")
    raise ValueError(f"must hold {wanted}{place and f' as {place}'}, got {shown(problem['input'])}")


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's reader and writer of a type."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
