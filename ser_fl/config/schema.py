"""The typed schema of ``configs/``: a dataclass a stage, checked once, here, at the border.

The YAML files hold every default; the classes hold what each setting means and which values it may take. Inside the
package a `Config` is trusted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ser_fl.config.resumable import Resumable
from ser_fl.errors import UserError, shown, unknown_name

CONFIG_SCHEMA = 1
"""Version of a run's ``config.yaml``."""

stage = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))

Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Proportion = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Amount = Annotated[int, Field(ge=0, lt=2**63)]
Epsilon = NonNegative
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Speaker = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) is int else given)]
"""YAML takes the speakers of EmoDB and CREMA-D for numbers."""


Precision = Literal["32-true", "bf16-mixed"]


def _check_workers(given: object) -> object:
    if given == "auto" or (type(given) is int and given >= 1):
        return given
    raise ValueError(f"executor.workers must be auto or a whole number from 1 up, got {shown(given)}")


Workers = Annotated[Count | Literal["auto"], BeforeValidator(_check_workers)]


@stage
class DataConfig:
    """Which corpus, and how its files are read."""

    name: str
    """A corpus (`ser-fl corpus list`), "manifest" for a CSV of your own, or "builtin": synthetic, needs no files."""
    root: Resumable[str | None]
    """Folder of the corpus, or the manifest file; null for "builtin"."""
    channel: Literal["first", "second", "mean"]
    """Channel of stereo files. "mean" comb-filters where two spaced microphones recorded (EMOVO)."""
    on_unreadable: Literal["stop", "skip"]
    """Files that cannot be read: stop and name the first, or leave them out and name them all."""
    labels: dict[str, str]
    """Own emotion codes to words of the vocabulary, for manifests; empty keeps the codes."""
    cache_dir: Resumable[str | None]
    """Where features are kept; null is $XDG_CACHE_HOME/ser_fl or ~/.cache/ser_fl."""
    num_speakers: Annotated[int, Field(ge=2)]
    """Virtual speakers, "builtin" only."""
    utterances_per_emotion: Count
    """Utterances of each emotion and speaker, "builtin" only."""


@stage
class FrontendConfig:
    """Log-mel spectrogram of clips repeated to one length."""

    name: str
    sample_rate_hz: Annotated[int, Field(ge=4000, le=768_000)]
    window_samples: Annotated[int, Field(ge=16, le=1 << 16)]
    hop_samples: Count
    num_mels: Annotated[int, Field(ge=8, le=4096)]
    fmin_hz: Annotated[float, Field(ge=0)]
    fmax_hz: Positive
    duration_s: Annotated[float, Field(gt=0, le=3600)]
    """Clips shorter than this are repeated, longer ones cut."""
    log_offset: Positive
    """The logarithm is taken of the mel magnitude plus this."""
    clip: Literal["training", "none"]
    """Box that features are clipped to and attacks stay in: per bin the log floor to the training maximum, or none."""

    def __post_init__(self) -> None:
        if self.fmax_hz > self.sample_rate_hz / 2 or self.fmin_hz >= self.fmax_hz:
            raise ValueError(
                f"frontend.fmax_hz must be above fmin_hz ({self.fmin_hz:g}) and at most half the sampling rate "
                f"({self.sample_rate_hz / 2:g}), got {self.fmax_hz:g}"
            )
        if self.num_samples < self.window_samples:
            raise ValueError(f"frontend.duration_s must hold one window, got {self.duration_s:g} s")

    @property
    def num_samples(self) -> int:
        """Length of a clip, T."""
        return round(self.duration_s * self.sample_rate_hz)

    @property
    def num_frames(self) -> int:
        """Frames of a clip, L, without centring."""
        return (self.num_samples - self.window_samples) // self.hop_samples + 1


@stage
class SplitConfig:
    """Which utterances train, select and test."""

    name: Literal["within_speaker", "speaker_independent", "published"]
    """within_speaker: the paper's, a share of every speaker's utterances. speaker_independent: no speaker in two parts.
    published: the corpus's or the manifest's own split column."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    """Draws the split; its own setting, so that runs of several seeds share one split."""
    test_fraction: Share
    """within_speaker: share of every speaker's utterances that is the pooled test set."""
    validation_fraction: Share
    """within_speaker: share of every speaker's remaining utterances that selects the round."""
    test_speakers: tuple[Speaker, ...]
    """speaker_independent: named test speakers; empty: folds."""
    validation_speakers: tuple[Speaker, ...]
    """speaker_independent: named validation speakers; empty: drawn."""
    fold: Amount
    """speaker_independent without named speakers: which fold is left out, from 0."""
    num_test_speakers: Count
    num_validation_speakers: Count

    def __post_init__(self) -> None:
        for setting in ("test_speakers", "validation_speakers", "fold"):
            if self.name != "speaker_independent" and getattr(self, setting):
                raise ValueError(
                    f"split.{setting} goes with split=speaker_independent, got {shown(getattr(self, setting))} with "
                    f"split={self.name}"
                )


@stage
class ClientsConfig:
    """How training utterances are spread over clients."""

    by: Literal["speaker", "session", "dirichlet", "iid"]
    num_clients: Count | None
    """For dirichlet and iid; null: as many as training speakers. For speaker and session: at most this many."""
    dirichlet_alpha: Positive
    """Label skew of "dirichlet": small is skewed, large is iid."""


@stage
class CRNNConfig:
    """Convolution blocks, bidirectional GRU, attention pooling."""

    name: Literal["crnn"]
    channels: Annotated[tuple[Count, ...], Field(min_length=3)]
    """Output channels of each convolution block."""
    hidden: Count
    """Units of the GRU in each direction."""
    norm: Literal["batch", "renorm", "group"]
    dropout: Share


@stage
class VGG15Config:
    """VGG-15 of the authors' code: 13 convolutions, global average pooling, two dense layers."""

    name: Literal["vgg15"]
    norm: Literal["batch", "renorm", "group"]


@stage
class ResNetConfig:
    """The residual network of the authors' code."""

    name: Literal["resnet"]
    norm: Literal["batch", "renorm", "group"]
    dropout: Share


ModelConfig = Annotated[CRNNConfig | VGG15Config | ResNetConfig, Field(discriminator="name")]


@stage
class OptimiserConfig:
    """Optimiser of a client's local epochs; new at every round unless `federation.keep_optimiser`."""

    name: Literal["adam", "adamw", "sgd"]
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    momentum: Share
    """sgd only."""
    schedule: Literal["constant", "cosine"]
    """Over rounds: constant, or a cosine down to `final_fraction` of the rate at round `decay_rounds`; of the server's
    rate where it has one (`federation.server_optimiser=adam`)."""
    decay_rounds: Count
    final_fraction: Fraction


@stage
class AugmentationConfig:
    """Batched augmentation of training features."""

    roll: bool
    """Rotate clips in time by a random number of frames: clips are repeated, so a rotation is a later start."""
    time_masks: Amount
    max_time_mask: Amount
    """Frames of one mask at most."""
    mel_masks: Amount
    max_mel_mask: Amount
    """Mel bins of one mask at most."""
    label_smoothing: Share
    max_mel_warp: Share = 0.0
    """Stretch or squeeze the mel axis by up to this share: another vocal tract."""
    max_equalisation: NonNegative = 0.0
    """Add a smooth curve over mel bins of up to this many standardised log-mel units: another microphone or room."""
    splice: Proportion = 0.0
    """Share of utterances that go on, from a random frame, as another of their batch with the same emotion."""


@stage
class ObjectiveConfig:
    """What a training step minimises: the loss on clean utterances, or on a mix with adversarial ones."""

    name: Literal["clean", "fgsm", "bim", "pgd", "fast", "free", "trades"]
    """fgsm, bim, pgd: by one of the recipes below. fast (Wong et al., arXiv 2001.03994) and free (Shafahi et al., arXiv
    1904.12843): adversarial training for the price of two training passes a step, and of one. trades (Zhang et al.,
    arXiv 1901.08573): the clean loss, and how far predictions move within the budget."""
    recipe: Literal["per_round", "per_step"]
    """per_round: the paper's. At the start of a round a client draws a random share of its utterances, makes
    adversarial copies with the received model and trains on that share and its copies. per_step: a share of every
    batch is replaced by its adversarial version."""
    from_round: Count
    """First adversarial round; the paper starts at 2."""
    fraction: Fraction
    """The share, of utterances or of a batch."""
    epsilon: Epsilon
    """L-infinity budget, in standardised log-mel units."""
    steps: Count
    step_size: Positive | None
    """Null: epsilon / 4, and epsilon for one step; 1.25 epsilon for fast."""
    random_start: bool
    warm_up_rounds: Amount = 0
    """Epsilon grows from 0 to its full value over so many adversarial rounds; 0: full from the first."""
    beta: Positive | None = None
    """trades: weight of the divergence between clean and adversarial predictions."""
    replays: Count | None = None
    """free: how many times in a row each minibatch is trained on. An epoch then takes one in so many minibatches, and
    costs as many passes as ever. Its default is for the config.yaml of runs from before it was a setting."""

    def __post_init__(self) -> None:
        what_they_are: dict[str, dict[str, object]] = {
            "fast": {"recipe": "per_step", "steps": 1, "random_start": True, "fraction": 1.0},
            "free": {"recipe": "per_step", "steps": 1, "random_start": False, "fraction": 1.0},
            "trades": {"recipe": "per_step", "random_start": True, "fraction": 1.0},
        }
        for setting, needed in what_they_are.get(self.name, {}).items():
            given = getattr(self, setting)
            if given != needed:
                raise ValueError(
                    f"objective.{setting} must be {_as_yaml(needed)} with objective={self.name}, got {_as_yaml(given)}"
                )
        if self.name == "free" and self.replays is None:
            raise ValueError("objective=free needs objective.replays of at least 1, got null")
        if self.name == "trades" and self.beta is None:
            raise ValueError("objective=trades needs objective.beta above 0, got null")
        for setting, given, owner in (("replays", self.replays, "free"), ("beta", self.beta, "trades")):
            if self.name != owner and given is not None:
                raise ValueError(
                    f"objective.{setting} goes with objective={owner}, got {given:g} with objective={self.name}"
                )


@stage
class SelectionConfig:
    """The attack on validation utterances in rounds that measure robust UAR, and what selects the best round."""

    by: Literal["clean", "robust"]
    robust_every: Amount
    """Measure robust validation UAR every so many rounds; 0: never."""
    epsilon: Epsilon
    steps: Count
    every: Count = 1
    """Score the model on validation utterances every so many rounds, and after the last of `federation.num_rounds`.
    `federation.patience` ends after a round that is scored."""


@stage
class FederationConfig:
    """The round loop."""

    name: Literal["federated", "centralised", "local_only"]
    """federated: FedAvg. centralised: one client with all training data. local_only: no averaging."""
    num_rounds: Count
    patience: Amount
    """Stop after so many rounds without a new best; 0: never."""
    fraction_train: Fraction
    """Share of clients sampled each round."""
    local_epochs: Count
    batch_size: Count
    min_clients: Count
    """A round with fewer updates stops the run."""
    keep_optimiser: bool
    """Carry each client's optimiser state to its next round; FedAvg starts anew."""
    freeze_norm_from: Amount
    """From this round on, batch norm keeps the averaged statistics it received, while clients train too; 0: never.
    Else a client normalises by its own speaker while it trains and by the average of all when it is tested. Not of
    `model.norm=renorm`, which trains what is tested, and of group norm, which has no statistics."""
    server_momentum: Share
    """Momentum of the server over rounds (FedAvgM; 0 is FedAvg), or of its Adam (beta 1). Not for local_only, where
    nothing is averaged."""
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

    def __post_init__(self) -> None:
        for setting, given in (("server_momentum", self.server_momentum), ("weight_average", self.weight_average)):
            if self.name == "local_only" and given:
                raise ValueError(
                    f"federation.{setting} must be 0 with federation=local_only, which averages nothing, got {given:g}"
                )
        if self.name == "local_only" and self.server_optimiser != "momentum":
            raise ValueError(
                "federation.server_optimiser must be momentum (at 0) with federation=local_only, which averages "
                f"nothing, got {self.server_optimiser}"
            )
        for setting in ("server_learning_rate", "server_second_momentum", "server_tau"):
            given = getattr(self, setting)
            if self.server_optimiser == "adam" and given is None:
                raise ValueError(
                    f"federation.{setting} is needed with federation.server_optimiser=adam: start from "
                    "federation=federated_adam, or federated_sgd"
                )
            if self.server_optimiser != "adam" and given is not None:
                raise ValueError(
                    f"federation.{setting} goes with federation.server_optimiser=adam, got {given:g} with "
                    f"{self.server_optimiser}"
                )


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
    engine: Resumable[Literal["auto", "trainer", "loop"]] = "auto"
    """trainer: Lightning's Trainer takes every client's steps. loop: the same steps without it, to the same bits, for
    runs without callbacks. auto: the trainer where there are callbacks, installed ones included. Its default is as
    that of `workers`."""
    workers: Resumable[Workers] = "auto"
    """Worker processes, at most the clients of a round. auto: as many as find `threads` cores each, or one a GPU; more
    workers than GPUs share them in turns. Its default is for the config.yaml of runs from before it was a setting."""

    superlink: Resumable[str | None] = None
    """flower: HOST:PORT of the SuperLink that the run is given to; null simulates. Defaults are as those above."""
    root_certificates: Resumable[str | None] = None
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
        for setting, given in (("superlink", self.superlink), ("root_certificates", self.root_certificates)):
            if self.name != "flower" and given is not None:
                raise ValueError(f"executor.{setting} goes with executor=flower, got {given!r} with {self.name}")
        if self.superlink is not None and not re.fullmatch(
            r"[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", self.superlink
        ):
            raise ValueError(f"executor.superlink must be HOST:PORT, got {self.superlink!r}")


@stage
class TrackingConfig:
    """Beside the run folder, which is always written."""

    backend: Literal["wandb", "tensorboard", "none"]
    mode: Literal["auto", "online", "offline"]
    """auto: online where an API key is found, else offline."""
    project: str
    entity: str | None
    group: str | None


@stage
class Config:
    """One experiment."""

    experiment: Resumable[str]
    """Name: the middle of the run folder's path."""
    seed: Amount
    """Initial weights, cohorts, batches, dropout, random starts."""
    precision: Literal["auto", Precision]
    """Of the clients' training and of the attack in it; evaluation and benchmark run in fp32. auto: bf16-mixed where it
    is faster on this machine, found by a measurement at the start and written into the run's config.yaml."""
    run_dir: Resumable[str | None]
    """The run folder; null is runs/<experiment>/<date-time>-<seed>."""
    resume: Resumable[bool]
    """Go on from the last checkpoint of `run_dir`, or of the newest run with the same configuration."""
    data: DataConfig
    frontend: FrontendConfig
    split: SplitConfig
    clients: ClientsConfig
    model: ModelConfig
    optimiser: OptimiserConfig
    augmentation: AugmentationConfig
    objective: ObjectiveConfig
    selection: SelectionConfig
    federation: FederationConfig
    executor: ExecutorConfig
    tracking: Resumable[TrackingConfig]
    objects: dict[str, str] = field(default_factory=dict)
    """What `ser_fl.train` was given as objects, by qualified name: a run that no configuration alone repeats."""
    profile: Resumable[bool] = False
    """Measure where the time of a round goes: a table at the end, and `profile.json`. No result depends on it. Its
    default is for the config.yaml of runs from before it was a setting."""

    def __post_init__(self) -> None:
        is_elsewhere = self.executor.name == "flower" and self.executor.superlink is not None
        if self.data.name != "builtin" and self.data.root is None and not is_elsewhere:
            raise ValueError(f"data={self.data.name} needs data.root=DIR, the folder of the corpus")
        needed = 16 if self.model.name == "crnn" else 32
        if min(self.frontend.num_mels, self.frontend.num_frames) < needed:
            raise ValueError(
                f"{self.model.name} needs at least {needed} mel bins and {needed} frames, got {self.frontend.num_mels} "
                f"and {self.frontend.num_frames}: raise frontend.num_mels or frontend.duration_s"
            )
        if self.executor.name == "flower":
            self._check_flower()
        if self.selection.by == "robust" and self.selection.robust_every == 0:
            raise ValueError("selection.by=robust needs selection.robust_every of at least 1, got 0")
        self._check_patience()

    def _check_patience(self) -> None:
        """No run stops before what it waits for was measured again."""
        name = "robust_every" if self.selection.by == "robust" else "every"
        every, what = getattr(self.selection, name), "robust UAR" if self.selection.by == "robust" else "UAR"
        if 0 < self.federation.patience < every:
            raise ValueError(
                f"federation.patience must be at least selection.{name} ({every}), so that {what} is measured before "
                f"the run stops, got {self.federation.patience}"
            )

    def _check_flower(self) -> None:
        """What hosts that keep their data to themselves cannot do."""
        if self.clients.by not in ("speaker", "session"):
            raise ValueError(
                f"clients.by must be speaker or session with executor=flower, got {self.clients.by}: it would deal out "
                "utterances that lie on different hosts"
            )
        if self.federation.name != "federated":
            raise ValueError(f"executor=flower goes with federation=federated, got federation={self.federation.name}")


_ADAPTER: TypeAdapter[Config] = TypeAdapter(Config)


def parse(settings: Mapping[str, Any]) -> Config:
    """Check settings and turn them into a `Config`.

    Raises:
        UserError: one line that names the first wrong setting, its value, and what is accepted.
    """
    try:
        return _ADAPTER.validate_python(dict(settings))
    except ValidationError as error:
        raise one_line(error, settings) from None


def dump(config: Config) -> dict[str, Any]:
    """Plain mapping of a configuration, for YAML and JSON: `parse(dump(config)) == config`."""
    plain: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return plain


def _as_yaml(value: object) -> str:
    """As the user would write it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def one_line(error: ValidationError, settings: Mapping[str, Any]) -> UserError:
    """The first problem in words; unknown settings before missing ones, since a misspelt setting is both."""
    problem: Any = min(error.errors(), key=lambda found: found["type"] not in _UNKNOWN)
    path = [str(part) for part in problem["loc"] if "[" not in str(part)]  # without the branch of a union of types
    if len(path) > 1 and path[0] == "model":
        path.pop(1)  # the tag of the model union
    key, given = ".".join(path), problem["input"]
    if problem["type"] in _UNKNOWN:
        return unknown_name("setting", key, _siblings(path[:-1], settings, path[-1]))
    if problem["type"] == "value_error":
        return UserError(str(problem["ctx"]["error"]))
    if problem["type"] in ("missing", "missing_argument"):
        return UserError(f"setting {key} is missing: start from a file of configs/ or from a run's config.yaml")
    if problem["type"] == "union_tag_not_found":
        return UserError(f"setting {key}.name is missing: start from a file of configs/ or from a run's config.yaml")
    if problem["type"] == "union_tag_invalid":
        tags = re.findall(r"'(\w+)'", str(problem["ctx"]["expected_tags"]))
        return unknown_name("model", str(problem["ctx"]["tag"]), tags)
    if problem["type"] == "too_short" and problem["ctx"]["min_length"] == 1:
        return UserError(f"{key} must name one at least, got {shown(given)}")
    if problem["type"] == "literal_error":
        return unknown_name(key, str(given), re.findall(r"'([^']+)'", problem["ctx"]["expected"]))
    wanted = problem["msg"].removeprefix("Input should be ")
    return UserError(f"{key} must be {wanted}, got {shown(given)}")


def _siblings(path: Sequence[str], settings: Mapping[str, Any], wrong: str) -> list[str]:
    node: Any = settings
    for part in path:
        node = node[part]
    prefix = "".join(f"{part}." for part in path)
    return [prefix + str(name) for name in node if name != wrong]
