"""A federation on loopback over TLS: a link, which is killed with all its processes, and three nodes, which stay up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kills.moments import Kill, chance_of
from kills.subject import EPOCHS, OFFLINE, PATIENCE_S, differences, left_over, started, undisturbed, wandb_ids
from ser_fl.deployment.daemon import free_port
from ser_fl.deployment.keys import KeyFolder, make_keys
from ser_fl.runs.folder import RunFolder

SPEAKERS = ("f01", "f02", "m01")
_LOOK_S = 0.2


class Federation:
    """Its commands, as one types them."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.keys = work / "keys"
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.link: subprocess.Popen[bytes] | None = None
        self.settings = (
            EPOCHS["flower"],
            "executor=flower",
            f"executor.superlink={self.address}",
            f"executor.root_certificates={self.keys / 'ca.crt'}",
            f"executor.num_nodes={len(SPEAKERS)}",
        )
        """Of a run on it."""

    def start_link(self) -> None:
        """Start it and wait until it is ready."""
        self.link, output = self._command("link", "link", self.keys, "--port", self.port)
        self._wait_until_ready(self.link, output)

    def start_nodes(self) -> list[subprocess.Popen[bytes]]:
        """Start them and wait until all are ready."""
        commands = [self._node(name) for name in SPEAKERS]
        for process, output in commands:
            self._wait_until_ready(process, output)
        return [process for process, _ in commands]

    def kill_link(self) -> None:
        """End all processes of the link at once: its command, SuperLink, SuperExec and the server's part of runs."""
        assert self.link is not None
        stopped: set[int] = set()
        while new := {self.link.pid, *descendants(self.link.pid)} - stopped:
            for pid in new:  # stopped first, so that none sees another end
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= new
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.link.wait()

    def _node(self, name: str) -> tuple[subprocess.Popen[bytes], Path]:
        speakers = ("--speakers", name, "--cache", self.work / "cache")
        return self._command(name, "node", self.keys, name, "--link", self.address, *speakers)

    def _command(self, name: str, *arguments: object) -> tuple[subprocess.Popen[bytes], Path]:
        output = self.work / f"{name}.log"
        command = [sys.executable, "-m", "ser_fl", "federation", *map(str, arguments)]
        with output.open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT), output

    @staticmethod
    def _wait_until_ready(process: subprocess.Popen[bytes], output: Path) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while "ready: " not in output.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"not ready: see {output}")
            time.sleep(_LOOK_S)


def descendants(pid: int) -> set[int]:
    """Of a process: its children and theirs."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found: set[int] = set()
    while new := {child for child, parent in parents.items() if parent in {pid, *found}} - found:
        found |= new
    return found


@contextmanager
def running(work: Path) -> Iterator[Federation]:
    """A federation with its link and nodes; all ended afterwards."""
    federation = Federation(work)
    shutil.rmtree(federation.keys, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    make_keys(federation.keys, nodes=SPEAKERS)
    for name in SPEAKERS:  # whose corpora are small
        KeyFolder(federation.keys).policy(name).write_text("least_utterances: 2\nleast_scored: 1\n")
    with ExitStack() as ended:
        federation.start_link()
        ended.callback(lambda: _end(federation.link))
        for node in federation.start_nodes():
            ended.callback(_end, node)
        yield federation


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        process.terminate()
        process.wait(PATIENCE_S)


def kills(work: Path, seed: int, numbers: Sequence[int]) -> Iterator[Kill]:
    """Kills of these numbers, all on one federation; one in three is tracked."""
    whole = RunFolder(work / "whole serial")
    undisturbed(whole.root, EPOCHS["flower"], f"data.cache_dir={work / 'cache'}")
    with running(work) as federation:
        timeline = undisturbed(work / "whole flower", *federation.settings)
        if changed := differences(RunFolder(work / "whole flower"), whole):
            raise SystemExit(f"the federation does not give the bits of one machine: {', '.join(changed)}")
        for number in numbers:
            run, tracking = RunFolder(work / f"killed {number}"), ("none", "none", "wandb")[number % 3]
            settings = (*federation.settings, *(OFFLINE if tracking == "wandb" else ()))
            chance = chance_of("flower", seed, number)
            while True:
                shutil.rmtree(run.root, ignore_errors=True)
                with started(run.root, *settings) as disturbed:
                    if disturbed.reaches(timeline.moment(number, chance)):
                        seconds, during = disturbed.seconds, disturbed.phase
                        federation.kill_link()
                        code = disturbed.wait()
                        break
            committed, last = disturbed.committed, disturbed.said.strip().rpartition("\n")[2]
            ended = time.monotonic()
            federation.start_link()
            with started(run.root, *settings, "resume=true") as resumed:
                resumed_code = resumed.wait()
            cost_s = seconds + time.monotonic() - ended - timeline.end
            yield Kill(
                number=number,
                executor="flower",
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
                said=last.replace(str(run.root), "RUN"),
            )
            shutil.rmtree(run.root)
