"""Files: written whole or not at all, read as the records that they should hold; and the user's own folders."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from ser_fl.errors import shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from torch import Tensor

_Form = TypeVar("_Form")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a write that there is no room for: the disk, a quota, a limit of the process."""

_LIMIT = 1 << 63
_WORDS = {"string": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list"}
"""What a value must be, by the first word of pydantic's name for the error."""


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file whole: to a temporary neighbour, flushed to disk, then renamed into place. One that should be
    ``private``, of mode 0600 and never written over, is a FileExistsError where it is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if private:
                os.link(temporary, path)
            else:
                Path(temporary).chmod(0o644)
                Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system refuses inside names this file: a full disk names none, and a temporary file tells nobody."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def to_json(content: Any, *, indent: int | None = None) -> str:
    """JSON of mappings, lists and dataclasses; NaN and infinities, which it lacks, become null."""
    from pydantic_core import to_jsonable_python

    return json.dumps(to_jsonable_python(content, inf_nan_mode="null"), indent=indent, allow_nan=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole, indented."""
    write_bytes(path, to_json(content, indent=1).encode())


class _NullIsNaN:
    """Lets pydantic read null as NaN, since that is how `write_json` writes it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core.core_schema import no_info_before_validator_function

        return no_info_before_validator_function(lambda value: math.nan if value is None else value, handler(source))


Figure = Annotated[float, _NullIsNaN()]
"""A number that may be NaN; null in JSON."""


def parse_json(text: str) -> Any:
    """Content of JSON; a ValueError where it is none, too deep, or has numbers beyond 64 bits or half a character."""
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


def record_of(kind: type[_Form], content: Any) -> _Form:
    """A dataclass, annotated with JSON's own types, tuples, dataclasses and literals, from what `parse_json` gave;
    entries that it does not know are ignored. A missing entry or another type is a ValueError, whose message goes on
    from the file's name.
    """
    from pydantic import ValidationError

    try:
        # From JSON, where lists are tuples; of Python objects pydantic would either refuse lists or take "1" for 1.
        form: _Form = adapter(cast(Any, kind)).validate_json(json.dumps(content), strict=True)
        return form
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
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


def user_folder(variable: str, below_home: str) -> Path:
    """The folder ``ser_fl`` below what an XDG variable names, or else below the user's home; without one, as in some
    containers, below the folder for temporary files.
    """
    if named := os.environ.get(variable):
        return Path(named) / "ser_fl"
    try:
        home = Path.home()
    except RuntimeError:
        home = temporary_folder()
    return home / below_home / "ser_fl"


def temporary_folder() -> Path:
    """The user's own folder below that for temporary files; a new one where somebody else has made one of its name."""
    folder = Path(tempfile.gettempdir()) / f"ser_fl-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder if folder.lstat().st_uid == os.getuid() and not folder.is_symlink() else Path(tempfile.mkdtemp())


def to_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors by name, on any device, as bytes: each by itself and in the plain layout; the format has no other."""
    import torch
    from safetensors.torch import save

    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return save(plain)


def from_safetensors(content: bytes) -> dict[str, Tensor]:
    """What `to_safetensors` was given, on the CPU, in the order of their names; safetensors.SafetensorError or KeyError
    where the bytes are damaged, or of a type that torch does not know.
    """
    from safetensors.torch import load

    tensors = load(content)
    return {name: tensors[name] for name in sorted(tensors)}


def flattened(states: Mapping[str, Any], above: str = "") -> dict[str, Tensor]:
    """Tensors by the path to each, with slashes, from tensors, states, states of states and so on by name."""
    flat: dict[str, Tensor] = {}
    for name, value in states.items():
        flat |= flattened(value, f"{above}{name}/") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def check_same_form(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse, by a ValueError that gives the first name, other than the same names, shapes and types."""
    found, wanted = (
        {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()}
        for tensors in (state, expected)
    )
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise ValueError(f"it has {found.get(name, 'nothing')} for {name}, expected {wanted.get(name, 'nothing')}")
