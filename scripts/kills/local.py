"""`ser-fl train` on one machine, killed with all its workers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from kills.moments import Kill, chance_of
from kills.subject import EPOCHS, OFFLINE, differences, left_over, started, undisturbed, wandb_ids
from ser_fl.runs.folder import RunFolder

_EXECUTORS = {"serial": (), "processes": ("executor=processes", "executor.workers=2")}


def kills(work: Path, seed: int, numbers: Sequence[int]) -> Iterator[Kill]:
    """Kills of these numbers: every other one has worker processes, one in three is tracked."""
    for number in numbers:
        executor, tracking = ("serial", "processes")[number % 2], ("none", "none", "wandb")[number % 3]
        base = (EPOCHS["local"], f"data.cache_dir={work / 'cache'}")
        shared = (*base, *_EXECUTORS[executor])
        whole, run = RunFolder(work / "whole serial"), RunFolder(work / f"killed {number}")
        undisturbed(whole.root, *base)
        timeline = undisturbed(work / f"whole {executor}", *shared)
        tracked = (*shared, *(OFFLINE if tracking == "wandb" else ()))
        chance = chance_of("local", seed, number)
        while True:
            shutil.rmtree(run.root, ignore_errors=True)
            with started(run.root, *tracked) as killed:
                in_time = killed.reaches(timeline.moment(number, chance))
                seconds, during, committed = killed.seconds, killed.phase, killed.committed
                if in_time:
                    os.killpg(killed.process.pid, signal.SIGKILL)
                code = killed.wait()
            if code == -signal.SIGKILL:
                break
        committed = killed.committed  # it may have come a step further until the signal was there
        with started(run.root, *tracked, "resume=true") as resumed:
            resumed_code = resumed.wait()
            cost_s = seconds + resumed.seconds - timeline.end
        yield Kill(
            number=number,
            executor=executor,
            tracking=tracking,
            seconds=seconds,
            during=during,
            committed=committed,
            exit_codes=(code, resumed_code),
            rounds_afterwards=resumed.rounds,
            lost=differences(run, whole),
            left_over=left_over(run, whole),
            wandb_ids=wandb_ids(run) if tracking == "wandb" else None,
            cost_s=cost_s,
        )
        shutil.rmtree(run.root)
