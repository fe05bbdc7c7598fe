"""The round loop: the server, where clients run, what selects the best round, and where figures are tracked."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ser_fl.config.aggregation import AggregationConfig
from ser_fl.config.resumable import Growing, Resumable
from ser_fl.config.values import (
    Amount,
    Count,
    Epsilon,
    Folder,
    Fraction,
    NonNegative,
    ObjectConfig,
    Own,
    Positive,
    Share,
    as_yaml,
    is_count,
    must_be,
    refuse_given,
    stage,
)


@stage
class FederationConfig:
    """The round loop."""

    name: Literal["federated", "centralised", "local_only"]
    """federated: FedAvg. centralised: one client with all training data. local_only: no averaging."""
    num_rounds: Growing[Count]
    """A resumed run may ask for more, and so goes on from one that was done. It has the bits of a run that asked for as
    many from the start, but for a round that was validated only as the last one (`selection.every`): its figures stay,
    and it may be selected. A learning rate's schedule goes by `optimiser.decay_rounds` alone."""
    patience: Amount
    """Stop after so many rounds without a new best; 0: never."""
    fraction_train: Fraction
    """Share of clients sampled each round."""
    local_epochs: Count
    """Epochs of a client in a round."""
    batch_size: Count
    """Utterances of a client's minibatch."""
    min_clients: Count
    """A round with fewer updates stops the run."""
    keep_optimiser: bool
    """Carry each client's optimiser state to its next round; FedAvg starts anew."""
    freeze_norm_from: Amount
    """From this round on, batch norm keeps the averaged statistics it received, while clients train too; 0: never.
    Else a client normalises by its own speaker while it trains and by the average of all when it is tested. Not of
    `model.norm=renorm`, which trains what is tested, and of group norm, which has no statistics."""
    server_momentum: Share
    """Momentum of the server over rounds (FedAvgM; 0: FedAvg), or of its Adam (beta 1). Not for local_only."""
    strikes: Resumable[Amount] = 3
    """Rounds in which a client, or a node of Flower, may send what no honest one would before it is left out: an update
    that is not finite, far larger than others' (`ser_fl.federation.screening`) or of more utterances than it has,
    figures that cannot be, an answer to another question. Who is late or away is not blamed. 0: nobody is left out, and
    updates may be of any size; a node that cannot enrol then ends the run."""
    weight_average: Share = 0.0
    """Decay of an average of the shared model over rounds, which is then what is validated, selected and kept, while
    clients go on from the last round's; 0: none. Not for local_only."""
    local_batches: Count | None = None
    """Minibatches of each local epoch, drawn anew every round; null: all. The fewer, the less a client goes its own way
    before it is averaged (1 is FedSGD), for more rounds. A client's weight stays the number of its utterances."""
    server_optimiser: Literal["momentum", "adam"] = "momentum"
    """adam: FedAdam, for updates whose scale differs from parameter to parameter. Not for local_only."""
    server_learning_rate: Positive | None = None
    """Of adam, and null without it. `optimiser.schedule` is then of this rate, and leaves the clients' as it is."""
    server_second_momentum: Share | None = None
    """Of adam (beta 2), and null without it."""
    server_tau: Positive | None = None
    """Of adam, and null without it: added to the root of an update's mean square. For single gradients, where
    `local_batches` is 1, it must be far smaller than for epochs."""
    algorithm: Own | None = None
    """An algorithm of the server of your own; null: the one that the settings above describe."""
    aggregation: AggregationConfig = None
    """How the updates of a round become one: a name, or a mapping of one and its settings, of a rule that withstands
    hostile clients; or one of your own; null: the weighted average."""

    def __post_init__(self) -> None:
        averaging = {"server_momentum": 0, "weight_average": 0, "server_optimiser": "momentum"}
        for setting, neutral in averaging.items():
            if self.name == "local_only" and (given := getattr(self, setting)) != neutral:
                raise ValueError(
                    f"federation.{setting} must be {neutral} with federation=local_only, which averages nothing, got "
                    f"{as_yaml(given)}"
                )
        if self.name != "federated" and self.aggregation is not None and not isinstance(self.aggregation, ObjectConfig):
            reason = "averages nothing" if self.name == "local_only" else "has one client"
            raise ValueError(
                f"federation.aggregation must be null with federation={self.name}, which {reason}, got "
                f"{self.aggregation.name}"
            )
        of_adam = ("server_learning_rate", "server_second_momentum", "server_tau")
        if self.server_optimiser != "adam":
            owner = "federation.server_optimiser=adam"
            refuse_given(self, "federation", of_adam, owner=owner, instead=self.server_optimiser)
        elif missing := [setting for setting in of_adam if getattr(self, setting) is None]:
            raise ValueError(
                f"federation.{missing[0]} is needed with federation.server_optimiser=adam: start from "
                "federation=federated_adam, or federated_sgd"
            )


_WORKERS = "executor.workers must be auto or a whole number from 1 up"
Workers = Annotated[Count | Literal["auto"], must_be(_WORKERS, lambda given: given == "auto" or is_count(given))]
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
    workers than GPUs share them in turns. This default, as those below, keeps older config files loadable."""
    superlink: Resumable[str | None] = None
    """flower: HOST:PORT of the SuperLink that the run is given to; null simulates."""
    root_certificates: Resumable[Folder | None] = None
    """flower: file of the authority that signed the SuperLink's certificate."""
    credential: Resumable[Folder | None] = None
    """flower: file that lets one start runs on the link. null: link/credential beside `root_certificates`."""
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
            raise ValueError(f"executor.workers goes with executor=processes, got {self.workers} with executor=serial")
        if self.name != "flower":
            of_link = ("superlink", "root_certificates", "credential", "num_nodes", "wait_s", "deadline_s")
            own = (*of_link, "client_cpus", "client_gpus")
            refuse_given(self, "executor", own, owner="executor=flower", instead=self.name)
        host = r"[^\s:/]+|\[[0-9a-fA-F:]+\]"
        if self.superlink is not None and not re.fullmatch(rf"({host}):\d{{1,5}}", self.superlink):
            raise ValueError(f"executor.superlink must be HOST:PORT, got {self.superlink!r}")


@stage
class SelectionConfig:
    """The attack on validation utterances in rounds that measure robust UAR, and what selects the best round."""

    by: Literal["clean", "robust", "last"]
    """last: the last round's model, or the average over rounds there, so that nobody need validate (`split`)."""
    robust_every: Amount
    """Measure robust validation UAR every so many rounds; 0: never."""
    epsilon: Epsilon
    """L-infinity budget of the attack, in standardised log-mel units."""
    steps: Count
    """Of its PGD."""
    every: Count = 1
    """Score the model on validation utterances every so many rounds, and after the last of `federation.num_rounds`.
    `federation.patience` ends after a round that is scored."""

    @property
    def needs_validation(self) -> bool:
        """Whether somebody must hold validation utterances."""
        return self.by != "last" or self.robust_every > 0


@stage
class TrackingConfig:
    """Beside the run folder, which is always written."""

    backend: Literal["wandb", "tensorboard", "none"]
    """none: the run folder alone."""
    mode: Literal["auto", "online", "offline"]
    """auto: online where an API key is found, else offline."""
    project: str
    """Of W&B, where the run is shown."""
    entity: str | None
    """W&B's team or user; null: the default one."""
    group: str | None
    """Runs that W&B shows together."""
    tags: tuple[str, ...] = ()
    """Beside the names of experiment, corpus, objective and federation."""
    per_client: bool = False
    """Every client's own figures of every round too; else their minimum, median and maximum."""
    system_metrics: bool = True
    """W&B: how busy CPUs, GPUs, memory, disk and network are, every 15 s."""
    console: bool = False
    """W&B: what the run prints, with the path of its folder."""
    num_recordings: Amount = 0
    """W&B: so many clean and adversarial recordings of ``adversarial/``. They are somebody's speech."""
