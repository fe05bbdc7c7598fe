"""Everything a killed run needs to go on bit for bit, in safetensors and JSON.

A checkpoint is a file of tensors per round and ``latest.json``, which names it; renaming ``latest.json`` into place is
the commit point. What is on disk before that rename is never touched, so a kill at any moment leaves the last round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from safetensors import SafetensorError

from ser_fl.config.resumable import fixed_settings
from ser_fl.config.schema import Config, Precision, dump
from ser_fl.errors import UserError, shown
from ser_fl.federation.server import Server, below
from ser_fl.files import check_same_form, from_safetensors, to_safetensors, write_bytes, write_json
from ser_fl.runs.records import State

SCHEMA = 8


@dataclass(slots=True, kw_only=True)
class Committed:
    """How far a run has come, as ``latest.json`` says it."""

    round: Annotated[int, Field(ge=0)]
    best_round: Annotated[int, Field(ge=0)]
    best_score: float
    data_digest: str = ""
    """Of the data that the run is trained on (`ClientManifest.digest`)."""
    lengths: dict[str, Annotated[int, Field(ge=0)]] = field(default_factory=dict)
    """Bytes of each ``.jsonl`` file at the commit."""
    tracking: dict[str, Any] = field(default_factory=dict)
    """What the tracker needs to go on in the same W&B run."""


_COMMITTED: TypeAdapter[Committed] = TypeAdapter(Committed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The last committed round of a run folder, as it was read."""

    folder: Path
    committed: Committed
    server: State
    """`Server.state_dict`."""
    best: dict[str, State]
    """The server's models in the selected round."""
    precision: Precision | None
    """A run goes on in the one that it began with."""


@dataclass(slots=True, kw_only=True)
class Progress(Committed):
    """How far a run has come, with its server."""

    server: Server
    best: dict[str, State]
    """The server's models in the selected round."""

    def select(self, score: float | None) -> None:
        """Keep this round's models where they score above the best so far.

        None is a round that was not scored: it is kept for as long as no round was.
        """
        if self.best_score < 0 if score is None else score > self.best_score:
            self.best, self.best_round = dict(self.server.judged), self.round
            self.best_score = -1.0 if score is None else score

    def go_on_from(self, checkpoint: Checkpoint, client_ids: tuple[str, ...]) -> None:
        """Take up a checkpoint, before the first round.

        Raises:
            UserError: it is of another algorithm, other clients or another network; what differs is named.
        """
        models = self.server.algorithm.models
        try:
            if checkpoint.best.keys() != models.keys():
                raise ValueError("it has a best model of other clients")
            for owner, state in checkpoint.best.items():
                check_same_form(state, models[owner])
            self.server.load_state_dict(checkpoint.server, client_ids)
        except ValueError as error:
            raise UserError(
                f"the checkpoint in {checkpoint.folder} does not fit this run ({error}): start a new run"
            ) from None
        for name, value in asdict(checkpoint.committed).items():
            setattr(self, name, value)
        self.best = {owner: checkpoint.best[owner] for owner in models}


def checkpoint_key(config: Config) -> dict[str, Any]:
    """The settings that a resumed run must share with the checkpoint: all that its bits depend on."""
    return fixed_settings(Config, dump(config))


def save_checkpoint(folder: Path, progress: Progress, config: Mapping[str, Any]) -> None:
    """Commit a round."""
    files = _files(progress)
    current, best = files["current"], files["best"]
    write_bytes(folder / current, to_safetensors(progress.server.state_dict()))
    # A run that was killed before its first commit may have left a file of this name.
    if progress.best_round == progress.round or not (folder / best).exists():
        selected = {f"{owner}/{name}": t for owner, state in progress.best.items() for name, t in state.items()}
        write_bytes(folder / best, to_safetensors(selected))
    said = {each.name: getattr(progress, each.name) for each in fields(Committed)}
    write_json(folder / "latest.json", {"schema": SCHEMA, **said, "files": files, "config": config})
    for file in folder.iterdir():  # earlier rounds, and what a killed write left
        if file.name not in (current, best, "latest.json"):
            file.unlink()


def _files(committed: Committed) -> dict[str, str]:
    """Names of a checkpoint's files of tensors: made from numbers, so that none of them leads anywhere else."""
    return {
        "current": f"round-{committed.round:05d}.safetensors",
        "best": f"best-{committed.best_round:05d}.safetensors",
    }


def load_checkpoint(folder: Path, config: Mapping[str, Any]) -> Checkpoint | None:
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
        committed = _COMMITTED.validate_python({each.name: content[each.name] for each in fields(Committed)})
        if content["files"] != (files := _files(committed)):
            raise UserError(f"{latest} names files that are not its own: expected {files['current']}, {files['best']}")
        current, best = (from_safetensors((folder / files[which]).read_bytes()) for which in ("current", "best"))
        return Checkpoint(
            folder=folder,
            committed=committed,
            server=current,
            best={owner: below(best, f"{owner}/") for owner in sorted({name.split("/")[0] for name in best})},
            precision=content["config"].get("precision"),
        )
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint in {folder} cannot be read ({reason}): start a new run") from None


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
