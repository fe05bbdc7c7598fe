"""An entry of the leaderboard: a folder with ``entry.json`` beside its model, or that names the model.

Weights are safetensors, which hold numbers only. Everything that an entry says is either a digest that is checked when
it is read, or a figure that `ser_fl.leaderboard.verification` computes again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

from ser_fl.errors import UserError, shown
from ser_fl.files import parse_json, record_of, to_json, write_bytes
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.zoo import is_zoo_model, readable_run

SCHEMA = 1
FILE = "entry.json"
MODEL_FILES = ("config.yaml", "model.json", "model.safetensors")
"""What is needed to score a model again: settings of its corpus, split and front end, its form, its weights."""
TRACKS = {
    "strangers": "Strangers: speakers that nobody trained on",
    "known_speakers": "Known speakers: all of them trained on, other recordings",
}
Track = Literal["strangers", "known_speakers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedAttack:
    """What an attack left."""

    attack: str
    domain: str
    budget: float
    """Epsilon in standardised log-mel units, or a signal-to-noise ratio in dB."""
    adaptive: bool
    """Whether it was made in expectation over the entry's defence."""
    steps: int | None
    restarts: int | None
    eot_samples: int
    num_examples: int
    seed: int
    uar: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """What all attacks of a budget left together, utterance by utterance."""

    domain: str
    budget: float
    uar: float
    interval: tuple[float, float] | None
    """95 %, over recordings."""
    num_examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TestPart:
    """The utterances that are scored, and what the model does with them as they are."""

    num_examples: int
    audio: str
    """SHA-256 of their names, emotions and decoded samples."""
    track: Track
    clean_uar: float
    parameters: int
    forward_passes: int
    """Of the network, for one prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """``entry.json``; figures in [0, 1]."""

    name: str
    authors: str
    licence: str
    """Of the weights."""
    corpus: str
    synthetic: bool
    settings: tuple[str, ...]
    """Of `ser-fl train`, and of any command that takes them: the corpus and the split."""
    trained_by: str
    """The command, as the run has it on record."""
    defence: str
    """Test-time defence by name, or "none"."""
    model: str | None
    """Where the model's files lie: None for beside ``entry.json``, ``zoo:NAME``, or the name of an entry beside it."""
    suite: int
    test: TestPart
    attacks: tuple[StatedAttack, ...]
    worst_cases: tuple[WorstCase, ...]
    training_seed: int
    checks: str
    """What the benchmark found when it examined itself, in a line."""
    remarks: str
    """What the authors say of it, among it of checks that fail."""
    digests: dict[str, str]
    """SHA-256 of each of the model's files, and, under ``entry.json``, of what this file says beside its digest."""

    def worst(self, domain: str, budget: float) -> WorstCase | None:
        return next((one for one in self.worst_cases if (one.domain, one.budget) == (domain, budget)), None)

    def sealed(self) -> "Entry":
        """With the digest of what it says."""
        return replace(self, digests={**self._files, FILE: self._seal})

    @property
    def _files(self) -> dict[str, str]:
        return {name: digest for name, digest in self.digests.items() if name != FILE}

    @property
    def _seal(self) -> str:
        return sha256(to_json({**asdict(self), "digests": self._files}).encode()).hexdigest()

    @property
    def is_sealed(self) -> bool:
        return self.digests.get(FILE) == self._seal

    def write(self, folder: Path) -> None:
        write_bytes(folder / FILE, to_json({"schema": SCHEMA, **asdict(self.sealed())}, indent=1).encode())


def model_of(folder: Path, entry: Entry) -> Path:
    """The folder of the model's files."""
    if entry.model is None:
        return folder
    if is_zoo_model(entry.model):
        return readable_run(entry.model)
    if Path(entry.model).name != entry.model or entry.model in ("", ".", ".."):
        raise UserError(
            f"{folder / FILE} must name an entry beside it, or zoo:NAME, as model, got {shown(entry.model)}"
        )
    return folder.parent / entry.model


def digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    return {name: digest(folder / name) for name in MODEL_FILES}


def read_entry(folder: Path) -> Entry:
    """What an entry says, its files checked against its digests; nothing of the model is loaded.

    Raises:
        UserError: there is no entry, it is damaged or was changed, or a file of it is another, missing or not listed.
    """
    run, path = RunFolder(folder), folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} is no entry of a leaderboard (it has no {FILE}): `ser-fl leaderboard add` makes one")
    run.refuse_links_out()
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        schema = content.get("schema") if isinstance(content, Mapping) else None
        if schema != SCHEMA:
            raise ValueError(f"has schema {shown(schema)}, this version reads {SCHEMA}")
        entry = record_of(Entry, content)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): was it changed by hand?") from None
    if not entry.is_sealed:
        raise UserError(f"{path} was changed: what it says is not what its own digest is of")
    source = model_of(folder, entry)
    if missing := [name for name in MODEL_FILES if name not in entry.digests or not (source / name).is_file()]:
        raise UserError(f"the entry {folder} lacks {missing[0]}")
    for name in MODEL_FILES:
        if digest(source / name) != entry.digests[name]:
            raise UserError(f"{source / name} was changed: its digest is not that of {path}")
    known = {FILE, *(MODEL_FILES if entry.model is None else ())}
    if unknown := sorted(file.name for file in folder.iterdir() if file.name not in known):
        raise UserError(f"{folder / unknown[0]} is no file of the entry: remove it")
    return entry
