"""The folder of a run: which one it is, that nobody else writes to it, and the checkpoint to go on from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ser_fl.config.schema import Config
from ser_fl.errors import UserError
from ser_fl.federation.checkpoint import Checkpoint, checkpoint_key, is_checkpoint_of, load_checkpoint
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.lock import claimed

_STAMP = "%Y-%m-%d_%H-%M-%S"
_DATED = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:\.(\d+))?-.+")


@contextmanager
def open_run(config: Config) -> Iterator[tuple[RunFolder, Checkpoint | None]]:
    """The run folder, which nobody else writes to inside, and the checkpoint that a resumed run goes on from.

    Raises:
        UserError: the folder holds a run and ``resume`` is false, another process writes to it, something in it leads
            out of it, or its checkpoint is of another run or damaged.
    """
    folder = given_folder(config)
    with ExitStack() as stack:
        if folder is None:
            folder = _claim_first(stack, new_folders(config))
        else:
            stack.enter_context(claimed(folder))
        run = RunFolder(folder)
        run.refuse_links_out()
        if not config.resume and run.config.exists():
            raise UserError(
                f"{folder} holds a run already: add resume=true to go on with it, or choose another run_dir"
            )
        yield run, load_checkpoint(run.checkpoint, checkpoint_key(config)) if config.resume else None


def given_folder(config: Config) -> Path | None:
    """The run folder that is named: by `run_dir`, or as the run that `resume` goes on with; None asks for a new one."""
    if config.run_dir:
        return Path(config.run_dir).expanduser()
    return newest_run(config) if config.resume else None


def new_folders(config: Config) -> Iterator[Path]:
    """Names for a new run of an experiment, the first one that is free to be taken."""
    return dated_folders(Path("runs") / config.experiment, config.seed, datetime.now())


def _claim_first(stack: ExitStack, folders: Iterable[Path]) -> Path:
    """The first that is not there yet."""
    for folder in folders:
        with suppress(FileExistsError):
            stack.enter_context(claimed(folder, new=True))
            return folder
    raise AssertionError("there is no end of names")


def dated_folders(parent: Path, seed: int, now: datetime) -> Iterator[Path]:
    """Names for a run that begins now, ``<date-time>-<seed>`` or ``<date-time>.<count>-<seed>``, without an end.

    All of them sort behind the runs of this seed that are there already, whatever became of the clock since.
    """
    stamp, count = max([(f"{now:{_STAMP}}", 0), *(_order(folder) for folder in parent.glob(f"*-{seed}"))])
    while True:
        yield parent / (f"{stamp}.{count + 1}-{seed}" if count else f"{stamp}-{seed}")
        count += 1


def _order(folder: Path) -> tuple[str, int]:
    """Date and count of a run folder, in the order that they were made in; of other names nothing."""
    named = _DATED.fullmatch(folder.name)
    return (named[1], int(named[2] or 1)) if named else ("", 0)


def newest_run(config: Config) -> Path | None:
    """The newest run folder with a checkpoint of this configuration, for ``resume=true`` without ``run_dir``."""
    folders = (Path("runs") / config.experiment).glob(f"*-{config.seed}")
    key = checkpoint_key(config)
    there = (folder for folder in folders if is_checkpoint_of(RunFolder(folder).checkpoint, key))
    return max(there, default=None, key=lambda folder: (_order(folder), folder))
