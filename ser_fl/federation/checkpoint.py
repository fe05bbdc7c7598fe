"""Everything a killed run needs to go on bit for bit, in safetensors and JSON.

A checkpoint is a file of tensors per round and ``latest.json``, which names it; renaming ``latest.json`` into place is
the commit point. What is on disk before that rename is never touched, so a kill at any moment leaves the last round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ser_fl.config import Precision
from ser_fl.errors import UserError, shown
from ser_fl.federation.server import GLOBAL, Server
from ser_fl.forms import parse_json, record_of
from ser_fl.records import RunFolder, State, write_bytes, write_json

SCHEMA = 5


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    round: int
    server: Server
    best: dict[str, State]
    """The server's models in the selected round."""
    best_round: int
    best_score: float
    data_digest: str = ""
    """Of the data that the run is trained on (`Prepared.digest`)."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Bytes of each ``.jsonl`` file at the commit."""
    precision: Precision | None = None
    """Of a checkpoint that was loaded: a run goes on in the one that it began with."""
    tracking: dict[str, Any] = field(default_factory=dict)
    """What the tracker needs to go on in the same W&B run."""

    def select(self, score: float | None) -> None:
        """Keep this round's models where they score above the best so far.

        None is a round that was not scored: it is kept for as long as no round was.
        """
        if self.best_score < 0 if score is None else score > self.best_score:
            self.best, self.best_round = dict(self.server.judged), self.round
            self.best_score = -1.0 if score is None else score


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightAverage:
    """Of the server's model over rounds."""

    decay: float
    num_averaged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """``latest.json``."""

    round: int
    best_round: int
    best_score: float
    data_digest: str
    server_momentum: float
    weight_average: WeightAverage
    files: dict[str, str]
    """``current`` and ``best``."""
    lengths: dict[str, int]
    tracking: dict[str, Any]
    config: dict[str, Any]

    def __post_init__(self) -> None:
        numbers = {"round": self.round, "best_round": self.best_round, **self.lengths}
        if negative := [name for name, number in numbers.items() if number < 0]:
            raise ValueError(f"{negative[0]} must be at least 0, got {numbers[negative[0]]}")


def save_checkpoint(folder: Path, progress: Progress, config: Mapping[str, Any]) -> None:
    """Commit a round."""
    current, best = f"round-{progress.round:05d}.safetensors", f"best-{progress.best_round:05d}.safetensors"
    tensors = {
        f"model/{owner}/{name}": t for owner, state in progress.server.models.items() for name, t in state.items()
    }
    for owner, state in progress.server.optimiser_states.items():
        tensors |= {f"optimiser/{owner}/{name}": tensor for name, tensor in state.items()}
    tensors |= {f"velocity/{GLOBAL}/{name}": tensor for name, tensor in progress.server.velocity.items()}
    tensors |= {f"average/{GLOBAL}/{name}": tensor for name, tensor in progress.server.average.items()}
    write_bytes(folder / current, save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}))
    # A run that was killed before its first commit may have left a file of this name.
    if progress.best_round == progress.round or not (folder / best).exists():
        selected = {f"model/{owner}/{name}": t for owner, state in progress.best.items() for name, t in state.items()}
        write_bytes(folder / best, save_tensors({name: tensor.contiguous() for name, tensor in selected.items()}))
    content = {
        "schema": SCHEMA,
        "round": progress.round,
        "best_round": progress.best_round,
        "best_score": progress.best_score,
        "data_digest": progress.data_digest,
        "server_momentum": progress.server.momentum,
        "weight_average": {"decay": progress.server.decay, "num_averaged": progress.server.num_averaged},
        "files": {"current": current, "best": best},
        "lengths": progress.lengths,
        "tracking": progress.tracking,
        "config": config,
    }
    write_json(folder / "latest.json", content)
    for file in folder.iterdir():  # earlier rounds, and what a killed write left
        if file.name not in (current, best, "latest.json"):
            file.unlink()


def tracked_run(folder: Path) -> dict[str, Any]:
    """What the tracker of a finished run needs to log more to it; empty where the checkpoint is gone."""
    latest = folder / "latest.json"
    if not latest.exists():
        return {}
    content = RunFolder(folder.parent).read_json(latest)
    state = content.get("tracking") if isinstance(content, dict) else None
    return state if isinstance(state, dict) else {}


def is_checkpoint_of(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether there is a checkpoint of this configuration, in any precision where the configuration leaves it open."""
    latest = folder / "latest.json"
    try:
        return not _differences(parse_json(latest.read_text(encoding="utf-8"))["config"], config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _differences(before: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Settings of a checkpoint that are not as in a configuration."""
    changed = sorted(key for key in {*before, *config} if before.get(key) != config.get(key))
    return [key for key in changed if not (key == "precision" and config[key] == "auto")]


def load_checkpoint(folder: Path, config: Mapping[str, Any]) -> Progress | None:
    """The last committed round, or None where there is none yet.

    Raises:
        UserError: the checkpoint is of another configuration or schema, or cannot be read.
    """
    latest = folder / "latest.json"
    if not latest.exists():
        return None
    try:
        content = parse_json(latest.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise UserError(f"{latest} has schema {shown(content['schema'])}, this version reads {SCHEMA}")
        commit = record_of(Commit, content)
        if changed := _differences(content["config"], config):
            raise UserError(f"{folder.parent} was trained with another {changed[0]}: resume with the same settings")
        current = _by_owner(folder / commit.files["current"])
        best = _by_owner(folder / commit.files["best"])
        models, selected = current["model"], best["model"]
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"the checkpoint in {folder} cannot be read ({error}): start a new run") from None
    return Progress(
        round=commit.round,
        server=Server(
            models,
            current.get("optimiser", {}),
            velocity=current.get("velocity", {}).get(GLOBAL, {}),
            momentum=commit.server_momentum,
            average=current.get("average", {}).get(GLOBAL, {}),
            decay=commit.weight_average.decay,
            num_averaged=commit.weight_average.num_averaged,
        ),
        best=selected,
        best_round=commit.best_round,
        best_score=commit.best_score,
        data_digest=commit.data_digest,
        precision=commit.config.get("precision"),
        lengths=commit.lengths,
        tracking=commit.tracking,
    )


def _by_owner(file: Path) -> dict[str, dict[str, State]]:
    """``{"model": {owner: state}, "optimiser": {owner: state}}``; neither kind nor owner holds a slash."""
    nested: dict[str, dict[str, State]] = {}
    tensors = load_tensors(file.read_bytes())
    for key in sorted(tensors):  # the file has an order of its own
        kind, owner, name = key.split("/", 2)
        nested.setdefault(kind, {}).setdefault(owner, {})[name] = tensors[key]
    return nested
