"""Everything a killed run needs to go on bit for bit, in safetensors and JSON.

A checkpoint is a file of tensors per round and ``latest.json``, which names it; renaming ``latest.json`` into place is
the commit point. What is on disk before that rename is never touched, so a kill at any moment leaves the last round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ser_fl.config.schema import Precision
from ser_fl.errors import UserError, shown
from ser_fl.federation.server import GLOBAL, Server
from ser_fl.files import write_bytes, write_json
from ser_fl.runs.records import State

SCHEMA = 7


@dataclass(slots=True, kw_only=True)
class _WeightAverage:
    decay: float
    num_averaged: Annotated[int, Field(ge=0)]


@dataclass(slots=True, kw_only=True)
class _Latest:
    """``latest.json`` as it must be."""

    round: Annotated[int, Field(ge=1)]
    best_round: Annotated[int, Field(ge=1)]
    best_score: float
    data_digest: str
    server_momentum: float
    weight_average: _WeightAverage
    files: dict[str, str]
    lengths: dict[str, Annotated[int, Field(ge=0)]]
    tracking: dict[str, Any]


_LATEST: TypeAdapter[_Latest] = TypeAdapter(_Latest)


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
    """Of the data that the run is trained on (`ClientManifest.digest`)."""
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


def save_checkpoint(folder: Path, progress: Progress, config: Mapping[str, Any]) -> None:
    """Commit a round."""
    files = _files(progress.round, progress.best_round)
    current, best = files["current"], files["best"]
    tensors = {
        f"model/{owner}/{name}": t for owner, state in progress.server.models.items() for name, t in state.items()
    }
    for owner, state in progress.server.optimiser_states.items():
        tensors |= {f"optimiser/{owner}/{name}": tensor for name, tensor in state.items()}
    tensors |= {f"exp_avg/{GLOBAL}/{name}": tensor for name, tensor in progress.server.exp_avg.items()}
    tensors |= {f"exp_avg_sq/{GLOBAL}/{name}": tensor for name, tensor in progress.server.exp_avg_sq.items()}
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
        "files": files,
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
    try:
        state = json.loads(latest.read_text(encoding="utf-8"))["tracking"]
    except (ValueError, KeyError, TypeError, RecursionError):  # damaged; resuming the run says so
        return {}
    return state if isinstance(state, dict) else {}


def is_checkpoint_of(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether there is a checkpoint of this configuration, in any precision where the configuration leaves it open."""
    latest = folder / "latest.json"
    try:
        return not _differences(json.loads(latest.read_text(encoding="utf-8"))["config"], config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
        content = json.loads(latest.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise UserError(f"{latest} has schema {shown(content['schema'])}, this version reads {SCHEMA}")
        if changed := _differences(content["config"], config):
            raise UserError(f"{folder.parent} was trained with another {changed[0]}: resume with the same settings")
        said = _LATEST.validate_python(content)
        if said.files != (files := _files(said.round, said.best_round)):
            raise UserError(f"{latest} names files that are not its own: expected {files['current']}, {files['best']}")
        current, best = (_by_owner(folder / files[which]) for which in ("current", "best"))
        if "model" not in current or "model" not in best:
            raise KeyError("model")
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint in {folder} cannot be read ({reason}): start a new run") from None
    return Progress(
        round=said.round,
        server=Server(
            current["model"],
            current.get("optimiser", {}),
            exp_avg=current.get("exp_avg", {}).get(GLOBAL, {}),
            momentum=said.server_momentum,
            exp_avg_sq=current.get("exp_avg_sq", {}).get(GLOBAL, {}),
            average=current.get("average", {}).get(GLOBAL, {}),
            decay=said.weight_average.decay,
            num_averaged=said.weight_average.num_averaged,
        ),
        best=best["model"],
        best_round=said.best_round,
        best_score=said.best_score,
        data_digest=said.data_digest,
        precision=content["config"].get("precision"),
        lengths=said.lengths,
        tracking=said.tracking,
    )


def _files(number: int, best_round: int) -> dict[str, str]:
    """Names of a checkpoint's files of tensors: made from numbers, so that none of them leads anywhere else."""
    return {"current": f"round-{number:05d}.safetensors", "best": f"best-{best_round:05d}.safetensors"}


def _by_owner(file: Path) -> dict[str, dict[str, State]]:
    """``{"model": {owner: state}, "optimiser": {owner: state}}``; neither kind nor owner holds a slash."""
    nested: dict[str, dict[str, State]] = {}
    tensors = load_tensors(file.read_bytes())
    for key in sorted(tensors):  # the file has an order of its own
        kind, owner, name = key.split("/", 2)
        nested.setdefault(kind, {}).setdefault(owner, {})[name] = tensors[key]
    return nested


def check_fits(folder: Path, progress: Progress, start: Progress, client_ids: Sequence[str]) -> None:
    """Refuse a checkpoint whose tensors are not those of this run's model.

    Raises:
        UserError: an owner, a name, a shape or a type differs; it is named.
    """
    server, shared = progress.server, start.server.models.get(GLOBAL)
    for what, models in (("model", server.models), ("best model", progress.best)):
        if list(models) != sorted(start.server.models):
            raise UserError(f"the checkpoint in {folder} has a {what} of other clients: start a new run")
        for owner, state in models.items():
            _check_state(folder, f"{what} of {owner}", state, start.server.models[owner])
    if unknown := set(server.optimiser_states) - set(client_ids):
        raise UserError(f"the checkpoint in {folder} has the optimiser of an unknown client {min(unknown)!r}")
    for what, state, expected in (
        ("exp_avg", server.exp_avg, start.server.exp_avg),
        ("exp_avg_sq", server.exp_avg_sq, start.server.exp_avg_sq),
        ("average over rounds", server.average, (shared or {}) if server.num_averaged else {}),
    ):
        _check_state(folder, what, state, expected)


def _check_state(folder: Path, what: str, state: State, expected: State) -> None:
    """Same names, shapes and types."""

    def form(states: State, name: str) -> str:
        return f"{tuple(states[name].shape)} {states[name].dtype}" if name in states else "nothing"

    for name in sorted({*state, *expected}):
        if (found := form(state, name)) != (wanted := form(expected, name)):
            raise UserError(
                f"the checkpoint in {folder} does not fit this run: {what} has {found} for {name}, expected {wanted}"
            )
