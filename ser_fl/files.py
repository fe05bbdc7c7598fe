"""Files that are written whole or not at all, and the folders of the user's own that some lie in."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a write that there is no room for: the disk, a quota, a limit of the process."""


def jsonable(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by null."""
    if isinstance(value, float) and not (value == value and abs(value) != float("inf")):
        return None
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file whole: to a temporary neighbour, flushed to disk, then renamed into place.

    Raises:
        FileExistsError: it should be ``private``, of mode 0600 and never written over, and one is there.
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


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole, indented; NaN and infinities become null."""
    write_bytes(path, (json.dumps(jsonable(content), indent=1, allow_nan=False) + "\n").encode())


def user_folder(variable: str, below_home: str) -> Path:
    """The folder ``ser_fl`` below what an XDG variable names, or else below a folder of the user's home.

    A user without a home, as in some containers, gets one below the folder for temporary files.
    """
    if named := os.environ.get(variable):
        return Path(named) / "ser_fl"
    try:
        home = Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir()) / f"ser_fl-{os.getuid()}"
    return home / below_home / "ser_fl"


def to_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors by name, on any device, as bytes: each by itself and in the plain layout; the format has no other."""
    import torch
    from safetensors.torch import save

    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return save(plain)


def from_safetensors(content: bytes) -> dict[str, Tensor]:
    """What `to_safetensors` was given, on the CPU, in the order of their names.

    Raises:
        safetensors.SafetensorError, KeyError: the bytes are damaged, or of a type that torch does not know.
    """
    from safetensors.torch import load

    tensors = load(content)
    return {name: tensors[name] for name in sorted(tensors)}


def check_same_form(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same names, shapes and types.

    Raises:
        ValueError: they are not; the first name is given.
    """
    found, wanted = (
        {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()}
        for tensors in (state, expected)
    )
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise ValueError(f"it has {found.get(name, 'nothing')} for {name}, expected {wanted.get(name, 'nothing')}")
