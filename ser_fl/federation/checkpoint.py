"""The folder of a run, and everything a killed run needs to go on bit for bit, in safetensors and JSON.

A checkpoint is a file of tensors per round and ``latest.json``, which names it; renaming that into place is the commit
point. What is on disk before is never touched, so that a kill at any moment leaves the last round.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError

from ser_fl.config.resumable import differing, fixed_settings
from ser_fl.config.schema import Config, Precision, dump
from ser_fl.config.text import read_settings
from ser_fl.errors import UserError, shown
from ser_fl.federation.server import Committed, Server
from ser_fl.files import below, check_same_form, flattened, from_safetensors, to_safetensors, write_bytes, write_json
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.lock import claimed
from ser_fl.runs.records import State
from ser_fl.runs.redaction import last_name

SCHEMA = 8
_CURRENT, _BEST = "round-{:05d}.safetensors", "best-{:05d}.safetensors"
"""A checkpoint's files of tensors: named by numbers, so that none of them leads anywhere else."""
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a file raises that is not there, or was changed by hand."""
_COMMITTED: TypeAdapter[Committed] = TypeAdapter(Committed)
_STAMP = "%Y-%m-%d_%H-%M-%S"
_DATED = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:\.(\d+))?-.+")


@contextmanager
def open_run(config: Config) -> Iterator[tuple[RunFolder, Checkpoint | None]]:
    """The run folder, which nobody else writes to inside, and the checkpoint that a resumed run goes on from.

    A `UserError` says that the folder holds a run and ``resume`` is false, another process writes to it, something in
        it leads out of it, or its checkpoint is of another run or damaged.
    """
    folder = given_folder(config)
    with ExitStack() as stack:
        for choice in [folder] if folder else new_folders(config):  # of new ones, the first that is not there yet
            try:
                stack.enter_context(claimed(choice, new=folder is None))
                break
            except FileExistsError:
                if folder:
                    raise
        run = RunFolder(choice)
        run.refuse_links_out()
        if not config.resume and run.config.exists():
            raise UserError(
                f"{choice} holds a run already: add resume=true to go on with it, or choose another run_dir"
            )
        yield run, load_checkpoint(run.checkpoint, checkpoint_key(config)) if config.resume else None


def given_folder(config: Config) -> Path | None:
    """The run folder that is named: by `run_dir`, or as the run that `resume` goes on with; None asks for a new one."""
    if config.run_dir:
        return Path(config.run_dir).expanduser()
    return newest_run(config) if config.resume else None


def as_begun(config: Config) -> Config:
    """With the name of the run that goes on, where `run_dir` tells which and the user gives it no other."""
    if not config.resume or not config.run_dir or config.run_name is not None:
        return config
    run = RunFolder(Path(config.run_dir).expanduser())
    if not run.config.exists():
        return config
    run.refuse_links_out()
    name = read_settings(run.config, Config).get("run_name")
    return replace(config, run_name=name) if isinstance(name, str) else config


def new_folders(config: Config, now: datetime | None = None) -> Iterator[Path]:
    """Names for a new run of an experiment, ``<date-time>-<seed>`` or ``<date-time>.<count>-<seed>``, without an end:
    the first one that is free is to be taken. All sort behind this seed's runs that are there already, whatever became
    of the clock since.
    """
    parent, seed = config.runs_folder, config.seed
    begun = (f"{now or datetime.now():{_STAMP}}", 0)
    stamp, count = max([begun, *(_order(folder) for folder in parent.glob(f"*-{seed}"))])
    while True:
        yield parent / (f"{stamp}.{count + 1}-{seed}" if count else f"{stamp}-{seed}")
        count += 1


def _order(folder: Path) -> tuple[str, int]:
    named = _DATED.fullmatch(folder.name)
    return (named[1], int(named[2] or 1)) if named else ("", 0)


def newest_run(config: Config) -> Path | None:
    """The newest run folder with a checkpoint of this configuration, for ``resume=true`` without ``run_dir``."""
    folders, key = config.runs_folder.glob(f"*-{config.seed}"), checkpoint_key(config)
    there = (folder for folder in folders if is_checkpoint_of(RunFolder(folder).checkpoint, key))
    return max(there, default=None, key=lambda folder: (_order(folder), folder))


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
    num_rounds: int
    """As many were asked for."""


def go_on_from(checkpoint: Checkpoint, server: Server, client_ids: tuple[str, ...]) -> None:
    """Let a server that is before its first round take up a checkpoint; a `UserError` names what differs."""
    models = server.algorithm.models
    try:
        if checkpoint.best.keys() != models.keys():
            raise ValueError("it has a best model of other clients")
        for owner, state in checkpoint.best.items():
            check_same_form(state, models[owner])
        server.load_state_dict(checkpoint.server, client_ids)
    except ValueError as error:
        told = f"the checkpoint in {checkpoint.folder} does not fit this run ({error}): start a new run"
        raise UserError(told) from None
    for each in fields(Committed):
        setattr(server, each.name, getattr(checkpoint.committed, each.name))
    server.best = {owner: checkpoint.best[owner] for owner in models}


def checkpoint_key(config: Config) -> dict[str, Any]:
    """The settings that a resumed run must share with the checkpoint: all that its bits depend on. Of the run that it
    began from, which may have moved since, the folder's name.
    """
    begun_from = {"init_from": last_name(config.init_from)} if config.init_from else {}
    return fixed_settings(Config, dump(config)) | begun_from


def save_checkpoint(folder: Path, server: Server, config: Mapping[str, Any]) -> None:
    """Commit a round."""
    current, best = _CURRENT.format(server.round), _BEST.format(server.best_round)
    write_bytes(folder / current, to_safetensors(server.state_dict()))
    # A run that was killed before its first commit may have left a file of this name.
    if server.best_round == server.round or not (folder / best).exists():
        write_bytes(folder / best, to_safetensors(flattened(server.best)))
    said = {each.name: getattr(server, each.name) for each in fields(Committed)}
    files = {"current": current, "best": best}
    write_json(folder / "latest.json", {"schema": SCHEMA, **said, "files": files, "config": config})
    for file in folder.iterdir():  # earlier rounds, and what a killed write left
        if file.name not in (current, best, "latest.json"):
            file.unlink()


def load_checkpoint(folder: Path, config: Mapping[str, Any]) -> Checkpoint | None:
    """The last committed round, if any; a `UserError` for another configuration or schema, or damage."""
    latest = folder / "latest.json"
    if not latest.exists():
        return None
    try:
        content = _latest(folder)
        if content["schema"] != SCHEMA:
            raise UserError(f"{latest} has schema {shown(content['schema'])}, this version reads {SCHEMA}")
        if changed := _differences(content["config"], config):
            hint = " (federation.num_rounds may grow)" if changed[0] == "federation.num_rounds" else ""
            raise UserError(
                f"{folder.parent} was trained with another {changed[0]}: resume with the same settings{hint}"
            )
        committed = _COMMITTED.validate_python(
            {each.name: content[each.name] for each in fields(Committed) if each.name in content}
        )
        names = {"current": _CURRENT.format(committed.round), "best": _BEST.format(committed.best_round)}
        if content["files"] != names:
            raise UserError(f"{latest} names files that are not its own: expected {', '.join(names.values())}")
        current, best = (from_safetensors((folder / name).read_bytes()) for name in names.values())
        return Checkpoint(
            folder=folder,
            committed=committed,
            server=current,
            best={owner: below(best, f"{owner}/") for owner in sorted({name.split("/")[0] for name in best})},
            precision=content["config"].get("precision"),
            num_rounds=content["config"].get("federation", {}).get("num_rounds", 0),
        )
    except UserError:
        raise
    except (*_DAMAGED, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint in {folder} cannot be read ({reason}): start a new run") from None


def is_checkpoint_of(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether there is a checkpoint of this configuration, in any precision where the configuration leaves it open."""
    try:
        return not _differences(_latest(folder)["config"], config)
    except _DAMAGED:
        return False


def _differences(before: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    changed = differing(Config, before, config)
    return [name for name in changed if not (name == "precision" and config[name] == "auto")]


def tracked_run(folder: Path) -> dict[str, Any]:
    """What the tracker of a finished run needs to log more to it; empty where the checkpoint is gone."""
    try:
        state = _latest(folder)["tracking"]
    except _DAMAGED:  # resuming the run says so
        return {}
    return state if isinstance(state, dict) else {}


def _latest(folder: Path) -> Any:
    return json.loads((folder / "latest.json").read_text(encoding="utf-8"))
