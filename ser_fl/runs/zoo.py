"""Trained models that come with the package: ``zoo:NAME``, or NAME where no folder is called so, in the place of a run.

Each is a run folder without what training leaves behind: settings, records, weights, what was heard, and a card. It is
read where it lies, once its digests are checked. What writes to a run is given a copy, ``runs/zoo/NAME``.
"""

from hashlib import sha256
from pathlib import Path

from ser_fl.errors import UserError, unknown_name
from ser_fl.files import write_bytes
from ser_fl.runs.folder import RunFolder

ZOO = Path(__file__).parents[1] / "zoo"
PREFIX = "zoo:"
DIGESTS = "digests.json"
"""SHA-256 of every file of a model, in its folder."""
CARD = "card.md"
GROWING = ("attacks.json", "summary.json", CARD)
"""What a copy may have otherwise: a benchmark adds records, and the rest is for readers."""


def zoo_names() -> list[str]:
    return sorted(file.parent.name for file in ZOO.glob(f"*/{DIGESTS}"))


def is_zoo_model(given: Path | str) -> bool:
    """Whether a model of the zoo is meant: by its prefix, or by its name where there is no such folder."""
    return str(given).startswith(PREFIX) or (str(given) in zoo_names() and not Path(given).exists())


def readable_run(given: Path | str) -> Path:
    """The folder of a run, or of a model of the zoo, for whoever reads only.

    Raises:
        UserError: there is no such model, or one of its files is not as it was published.
    """
    if not is_zoo_model(given):
        return Path(given)
    name = str(given).removeprefix(PREFIX)
    if name not in zoo_names():
        raise unknown_name("model of the zoo", name, zoo_names())
    for file, digest in _digests(name).items():
        if not (ZOO / name / file).is_file() or _digest(ZOO / name / file) != digest:
            raise UserError(f"{file} of zoo:{name} is not as it was published: install ser-fl again")
    return ZOO / name


def writable_run(given: Path | str) -> Path:
    """As `readable_run`, for whoever adds to the records: of a model of the zoo, its copy below ``runs/zoo``.

    Raises:
        UserError: as `readable_run`; or there is a folder of that name with another model.
    """
    if not is_zoo_model(given):
        return Path(given)
    source = readable_run(given)
    folder = Path("runs", "zoo", source.name)
    for file, digest in _digests(source.name).items():
        if not (folder / file).exists():
            write_bytes(folder / file, (source / file).read_bytes())
        elif file not in GROWING and _digest(folder / file) != digest:
            raise UserError(f"{folder / file} is not that of zoo:{source.name}: remove {folder}, or name another run")
    return folder


def _digests(name: str) -> dict[str, str]:
    """Of a model's files, by name."""
    digests: dict[str, str] = RunFolder(ZOO / name).read_json(ZOO / name / DIGESTS)
    return digests


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()
