"""How a client trains: the network, the optimiser, what a step minimises, and the flags of Lightning's Trainer."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ser_fl.config.values import (
    Amount,
    Count,
    Epsilon,
    Fraction,
    NonNegative,
    Positive,
    Share,
    as_yaml,
    is_count,
    must_be,
    refuse_given,
    stage,
)

Norm = Literal["batch", "renorm", "group"]


@stage
class CRNNConfig:
    """Convolution blocks, bidirectional GRU, attention pooling."""

    least_size: ClassVar[int] = 16
    """Mel bins and frames that it needs."""

    name: Literal["crnn"]
    channels: Annotated[tuple[Count, ...], Field(min_length=3)]
    """Output channels of each convolution block."""
    hidden: Count
    """Units of the GRU in each direction."""
    norm: Norm
    """batch: batch norm. renorm: batch renormalisation (Ioffe, arXiv 1702.03275). group: group norm."""
    dropout: Share
    """Before the GRU, and before the last layer."""


@stage
class VGG15Config:
    """VGG-15 of the authors' code: 13 convolutions, global average pooling, two dense layers."""

    least_size: ClassVar[int] = 32

    name: Literal["vgg15"]
    norm: Norm
    """As of crnn."""


@stage
class ResNetConfig:
    """The residual network of the authors' code."""

    least_size: ClassVar[int] = 32

    name: Literal["resnet"]
    norm: Norm
    """As of crnn."""
    dropout: Share
    """After pooling."""


@stage
class PooledConfig:
    """Mean and deviation over time, and dense layers: for features of an encoder (`frontend=ge2e`, `transformers`)."""

    least_size: ClassVar[int] = 1

    name: Literal["pooled"]
    num_features: Count | None
    """Of one layer of the front end; null is that."""
    hidden: Amount
    """Units of the dense layer between; 0: none, a linear classifier."""
    attention: bool
    """Weigh frames by what they hold, in place of all alike."""
    dropout: Share
    """Before each dense layer."""
    deviation: bool | None = None
    """Pool the deviation over time beside the mean; null: unless the front end did (`frontend.pool=clip`)."""
    layers: Count | None = None
    """Of the front end, of which a weighted sum is pooled (`frontend.layer=all`); null is that."""


ModelConfig = Annotated[CRNNConfig | VGG15Config | ResNetConfig | PooledConfig, Field(discriminator="name")]


@stage
class OptimiserConfig:
    """Optimiser of a client's local epochs; new at every round unless `federation.keep_optimiser`."""

    name: Literal["adam", "adamw", "sgd"]
    """torch.optim's Adam, AdamW or SGD."""
    learning_rate: Positive
    """In the first round."""
    weight_decay: NonNegative
    """L2 penalty of adam and sgd; decoupled in adamw."""
    momentum: Share
    """sgd only."""
    schedule: Literal["constant", "cosine"]
    """Over rounds: constant, or a cosine down to `final_fraction` of the rate at round `decay_rounds`; of the server's
    rate where it has one (`federation.server_optimiser=adam`)."""
    decay_rounds: Count
    """Rounds in which a cosine falls; then the rate stays."""
    final_fraction: Fraction
    """What is left of the rate at last."""


_RECIPES: Mapping[str, Mapping[str, object]] = {
    "fast": {"recipe": "per_step", "steps": 1, "random_start": True, "fraction": 1.0},
    "free": {"recipe": "per_step", "steps": 1, "random_start": False, "fraction": 1.0},
    "trades": {"recipe": "per_step", "random_start": True, "fraction": 1.0},
}
"""What each of these objectives is, and what it cannot have in place of that."""


@stage
class ObjectiveConfig:
    """What a training step minimises: the loss on clean utterances, or on a mix with adversarial ones."""

    name: Literal["clean", "fgsm", "bim", "pgd", "fast", "free", "trades", "domain_adversarial"]
    """fgsm, bim, pgd: by one of the recipes below. fast (Wong et al., arXiv 2001.03994) and free (Shafahi et al., arXiv
    1904.12843): adversarial training for the price of two training passes a step, and of one. trades (Zhang et al.,
    arXiv 1901.08573): the clean loss, and how far predictions move within the budget. domain_adversarial (Ganin et al.,
    arXiv 1505.07818): the clean loss, and a representation by which a client's speakers cannot be told apart."""
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
    """Of the attack; one for fgsm, fast and free."""
    step_size: Positive | None
    """Null: epsilon / 4, and epsilon for one step; 1.25 epsilon for fast."""
    random_start: bool
    """Whether the attack starts at a random point of the ball."""
    warm_up_rounds: Amount = 0
    """Epsilon, or the weight of domain_adversarial, grows from 0 to its full value over so many adversarial rounds; 0:
    full from the first."""
    beta: Positive | None = None
    """trades: weight of the divergence between clean and adversarial predictions."""
    snr_db: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """fgsm, bim and pgd once a round: recordings are moved within this signal-to-noise ratio in dB, by the gradient
    through the front end, and trained on as what it makes of them; null: features are moved, within epsilon."""
    replays: Count | None = None
    """free: how many times in a row each minibatch is trained on. An epoch then takes one in so many minibatches, and
    costs as many passes as ever."""
    weight: Positive | None = None
    """domain_adversarial: of the reversed gradient, lambda in the paper."""

    def __post_init__(self) -> None:
        for setting, needed in _RECIPES.get(self.name, {}).items():
            if (given := getattr(self, setting)) != needed:
                raise ValueError(
                    f"objective.{setting} must be {as_yaml(needed)} with objective={self.name}, got {as_yaml(given)}"
                )
        if self.snr_db is not None:
            wanted = {"recipe": "per_round", "step_size": None, "warm_up_rounds": 0}
            if self.name not in ("fgsm", "bim", "pgd") or any(getattr(self, word) != wanted[word] for word in wanted):
                raise ValueError(
                    f"objective.snr_db={self.snr_db:g} goes with objective=fgsm, bim or pgd, recipe=per_round, "
                    f"step_size=null and warm_up_rounds=0, got {self.name}, {self.recipe}, {as_yaml(self.step_size)} "
                    f"and {self.warm_up_rounds}"
                )
        for setting, owner, least in (
            ("replays", "free", "of at least 1"),
            ("beta", "trades", "above 0"),
            ("weight", "domain_adversarial", "above 0"),
        ):
            if self.name != owner:
                chosen = f"objective={self.name}"
                refuse_given(self, "objective", [setting], owner=f"objective={owner}", instead=chosen)
            elif getattr(self, setting) is None:
                raise ValueError(f"objective={owner} needs objective.{setting} {least}, got null")


EXCLUDED: Mapping[str, str] = {
    flag: reason
    for flags, reason in {
        "max_epochs min_epochs max_steps min_steps max_time fast_dev_run overfit_batches "
        "reload_dataloaders_every_n_epochs": (
            "a client's round is federation.local_epochs epochs of federation.local_batches batches"
        ),
        "accelerator devices num_nodes strategy plugins sync_batchnorm use_distributed_sampler": (
            "a client trains on one device: executor.accelerator, executor.workers and executor.threads say where"
        ),
        "check_val_every_n_epoch val_check_interval num_sanity_val_steps limit_val_batches limit_test_batches "
        "limit_predict_batches inference_mode": "a client validates nothing, the server does: selection.every",
        "enable_checkpointing default_root_dir log_every_n_steps": (
            "clients write no files: the run folder has the figures and the checkpoint of every round"
        ),
        "enable_progress_bar enable_model_summary profiler barebones": (
            "clients draw no bars and print no tables: profile=true shows where the time goes"
        ),
        "logger": "the run is tracked as one: tracking=wandb or tracking=tensorboard",
        "callbacks": "they are given from Python: ser_fl.train(config, callbacks=[...])",
        "precision": "the whole run has one: precision=32-true, bf16-mixed or 16-mixed",
    }.items()
    for flag in flags.split()
}
"""Flags of Lightning's Trainer that a client's round has no room for, and what there is instead."""


_LIMIT = "trainer.limit_train_batches must be a number of batches from 1 up, or a share above 0.0 up to 1.0"
Limit = Annotated[
    int | float | None,
    must_be(_LIMIT, lambda given: given is None or is_count(given) or (isinstance(given, float) and 0 < given <= 1)),
]
_DETERMINISTIC = "trainer.deterministic must be true, false or warn"
Deterministic = Annotated[bool | Literal["warn"], must_be(_DETERMINISTIC, lambda given: given in (True, False, "warn"))]


@stage
class TrainerConfig:
    """Flags of Lightning's Trainer for a client's local epochs; the defaults are Lightning's. They need
    executor.engine=trainer, and weights depend on them, so that a resumed run must have the same.
    """

    gradient_clip_val: Positive | None = None
    """Gradients are clipped to it before each step; null: not."""
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    """norm: of all parameters together (L2). value: of every entry."""
    accumulate_grad_batches: Count = 1
    """An optimiser's step takes the gradients of so many batches."""
    limit_train_batches: Limit = None
    """Batches of each local epoch: a number of them, or a share of all; null: all."""
    deterministic: Deterministic = False
    """Use deterministic kernels only, and stop, or warn, where torch has none."""
    benchmark: bool = False
    """Let cuDNN try which algorithm is fastest for each shape: faster, and bits may differ from run to run."""
    detect_anomaly: bool = False
    """Name the operation whose gradient is not a number, and stop; slow."""

    def __post_init__(self) -> None:
        if self.gradient_clip_val is None and self.gradient_clip_algorithm != "norm":
            raise ValueError(
                f"trainer.gradient_clip_algorithm={self.gradient_clip_algorithm} needs trainer.gradient_clip_val above "
                "0, got null"
            )
        if self.deterministic and self.benchmark:
            raise ValueError("trainer.benchmark must be false with trainer.deterministic, got true: it picks by speed")
