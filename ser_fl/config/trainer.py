"""The flags of Lightning's Trainer that a client's local epochs take, and why they do not take the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from ser_fl.config.values import Count, Positive, stage
from ser_fl.errors import UserError, shown

_LENGTH = "a client's round is federation.local_epochs epochs of federation.local_batches batches"
_ONE_DEVICE = "a client trains on one device: executor.accelerator, executor.workers and executor.threads say where"
_VALIDATION = "a client validates nothing, the server does: selection.every"
_FILES = "clients write no files: the run folder has the figures and the checkpoint of every round"
_QUIET = "clients draw no bars and print no tables: profile=true shows where the time goes"

EXCLUDED: Mapping[str, str] = {
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"), _LENGTH),
    **dict.fromkeys(("fast_dev_run", "overfit_batches", "reload_dataloaders_every_n_epochs"), _LENGTH),
    **dict.fromkeys(("accelerator", "devices", "num_nodes", "strategy", "plugins"), _ONE_DEVICE),
    **dict.fromkeys(("sync_batchnorm", "use_distributed_sampler"), _ONE_DEVICE),
    **dict.fromkeys(("check_val_every_n_epoch", "val_check_interval", "num_sanity_val_steps"), _VALIDATION),
    **dict.fromkeys(("limit_val_batches", "limit_test_batches", "limit_predict_batches"), _VALIDATION),
    **dict.fromkeys(("inference_mode",), _VALIDATION),
    **dict.fromkeys(("enable_checkpointing", "default_root_dir", "log_every_n_steps"), _FILES),
    **dict.fromkeys(("enable_progress_bar", "enable_model_summary", "profiler", "barebones"), _QUIET),
    "logger": "the run is tracked as one: tracking=wandb or tracking=tensorboard",
    "callbacks": "they are given from Python: ser_fl.train(config, callbacks=[...])",
    "precision": "the whole run has one: precision=32-true, bf16-mixed or 16-mixed",
}
"""Flags that a client's round has no room for, and what there is instead."""


def refuse_excluded(names: Iterable[str]) -> None:
    """Say why a flag of Lightning's is not taken.

    Raises:
        UserError: one of them is in `EXCLUDED`.
    """
    for name in names:
        if name in EXCLUDED:
            raise UserError(f"trainer.{name} cannot be set: {EXCLUDED[name]}")


def _check_limit(given: object) -> object:
    if given is None or (type(given) is int and given >= 1) or (type(given) is float and 0 < given <= 1):
        return given
    raise ValueError(
        f"trainer.limit_train_batches must be a number of batches from 1 up, or a share above 0.0 up to 1.0, got "
        f"{shown(given)}"
    )


def _check_deterministic(given: object) -> object:
    if given in (True, False, "warn"):
        return given
    raise ValueError(f"trainer.deterministic must be true, false or warn, got {shown(given)}")


@stage
class TrainerConfig:
    """Flags of Lightning's Trainer for a client's local epochs; the defaults are Lightning's.

    They need executor.engine=trainer, and weights depend on them, so that a resumed run must have the same.
    """

    gradient_clip_val: Positive | None = None
    """Gradients are clipped to it before each step; null: not."""
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    """norm: of all parameters together (L2). value: of every entry."""
    accumulate_grad_batches: Count = 1
    """An optimiser's step takes the gradients of so many batches."""
    limit_train_batches: Annotated[int | float | None, BeforeValidator(_check_limit)] = None
    """Batches of each local epoch: a number of them, or a share of all; null: all."""
    deterministic: Annotated[bool | Literal["warn"], BeforeValidator(_check_deterministic)] = False
    """Use deterministic kernels only, and stop, or warn, where torch has none."""
    benchmark: bool = False
    """Let cuDNN try which algorithm is fastest for each shape: faster, and bits may differ from run to run."""
    detect_anomaly: bool = False
    """Name the operation whose gradient is not a number, and stop; slow."""

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, given: Any) -> Any:
        refuse_excluded(getattr(given, "kwargs", given) or ())
        return given

    def __post_init__(self) -> None:
        if self.gradient_clip_val is None and self.gradient_clip_algorithm != "norm":
            raise ValueError(
                f"trainer.gradient_clip_algorithm={self.gradient_clip_algorithm} needs trainer.gradient_clip_val above "
                "0, got null"
            )
        if self.deterministic and self.benchmark:
            raise ValueError("trainer.benchmark must be false with trainer.deterministic, got true: it picks by speed")

    @property
    def changed(self) -> dict[str, Any]:
        """The flags that are not at Lightning's defaults."""
        plain = TrainerConfig()
        return {name: value for name, value in vars(self).items() if value != getattr(plain, name)}


def check_engine(trainer: TrainerConfig, engine: str, precision: str, accelerator: str) -> None:
    """Refuse what the loop that stands in for a Trainer does not do.

    Raises:
        ValueError: `executor.engine` is "loop", and a flag or the precision asks for more; or float16 on a CPU.
    """
    if engine == "loop":
        for name, value in trainer.changed.items():
            raise ValueError(
                f"trainer.{name}={shown(value)} needs executor.engine=trainer, got loop, which has no flags"
            )
        if precision == "16-mixed":
            raise ValueError("precision=16-mixed needs executor.engine=trainer, got loop, which scales no gradients")
    if precision == "16-mixed" and accelerator == "cpu":
        raise ValueError("precision=16-mixed needs a GPU, got executor.accelerator=cpu: take bf16-mixed or 32-true")
