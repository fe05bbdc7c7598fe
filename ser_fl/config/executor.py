"""Where the clients of a round run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ser_fl.config.resumable import Resumable
from ser_fl.config.values import Count, Folder, NonNegative, Positive, stage
from ser_fl.errors import shown


def _check_workers(given: object) -> object:
    if given == "auto" or (type(given) is int and given >= 1):
        return given
    raise ValueError(f"executor.workers must be auto or a whole number from 1 up, got {shown(given)}")


Workers = Annotated[Count | Literal["auto"], BeforeValidator(_check_workers)]

Engine = Annotated[Literal["trainer", "loop"], BeforeValidator(lambda given: "trainer" if given == "auto" else given)]
"""In older config.yaml files it may be "auto"."""


@stage
class ExecutorConfig:
    """Where the clients of a round run: no result depends on it but by `threads` and `accelerator`."""

    name: Resumable[Literal["serial", "processes", "flower"]]
    """serial: one after the other in this process. processes: side by side in worker processes, one client each.
    flower: at the nodes of a Flower federation, or, without `superlink`, in Flower's simulation of one on Ray."""
    threads: Count
    """Threads per client: part of the result's bits, so recorded and the same everywhere."""
    accelerator: Literal["cpu", "auto", "cuda", "mps"]
    """Of training and of scoring. auto: the first of cuda, mps and cpu that is here."""
    engine: Resumable[Engine] = "trainer"
    """trainer: Lightning's Trainer takes every client's steps, with the flags of `trainer`. loop: the same steps
    without it, to the same bits, for runs without flags or callbacks: it saves some tenths of a millisecond a batch."""
    workers: Resumable[Workers] = "auto"
    """Worker processes, at most the clients of a round. auto: as many as find `threads` cores each, or one a GPU; more
    workers than GPUs share them in turns. The default keeps older config files
    loadable, as those below do."""
    superlink: Resumable[str | None] = None
    """flower: HOST:PORT of the SuperLink that the run is given to; null simulates."""
    root_certificates: Resumable[Folder | None] = None
    """flower: file of the authority that signed the SuperLink's certificate."""
    num_nodes: Resumable[Count | None] = None
    """flower: connected nodes to wait for before the first round; null takes those that are there, and one at least."""
    wait_s: Resumable[Positive] = 600.0
    """flower: how long to wait for them."""
    deadline_s: Resumable[Positive] = 3600.0
    """flower: an answer of a node that takes longer is dropped, and its clients have failed in that round."""
    client_cpus: Resumable[Positive] = 1.0
    """flower, simulated: cores that a client is given on the Ray cluster."""
    client_gpus: Resumable[NonNegative] = 0.0
    """flower, simulated: GPUs, or the share of one, that a client is given."""

    def __post_init__(self) -> None:
        if self.name == "serial" and self.workers not in ("auto", 1):
            raise ValueError(
                f"executor.workers goes with executor=processes, got {self.workers} with executor={self.name}"
            )
        for setting, default in _OF_FLOWER.items():
            if self.name != "flower" and (given := getattr(self, setting)) != default:
                raise ValueError(f"executor.{setting} goes with executor=flower, got {given!r} with {self.name}")
        if self.superlink is not None and not re.fullmatch(
            r"[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", self.superlink
        ):
            raise ValueError(f"executor.superlink must be HOST:PORT, got {self.superlink!r}")


_OF_FLOWER: Mapping[str, object] = {
    **dict.fromkeys(("superlink", "root_certificates", "num_nodes")),
    **{"wait_s": 600.0, "deadline_s": 3600.0, "client_cpus": 1.0, "client_gpus": 0.0},
}
"""Settings of executor=flower alone, and their defaults."""
