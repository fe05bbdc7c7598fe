"""What crosses stages or lands on disk: the records of a run, and the run folder that holds them.

The run folder is a contract (README, "The run folder"): files are written whole and renamed into place, the
``.jsonl`` files are appended to and cut back on resume to the last checkpoint, which is the commit point.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote, unquote

from ser_fl.errors import UserError, shown
from ser_fl.files import jsonable, naming, write_bytes, write_json
from ser_fl.runs.validation import conform, parse_json, record_of

if TYPE_CHECKING:
    from torch import Tensor

ATTACKS_SCHEMA = 1
"""Version of ``attacks.json``."""
SUMMARY_SCHEMA = 1
"""Version of ``summary.json``."""
MODEL_SCHEMA = 1
"""Version of ``model.json``."""
PROFILE_SCHEMA = 1
"""Version of ``profile.json``."""
TRANSFER_SCHEMA = 1
"""Version of ``transfer.json``."""


_Record = TypeVar("_Record", bound="AttackRecord")

State = dict[str, "Tensor"]
"""A model's full state: parameters and buffers by name."""


@dataclass(slots=True, kw_only=True)
class ClientUpdate:
    """What a client sends back after its local epochs."""

    client_id: str
    state: State
    """The client's full model state: parameters, running statistics and counters."""
    num_examples: int
    """Distinct clean utterances trained on: the weight in the average."""
    train_loss: float
    """Mean loss over the local epochs' examples."""
    seconds: float
    update_norm: float
    """L2 norm of the difference to the received parameters."""
    optimiser_state: State = field(default_factory=dict)
    """The client's optimiser, where `federation.keep_optimiser` carries it to its next round; empty otherwise."""
    nanoseconds: dict[str, int] = field(default_factory=dict)
    """By part of its work (`ser_fl.stopwatch.ClientPart`), where the run is profiled; empty otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFailure:
    """A client that was left out of a round, or a holder of validation utterances that gave no figures, and why."""

    client_id: str
    error: str
    stage: Literal["training", "validation"] = "training"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRecord:
    """A line of ``clients.jsonl``: one client in one round."""

    round: int
    client_id: str
    num_examples: int
    train_loss: float
    seconds: float
    update_norm: float
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A line of ``rounds.jsonl``: one round, and how its model does on the validation part, where it was scored."""

    round: int
    cohort: tuple[str, ...]
    train_loss: float
    uar: float | None
    """None in rounds between those that are scored (`selection.every`), as accuracy and macro F1."""
    accuracy: float | None
    macro_f1: float | None
    seconds: float
    failures: tuple[ClientFailure, ...] = ()
    learning_rate: float
    """Of the clients."""
    server_learning_rate: float | None = None
    """Of Adam at the server."""
    robust_uar: float | None = None
    """UAR under the selection attack, in rounds that measure it."""

    @property
    def is_fully_scored(self) -> bool:
        """Whether all holders of validation utterances gave figures; else they are of fewer utterances."""
        return all(failure.stage == "training" for failure in self.failures)

    def line(self, experiment: str) -> str:
        """For whoever watches."""
        scored = "" if self.uar is None else f"  validation UAR {self.uar:.3f}"
        robust = "" if self.robust_uar is None else f"  robust {self.robust_uar:.3f}"
        failed = "".join(f"  {failure.client_id} failed" for failure in self.failures)
        return (
            f"{experiment}  round {self.round:3d}{scored}{robust}  "
            f"loss {self.train_loss:.3f}  {self.seconds:.1f} s{failed}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRecord:
    """One attack on one defended model: an entry of ``attacks.json``."""

    attack: str
    """Name in the catalogue; "clean" for the score without an attack."""
    library: str
    """The class that ran, with its module's root."""
    knowledge: str
    """Threat model: undefended, adaptive, transfer, score or decision; of a worst case all of its attacks', joined by
    "+"."""
    domain: str
    """"logmel" (standardised units) or "waveform"."""
    norm: str
    """"inf" or "2"; "masking" for a budget that is the masking threshold of each clip; "none" for clean."""
    epsilon: float | None
    """In standardised log-mel units, or an amplitude (full scale 1) in the waveform domain; None without."""
    snr_db: float | None
    """The budget, in the waveform domain; None without."""
    steps: int | None
    step_size: float | None
    restarts: int | None
    eot_samples: int
    defence: str
    """Name of the test-time defence that the adversarial utterances were shown to; "none" without one."""
    clean_uar: float
    robust_uar: float
    attack_success_rate: float
    """Over the utterances that were right when clean."""
    mean_l2: float
    """Mean L2 norm of the perturbation over successful attacks, in the units of the domain; 0 where none was."""
    max_linf: float
    median_snr_db: float | None
    """Waveform domain: over successes."""
    num_examples: int
    forward_passes: int
    """Utterances that went forward through the model."""
    backward_passes: int
    seconds: float
    seed: int
    device: str = "cpu"
    """Kind of device that the model and the attack ran on: "cpu" or "cuda"."""
    confusion: tuple[tuple[float, ...], ...] = ()
    """Rows true, columns predicted, under attack and defence."""
    swept: bool = False
    """Whether the attack went on from a smaller epsilon: what that one broke counts as broken, and passes and seconds
    are those of this epsilon alone."""
    uar_interval: tuple[float, float] | None = None
    """95 % interval of `robust_uar` by bootstrap over utterances (`ser_fl.robustness.intervals`)."""
    undefended_gap: tuple[float, float, float] | None = None
    """Of an adaptive attack: UAR under the same attack by an attacker who does not know of the defence, minus
    `robust_uar`, on the utterances of both, and its 95 % interval. None where that attack was not made."""
    speaker_uar: dict[str, float] = field(default_factory=dict)
    """Robust UAR of each speaker, where speakers are known."""
    sex_uar: dict[str, float] = field(default_factory=dict)
    """Robust UAR of female and male speakers, where known."""
    emotion_recall: dict[str, float] = field(default_factory=dict)
    """Robust recall of each emotion that occurs."""
    median_epsilon: float | None = None
    """Median over utterances (and runs) of the smallest epsilon that broke them: of the epsilons up to this record's
    that the attack ran at, or, for an attack that looks for the nearest utterance in L-infinity, of its norms; of a
    worst case, the smallest of all attacks. An utterance that was wrong when clean has 0. None where more than half
    withstood, where nothing was attacked, and of attacks in another norm."""
    median_pesq: float | None = None
    """Waveform domain: median wide-band PESQ over successes, where the package is installed; so with STOI."""
    median_stoi: float | None = None
    masked_share: float | None = None
    """Waveform domain: median over successes of the share of time-frequency bins in which the perturbation lies under
    the masking threshold of its clip; None where the benchmark had no psychoacoustic attack."""
    lost_to_quantisation: float | None = None
    """Waveform domain: how many successes are recognised again after a 16-bit WAV file; of a randomised defence, the
    expected number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord(AttackRecord):
    """What an attack made on one model did to another, under one defence: an entry of ``transfer.json``.

    ``epsilon`` is in the standardised units of the source; ``mean_l2`` and ``max_linf`` are in those of the target, and
    measured from the target's own clean features. Passes and seconds are the source's, spent once for all its targets.
    ``knowledge`` is "transfer", and where source and target are one model, the white-box figure, the attack's own.
    """

    source: str
    """Name of the model that was attacked."""
    target: str
    """Name of the model that was shown what came of it."""
    carried_uar: float
    """Of the target, on the source's clean utterances carried over without an attack: it differs from ``clean_uar``
    only by what the source's box cut off."""
    max_db: float
    """Largest change of a log-mel cell that the target was shown, in dB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferMatrix:
    """``transfer.json``: an attack made on each of some models and shown to all of them."""

    models: dict[str, str]
    """Names, as in the records, and where each lies: a run folder, with ":" and a client for a client's own model."""
    synthetic: bool
    """Whether the speech is of the built-in corpus."""
    seconds: float
    """Wall time of everything but the features."""
    records: tuple[TransferRecord, ...]
    """For every defence each source with each target, in the order of the models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpent:
    """Where the time of some rounds went, in seconds."""

    first_round: int
    last_round: int
    client_rounds: int
    """Updates that came back."""
    seconds: float
    """Wall time of the rounds."""
    clients: dict[str, float]
    """By part (`ser_fl.stopwatch.ClientPart`), summed over clients."""
    server: dict[str, float]
    """By part (`ser_fl.stopwatch.ServerPart`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRecord:
    """``profile.json``: where the time went since the run was last started.

    With the serial executor clients and server together add up to the wall time. With worker processes the server alone
    does, most of it waiting, and the clients' are worker-seconds, of which several pass in a second. What a client that
    failed took is in the server's "other", or in its waiting.
    """

    executor: str
    first: TimeSpent
    """The first round: workers start, and much is done once only."""
    later: TimeSpent | None
    """All other rounds together."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run: where each record lies, and how it is written and read."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def rounds(self) -> Path:
        return self.root / "rounds.jsonl"

    @property
    def clients(self) -> Path:
        return self.root / "clients.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def weights(self) -> Path:
        return self.root / "model.safetensors"

    @property
    def model(self) -> Path:
        return self.root / "model.json"

    @property
    def local_models(self) -> Path:
        """Folder of the clients' own weights, of a run that averages nothing (``federation=local_only``)."""
        return self.root / "clients"

    def weights_of(self, client_id: str) -> Path:
        """A client's own weights; whatever a file's name cannot hold is percent-encoded."""
        return self.local_models / f"{quote(client_id, safe=' ')}.safetensors"

    @property
    def local_clients(self) -> list[str]:
        """Clients whose own weights are there."""
        return sorted(
            unquote(file.name.removesuffix(".safetensors")) for file in self.local_models.glob("*.safetensors")
        )

    @property
    def attacks(self) -> Path:
        return self.root / "attacks.json"

    @property
    def transfer(self) -> Path:
        return self.root / "transfer.json"

    @property
    def outcomes(self) -> Path:
        """What attacks did to every utterance, and what an unfinished benchmark has made so far."""
        return self.root / "attacks"

    @property
    def profile(self) -> Path:
        return self.root / "profile.json"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def adversarial(self) -> Path:
        """Clean and adversarial WAV pairs, where asked for."""
        return self.root / "adversarial"

    @property
    def spectrograms(self) -> Path:
        """One clean and adversarial log-mel pair, for the report."""
        return self.adversarial / "example.json"

    def append(self, path: Path, records: Iterable[RoundRecord] | Iterable[ClientRecord]) -> None:
        """Append records to a ``.jsonl`` file and flush them to disk."""
        lines = "".join(json.dumps(jsonable(asdict(record)), allow_nan=False) + "\n" for record in records)
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

    def cut_back(self, path: Path, num_bytes: int) -> None:
        """Drop what a killed run appended after its last checkpoint."""
        if path.exists():
            os.truncate(path, min(num_bytes, path.stat().st_size))

    def read_jsonl(self, path: Path) -> list[dict[str, Any]]:
        """All whole lines of a ``.jsonl`` file; a last line that was cut off is left out.

        Raises:
            UserError: a line is not a mapping in JSON.
        """
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
        """Content of a JSON file of the folder.

        Raises:
            UserError: the file is missing or is not JSON.
        """
        try:
            return parse_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.root} has no {path.name}: is it the folder of a finished run?") from None
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}): was it changed by hand?") from None

    def refuse_links_out(self) -> None:
        """Nothing in the folder may be a link to what lies outside, or a device: it may come from somebody else.

        The folder itself may be reached by links, and what trackers keep in theirs is not ours to read.

        Raises:
            UserError: something is; it is named.
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

    def write_profile(self, record: ProfileRecord) -> None:
        """Write ``profile.json``."""
        write_json(self.profile, {"schema": PROFILE_SCHEMA, **asdict(record)})

    def write_attacks(self, records: Iterable[AttackRecord]) -> None:
        """Write ``attacks.json``."""
        content = {"schema": ATTACKS_SCHEMA, "records": [asdict(record) for record in records]}
        write_json(self.attacks, content)

    def read_attacks(self) -> list[AttackRecord]:
        """Records of ``attacks.json``; an empty list where there is none.

        Raises:
            UserError: the file is of another schema, or has an incomplete record.
        """
        if not self.attacks.exists():
            return []
        content = self.read_json(self.attacks)
        return _records_in(self.attacks, content, AttackRecord, ATTACKS_SCHEMA, "ser-fl benchmark")


def write_transfer(path: Path, matrix: TransferMatrix) -> None:
    """Write ``transfer.json`` whole; one that is there already is put aside as ``transfer.before.json``."""
    content = {"schema": TRANSFER_SCHEMA, **asdict(matrix)}
    if path.exists():
        write_bytes(path.with_suffix(".before.json"), path.read_bytes())
    write_json(path, content)


def read_transfer(path: Path) -> TransferMatrix:
    """Read ``transfer.json``.

    Raises:
        UserError: the file is missing, damaged or of another schema.
    """
    content = RunFolder(path.parent).read_json(path)
    records = _records_in(path, content, TransferRecord, TRANSFER_SCHEMA, "ser-fl transfer")
    try:
        return record_of(TransferMatrix, {**content, "records": [asdict(record) for record in records]})
    except ValueError as error:
        raise UserError(f"{path} is incomplete ({error}): run `ser-fl transfer` again") from None


def _records_in(path: Path, content: Any, kind: type[_Record], schema: int, command: str) -> list[_Record]:
    """The records of a file of attacks; what a later version has added to them is left aside."""
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        raise UserError(f"{path} has schema {shown(found)}, this version reads {schema}: run `{command}` again")
    try:
        return [record_of(kind, record) for record in conform(tuple[Any, ...], content.get("records"), "records")]
    except ValueError as error:
        raise UserError(f"{path} has an incomplete record ({error}): run `{command}` again") from None
