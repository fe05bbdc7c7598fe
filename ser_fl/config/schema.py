"""The typed schema of ``configs/``, checked once, here, at the border: a file a stage, put together in `Config`.

The YAML files hold every default; the classes hold what each setting means and which values it may take. Inside the
package a `Config` is trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from ser_fl.config.augmentation import AugmentationConfig as AugmentationConfig
from ser_fl.config.clients import ClientsConfig as ClientsConfig
from ser_fl.config.data import DataConfig as DataConfig
from ser_fl.config.executor import ExecutorConfig as ExecutorConfig
from ser_fl.config.federation import FederationConfig as FederationConfig
from ser_fl.config.frontend import FrontendConfig as FrontendConfig
from ser_fl.config.messages import one_line as one_line
from ser_fl.config.model import CRNNConfig as CRNNConfig
from ser_fl.config.model import ModelConfig as ModelConfig
from ser_fl.config.model import ResNetConfig as ResNetConfig
from ser_fl.config.model import VGG15Config as VGG15Config
from ser_fl.config.objective import ObjectiveConfig as ObjectiveConfig
from ser_fl.config.objects import ObjectConfig, OrOwn, Own, refusal
from ser_fl.config.optimiser import OptimiserConfig as OptimiserConfig
from ser_fl.config.resumable import Resumable
from ser_fl.config.selection import SelectionConfig as SelectionConfig
from ser_fl.config.split import SplitConfig as SplitConfig
from ser_fl.config.tracking import TrackingConfig as TrackingConfig
from ser_fl.config.trainer import TrainerConfig, check_engine
from ser_fl.config.values import Amount as Amount
from ser_fl.config.values import Count as Count
from ser_fl.config.values import Epsilon as Epsilon
from ser_fl.config.values import Folder
from ser_fl.config.values import Positive as Positive
from ser_fl.config.values import stage as stage

CONFIG_SCHEMA = 1
"""Version of a run's ``config.yaml``."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@stage
class Config:
    """One experiment."""

    experiment: Resumable[str]
    """Name: the middle of the run folder's path."""
    seed: Amount
    """Initial weights, cohorts, batches, dropout, random starts."""
    precision: Literal["auto", Precision]
    """Of the clients' training and of the attack in it; evaluation and benchmark run in fp32. auto: bf16-mixed where it
    is faster on this machine, found by a measurement at the start and written into the run's config.yaml. 16-mixed, for
    GPUs, scales the gradients of float16, and attacks in fp32."""
    run_dir: Resumable[Folder | None]
    """The run folder; null is runs/<experiment>/<date-time>-<seed>."""
    resume: Resumable[bool]
    """Go on from the last checkpoint of `run_dir`, or of the newest run with the same configuration."""
    data: DataConfig
    frontend: FrontendConfig
    split: SplitConfig
    clients: ClientsConfig
    model: Annotated[ModelConfig | ObjectConfig, OrOwn(ModelConfig)]
    optimiser: OptimiserConfig
    augmentation: AugmentationConfig
    objective: Annotated[ObjectiveConfig | ObjectConfig, OrOwn(ObjectiveConfig)]
    selection: SelectionConfig
    federation: FederationConfig
    executor: ExecutorConfig
    tracking: Resumable[TrackingConfig]
    objects: dict[str, str] = field(default_factory=dict)
    """What `ser_fl.train` was given as objects, by qualified name: a run that no configuration alone repeats."""
    profile: Resumable[bool] = False
    """Measure where the time of a round goes: a table at the end, and `profile.json`. No result depends on it. The
    default keeps older config files loadable."""
    callbacks: tuple[Own, ...] = ()
    """Lightning callbacks of your own."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def stock_model(self) -> ModelConfig:
        """The settings of one of our networks; a `UserError` where it is the user's own."""
        if isinstance(self.model, ObjectConfig):
            raise refusal(self.model)
        return self.model

    @property
    def stock_objective(self) -> ObjectiveConfig:
        """The settings of one of our objectives; a `UserError` where it is the user's own."""
        if isinstance(self.objective, ObjectConfig):
            raise refusal(self.objective)
        return self.objective

    def __post_init__(self) -> None:
        check_engine(self.trainer, self.executor.engine, self.precision, self.executor.accelerator)
        is_elsewhere = self.executor.name == "flower" and self.executor.superlink is not None
        if self.data.name != "builtin" and self.data.root is None and not is_elsewhere:
            raise ValueError(f"data={self.data.name} needs data.root=DIR, the folder of the corpus")
        size, model = (self.frontend.num_mels, self.frontend.num_frames), self.model
        if not isinstance(model, ObjectConfig) and min(size) < model.least_size:
            raise ValueError(
                f"{model.name} needs at least {model.least_size} mel bins and {model.least_size} frames, got "
                f"{size[0]} and {size[1]}: raise frontend.num_mels or frontend.duration_s"
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
