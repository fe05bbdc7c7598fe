"""The run folder: where each record of a run lies, and how it is written and read.

The folder is a contract (docs/reference/run-folder.md): files are written whole and renamed into place; the ``.jsonl``
files are appended to and cut back on resume to the last checkpoint, the commit point.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from ser_fl.errors import UserError, shown
from ser_fl.files import naming, parse_json, record_of, to_json, write_bytes, write_json
from ser_fl.runs.frames import RoundsFile
from ser_fl.runs.records import (
    ATTACKS_SCHEMA,
    BASELINE_SCHEMA,
    TRANSFER_SCHEMA,
    AttackRecord,
    Baseline,
    ClientRecord,
    RoundRecord,
    SpeechRecord,
    TransferMatrix,
)

_Form = TypeVar("_Form")


@dataclass(frozen=True)
class _Below:
    name: str

    def __get__(self, run: RunFolder, owner: type) -> Path:
        return run.root / self.name


@dataclass(frozen=True, slots=True)
class _Attacks:
    records: tuple[AttackRecord, ...]
    speech: SpeechRecord | None = None


@dataclass(frozen=True, slots=True)
class RunFolder:
    root: Path

    config = _Below("config.yaml")
    environment = _Below("environment.json")
    clients = _Below("clients.jsonl")
    metrics_csv = _Below("metrics.csv")
    """The rounds under the names that trackers have them by."""
    tensorboard = _Below("tensorboard")
    log = _Below("log.txt")
    """What commands said of the run."""
    summary = _Below("summary.json")
    weights = _Below("model.safetensors")
    model = _Below("model.json")
    local_models = _Below("clients")
    """Folder of the clients' own weights, of a run that averages nothing (``federation=local_only``)."""
    hub = _Below("config.json")
    """In place of ``model.json`` in a folder for Hugging Face."""
    heard = _Below("heard.json")
    heard_sounds = _Below("heard.safetensors")
    """What the model was trained on and selected by: names, and fingerprints of the recordings."""
    attacks = _Below("attacks.json")
    transfer = _Below("transfer.json")
    baseline = _Below("baseline.json")
    evaluations = _Below("evaluations")
    """Folder of figures on other speech than the test part of the run's own corpus."""
    outcomes = _Below("attacks")
    """Folder of what attacks did to every utterance, and of what an unfinished benchmark has made so far."""
    profile = _Below("profile.json")
    checkpoint = _Below("checkpoint")
    report = _Below("report.html")
    figures = _Below("figures")
    adversarial = _Below("adversarial")
    """Folder of clean and adversarial WAV pairs, where asked for."""
    adversaries = _Below("adversaries.json")
    """Who was hostile, and what they did, of a run with `adversaries`."""
    spectrograms = _Below("adversarial/example.json")
    """One clean and adversarial log-mel pair, for the report."""

    @property
    def rounds(self) -> RoundsFile:
        """The path of ``rounds.jsonl``; called, ``run.rounds()``, a data frame of its lines."""
        return RoundsFile(self.root / "rounds.jsonl")

    def weights_of(self, client_id: str) -> Path:
        """A client's own weights; whatever a file's name cannot hold is percent-encoded."""
        return self.local_models / f"{quote(client_id, safe=' ')}.safetensors"

    @property
    def local_clients(self) -> list[str]:
        """Clients whose own weights are there."""
        return sorted(unquote(file.stem) for file in self.local_models.glob("*.safetensors"))

    def append(self, path: Path, records: Iterable[RoundRecord] | Iterable[ClientRecord]) -> None:
        """Append records to a ``.jsonl`` file and flush them to disk."""
        lines = "".join(map(to_json, records))
        before = path.stat().st_size if path.exists() else None
        with naming(path):
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:  # a full disk may have taken half of it
                with suppress(OSError):
                    path.unlink() if before is None else os.truncate(path, before)
                raise

    def read_jsonl(self, path: Path) -> list[dict[str, Any]]:
        """All lines of a ``.jsonl`` file but a last one that was cut off; a `UserError` of other than mappings."""
        if not path.exists():
            return []
        try:
            text = path.read_text(encoding="utf-8")
            lines = [parse_json(line) for line in text[: text.rfind("\n") + 1].split("\n")[:-1]]
            if odd := [line for line in lines if not isinstance(line, dict)]:
                raise ValueError(f"it must hold a mapping, got {shown(odd[0])}")
        except ValueError as error:
            raise UserError(f"{path} has a line that is not JSON ({error}): was it changed by hand?") from None
        return lines

    def read_json(self, path: Path) -> Any:
        """Content of a JSON file of the folder; a `UserError` where it is missing or is not JSON."""
        try:
            return parse_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            way_out = self._way_out("is it the folder of a finished run?")
            raise UserError(f"{self.root} has no {path.name}: {way_out}") from None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}): was it changed by hand?") from None

    def refuse_no_run(self) -> None:
        """Refuse (`UserError`) a folder that is none of a run; runs that lie in it are pointed to."""
        if not self.config.is_file():
            way_out = self._way_out("give the folder that `ser-fl train` made")
            raise UserError(f"{self.root} is not a run folder (it has no config.yaml): {way_out}")

    def _way_out(self, otherwise: str) -> str:
        within = sorted(self.root.glob("*/config.yaml"))
        return f"take one of the {len(within)} runs in it, such as {within[0].parent}" if within else otherwise

    def refuse_links_out(self) -> None:
        """Refuse (`UserError`) a folder from elsewhere that holds links out of it, or devices. It may itself be reached
        by links, and what trackers keep in theirs is not ours to read.
        """
        root = self.root.resolve()
        for folder, subfolders, names in os.walk(root):
            if Path(folder).parent == root and Path(folder).name in ("wandb", "tensorboard"):
                subfolders.clear()
                continue
            for path in (Path(folder, name) for name in (*subfolders, *names)):
                try:
                    mode = path.lstat().st_mode
                except FileNotFoundError:  # renamed into place meanwhile
                    continue
                shown = self.root / path.relative_to(root)
                if stat.S_ISLNK(mode):
                    if not path.resolve().is_relative_to(root):
                        raise UserError(f"{shown} is a link out of the run folder: put the file itself in its place")
                elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise UserError(f"{shown} is neither a file nor a folder: remove it from the run folder")

    def on(self, corpus: str, part: str, enrolment: str | None = None) -> RunFolder:
        """Where figures on other speech lie, or on speakers that are enrolled otherwise, under the names that they have
        here.
        """
        name = f"{corpus}-{part}" if enrolment is None else f"{corpus}-{part}-enrolment_{enrolment}"
        return RunFolder(self.evaluations / name)

    def write_attacks(self, records: Iterable[AttackRecord], speech: SpeechRecord | None = None) -> None:
        write_json(self.attacks, {"schema": ATTACKS_SCHEMA, "speech": speech, "records": list(records)})

    def read_attacks(self) -> list[AttackRecord]:
        """Records of ``attacks.json``, none without one; a `UserError` of another schema or an incomplete record."""
        return list(self._attacks.records)

    def read_speech(self) -> SpeechRecord | None:
        """Whose utterances ``attacks.json`` is of; None where it does not say. Errors are those of `read_attacks`."""
        return self._attacks.speech

    def read_baseline(self) -> Baseline | None:
        """``baseline.json``; None without one. Errors are those of `read_attacks`."""
        there = self.baseline.exists()
        return _read(self.baseline, Baseline, BASELINE_SCHEMA, "ser-fl baseline") if there else None

    @property
    def _attacks(self) -> _Attacks:
        there = self.attacks.exists()
        return _read(self.attacks, _Attacks, ATTACKS_SCHEMA, "ser-fl benchmark") if there else _Attacks(())


def write_transfer(path: Path, matrix: TransferMatrix) -> None:
    """Write ``transfer.json`` whole; one that is there already is put aside as ``transfer.before.json``."""
    if path.exists():
        write_bytes(path.with_suffix(".before.json"), path.read_bytes())
    write_json(path, {"schema": TRANSFER_SCHEMA, **asdict(matrix)})


def read_transfer(path: Path) -> TransferMatrix:
    """Read ``transfer.json``; a `UserError` where it is missing, damaged or of another schema."""
    matrix = _read(path, TransferMatrix, TRANSFER_SCHEMA, "ser-fl transfer")
    there = {(record.defence, record.source, record.target) for record in matrix.records}
    pairs = [(source, target) for source in matrix.models for target in matrix.models]
    if not there or any((defence, *pair) not in there for defence, _, _ in there for pair in pairs):
        raise UserError(f"{path} is incomplete (some pairs of models have no record): run `ser-fl transfer` again")
    return matrix


def _read(path: Path, kind: type[_Form], schema: int, command: str) -> _Form:
    content = RunFolder(path.parent).read_json(path)
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        raise UserError(f"{path} has schema {shown(found)}, this version reads {schema}: run `{command}` again")
    try:
        return record_of(kind, content)
    except ValueError as error:
        raise UserError(f"{path} has an incomplete record ({error}): run `{command}` again") from None
