"""The typed schema of ``configs/``, checked once, here, at the border: related stages share a file.

The YAML files hold every default; the classes hold what each setting means and which values it may take. Inside the
package a `Config` is trusted.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, replace
from functools import update_wrapper
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import ValidationError

from ser_fl.config.adversaries import AdversariesConfig
from ser_fl.config.data import (
    AugmentationConfig,
    ClientsConfig,
    DataConfig,
    Enrolment,
    NormalisationConfig,
    SplitConfig,
)
from ser_fl.config.federation import ExecutorConfig, FederationConfig, SelectionConfig, TrackingConfig
from ser_fl.config.frontend import AnyFrontend, FrontendConfig, TransformersConfig
from ser_fl.config.resumable import Resumable
from ser_fl.config.training import EXCLUDED, ModelConfig, ObjectiveConfig, OptimiserConfig, PooledConfig, TrainerConfig
from ser_fl.config.values import Amount, Folder, ObjectConfig, OrOwn, Own, stage
from ser_fl.errors import UserError, shown, unknown_name
from ser_fl.files import adapter

CONFIG_SCHEMA = 1
"""Version of a run's ``config.yaml``."""

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

_Checked = TypeVar("_Checked")
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


@stage
class Config:
    experiment: Resumable[str]
    """Name of the file of `configs/experiment` that it comes from."""
    seed: Amount
    """Initial weights, cohorts, batches, dropout, random starts."""
    precision: Literal["auto", Precision]
    """Of the clients' training and of the attack in it; evaluation and benchmark run in fp32. auto: bf16-mixed where it
    is faster on this machine, found by a measurement at the start and written into the run's config.yaml. 16-mixed, for
    GPUs, scales the gradients of float16, and attacks in fp32."""
    run_dir: Resumable[Folder | None]
    """The run folder; null is runs/<run_name>/<date-time>-<seed>."""
    resume: Resumable[bool]
    """Go on from the last checkpoint of `run_dir`, or of the newest run with the same configuration; with more
    `federation.num_rounds`, from one that was done."""
    data: DataConfig
    frontend: AnyFrontend
    split: SplitConfig
    clients: ClientsConfig
    model: OrOwn[ModelConfig]
    optimiser: OptimiserConfig
    augmentation: AugmentationConfig
    objective: OrOwn[ObjectiveConfig]
    selection: SelectionConfig
    federation: FederationConfig
    executor: ExecutorConfig
    tracking: Resumable[TrackingConfig]
    objects: dict[str, str] = field(default_factory=dict)
    """What `ser_fl.train` was given as objects, by qualified name: a run that no configuration alone repeats."""
    profile: Resumable[bool] = False
    """Measure where the time of a round goes: a table at the end, and `profile.json`. No result depends on it."""
    callbacks: tuple[Own, ...] = ()
    """Lightning callbacks of your own."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    run_name: Resumable[str | None] = None
    """Any text, for the run folder's path, the tracker, reports and the terminal; null: the experiment's name. It is no
    `experiment=`, where a misspelt name would train something else."""
    class_balance: Literal["none", "loss", "sampling"] = "none"
    """Of emotions in training, by each client's own counts, which stay with it. loss: an utterance's loss counts
    N / (emotions present * count of its emotion), scikit-learn's ``class_weight="balanced"``. sampling: a local epoch
    draws as many utterances as ever, each emotion equally often. Nobody makes up for emotions that a client lacks."""
    init_from: Resumable[Folder | None] = None
    """Fine-tuning: folder of a run whose selected model gives the initial weights. Read before the first round only."""
    normalisation: NormalisationConfig = NormalisationConfig(name="pooled")
    enrolment: Enrolment = 10
    """With normalisation=speaker, what test speakers without training clips are scaled by: so many of their own test
    clips, unlabelled, drawn by `split.seed` and not scored; all of them, scored nevertheless (transductive); or none,
    the mean of training speakers (`normalisation.share_mean`)."""

    adversaries: AdversariesConfig = AdversariesConfig(name="none")

    @property
    def title(self) -> str:
        """What the run is called."""
        return self.run_name or self.experiment

    @property
    def runs_folder(self) -> Path:
        """Of the runs that are called so, where `run_dir` says nothing; without what no folder's name can hold."""
        name = re.sub(r"[/\0]", "_", self.title)
        return Path("runs", name if name.strip(".") else "_")

    @property
    def stock_objective(self) -> ObjectiveConfig:
        """The settings of one of our objectives; a `UserError` where it is the user's own."""
        if isinstance(self.objective, ObjectConfig):
            raise self.objective.refusal()
        return self.objective

    def __post_init__(self) -> None:
        executor, federation, model = self.executor, self.federation, self.model
        for flag in fields(self.trainer) if executor.engine == "loop" else ():
            if (value := getattr(self.trainer, flag.name)) != flag.default:
                raise ValueError(
                    f"trainer.{flag.name}={shown(value)} needs executor.engine=trainer, got loop, which has no flags"
                )
        if self.precision == "16-mixed" and executor.engine == "loop":
            raise ValueError("precision=16-mixed needs executor.engine=trainer, got loop, which scales no gradients")
        if self.precision == "16-mixed" and executor.accelerator == "cpu":
            raise ValueError("precision=16-mixed needs a GPU, got executor.accelerator=cpu: take bf16-mixed or 32-true")
        objective = getattr(self.objective, "name", "")
        if self.precision == "16-mixed" and objective in ("free", "domain_adversarial"):
            raise ValueError(
                f"objective={objective} steps by the training gradient, which precision=16-mixed scales until it "
                "overflows: take bf16-mixed or 32-true"
            )
        is_elsewhere = executor.name == "flower" and executor.superlink is not None
        if is_elsewhere and self.adversaries.name != "none":
            raise ValueError(
                f"adversaries={self.adversaries.name} goes with clients on this machine, got executor.superlink: nodes "
                "that are deployed refuse hostile clients"
            )
        if (lacking := self.data.lacks_folder) and not is_elsewhere:
            raise ValueError(lacking)
        if len(self.data.corpora) > 1 and (executor.name == "flower" or self.clients.num_clients is not None):
            refused = (
                "executor=flower" if executor.name == "flower" else f"clients.num_clients={self.clients.num_clients}"
            )
            raise ValueError(f"{refused} goes with one corpus, got {self.data.written}")
        if self.frontend.is_waveform and not isinstance(model, PooledConfig):
            raise ValueError("frontend.tune=lora needs model=pooled, which ends what begins with the encoder")
        if self.frontend.is_waveform and len(self.data.corpora) > 1:
            raise ValueError(
                f"frontend.tune=lora goes with one corpus, got {self.data.written}: features are the clips"
            )
        if self.frontend.is_waveform and self.normalisation.name == "speaker":
            raise ValueError("frontend.tune=lora goes with normalisation=pooled, got speaker: features are the clips")
        size = self.frontend.num_features // self.frontend.num_channels, self.frontend.num_frames
        if not isinstance(model, ObjectConfig) and min(size) < model.least_size:
            raise ValueError(
                f"{model.name} needs at least {model.least_size} mel bins and {model.least_size} frames, got "
                f"{size[0]} and {size[1]}: raise frontend.num_mels or frontend.duration_s"
            )
        if self.augmentation.mixup and objective not in ("", "clean"):
            raise ValueError(
                f"augmentation.mixup goes with objective=clean, got {objective}: an attack leads away from one true "
                "label, and mixed utterances have two"
            )
        if objective == "domain_adversarial":
            if self.clients.by == "speaker" and federation.name != "centralised":
                raise ValueError(
                    "objective=domain_adversarial tells a client's speakers apart, and each client is one speaker: "
                    "take clients.by=session, iid or dirichlet, or federation=centralised"
                )
            if self.augmentation.splice:
                raise ValueError("augmentation.splice joins speakers, which objective=domain_adversarial tells apart")
            if isinstance(model, PooledConfig) and not (model.hidden or model.attention or model.layers):
                raise ValueError(
                    "objective=domain_adversarial trains a layer below: model.hidden must be 1 or more, got 0"
                )
        if self.normalisation.name == "pooled" and self.enrolment != 10:
            raise ValueError(f"enrolment goes with normalisation=speaker, got {self.enrolment} with pooled")
        if not isinstance(self.frontend, FrontendConfig) or self.frontend.deltas:
            for name in ("mel_masks", "max_mel_warp", "max_equalisation"):
                if given := getattr(self.augmentation, name):
                    raise ValueError(
                        f"augmentation.{name} is of mel bins alone, which neither an encoder's features nor deltas "
                        f"are: got {given:g} with frontend={self.frontend.name}"
                    )
        if isinstance(model, PooledConfig):
            num_features, layers = self.frontend.pooled
            for name, its in (("num_features", num_features), ("layers", layers)):
                if getattr(model, name) not in (None, its):
                    raise ValueError(f"model.{name} must be the front end's {its}, got {getattr(model, name)}")
            deviation = (
                self.frontend.num_heard == self.frontend.num_mels if model.deviation is None else model.deviation
            )
            settled = replace(model, num_features=num_features, layers=layers, deviation=deviation)
            object.__setattr__(self, "model", settled)
        if isinstance(self.frontend, TransformersConfig) and is_elsewhere:
            raise ValueError(
                "frontend=transformers goes with clients on this machine, got executor.superlink: nodes have no encoder"
            )
        if executor.name == "flower" and self.clients.by not in ("speaker", "session"):
            raise ValueError(
                f"clients.by must be speaker or session with executor=flower, got {self.clients.by}: it would deal out "
                "utterances that lie on different hosts"
            )
        if executor.name == "flower" and federation.name != "federated":
            raise ValueError(f"executor=flower goes with federation=federated, got federation={federation.name}")
        if executor.name == "flower" and self.normalisation.name == "speaker" and self.enrolment == "none":
            raise ValueError(
                "enrolment=none goes with executor=serial or processes while training, got flower: no node knows what "
                "the mean of all is; ask for it afterwards, `ser-fl evaluate run=RUN enrolment=none`"
            )
        selection, is_robust = self.selection, self.selection.by == "robust"
        if is_robust and selection.robust_every == 0:
            raise ValueError("selection.by=robust needs selection.robust_every of at least 1, got 0")
        if (setting := self.split.without_validation) and selection.needs_validation:
            raise ValueError(
                f"selection.by={selection.by} with selection.robust_every={selection.robust_every} needs validation "
                f"utterances, and {setting}=0 leaves none: take selection=last selection.robust_every=0"
            )
        name, every = ("robust_every", selection.robust_every) if is_robust else ("every", selection.every)
        if selection.by != "last" and 0 < federation.patience < every:
            raise ValueError(
                f"federation.patience must be at least selection.{name} ({every}), so that "
                f"{'robust UAR' if is_robust else 'UAR'} is measured before the run stops, got {federation.patience}"
            )


def checked(kind: type[_Checked], settings: Mapping[str, Any]) -> _Checked:
    """Settings as their dataclass; the `UserError` names the first wrong one, its value, and what is accepted."""
    try:
        found: _Checked = adapter(cast(Any, kind)).validate_python(dict(settings))
        return found
    except ValidationError as error:
        raise _one_line(error, dict.fromkeys(kind.__annotations__) | dict(settings)) from None


def _one_line(error: ValidationError, settings: Mapping[str, Any]) -> UserError:
    """The first problem in words; unknown settings before missing ones, since a misspelt setting is both."""
    problem: Any = min(error.errors(), key=lambda found: found["type"] not in _UNKNOWN)
    kind, context, given = problem["type"], problem.get("ctx", {}), problem["input"]
    named = {0, len(problem["loc"]) - 1 if kind in _UNKNOWN else 0}  # by the user, whatever the characters
    path = [  # without the branch of a union of types
        str(part) for place, part in enumerate(problem["loc"]) if place in named or "[" not in str(part)
    ]
    for union in (["model"], ["federation", "aggregation"]):
        if len(path) > len(union) and path[: len(union)] == union:
            path.pop(len(union))  # the tag of the union
    key = ".".join(path)
    if kind in _UNKNOWN and path[0] == "trainer" and path[-1] in EXCLUDED:
        return UserError(f"{key} cannot be set: {EXCLUDED[path[-1]]}")
    if kind in _UNKNOWN:
        node: Any = settings
        for part in path[:-1]:  # one setting of a list may stand there without its list
            if isinstance(node, Sequence) and part.isdigit():
                node = node[int(part)]
            elif isinstance(node, Mapping):
                node = node.get(part, node)
        beside = [str(name) for name in node if name != path[-1]] if isinstance(node, Mapping) else []
        return unknown_name("setting", key, (".".join([*path[:-1], name]) for name in beside))
    if kind == "value_error":
        return UserError(str(context["error"]))
    if kind in ("missing", "missing_argument", "union_tag_not_found"):
        name = f"{key}.name" if kind == "union_tag_not_found" else key
        return UserError(f"setting {name} is missing: start from a file of configs/ or from a run's config.yaml")
    if kind == "union_tag_invalid":
        return unknown_name("model", str(context["tag"]), re.findall(r"'(\w+)'", str(context["expected_tags"])))
    if kind == "too_short" and context["min_length"] == 1:
        return UserError(f"{key} must name one at least, got {shown(given)}")
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", context["expected"])
        if path[-1] != "accelerator":
            return unknown_name(key, str(given), known)
        from torch import cuda  # a GPU is no misspelt CPU

        gpus = f"{count} visible" if (count := cuda.device_count()) else "none is visible here"
        return UserError(f"unknown {key} {shown(given)}. Known: {', '.join(known)}; cuda is NVIDIA's GPUs, {gpus}")
    return UserError(f"{key} must be {problem['msg'].removeprefix('Input should be ')}, got {shown(given)}")


def parse(settings: Mapping[str, Any]) -> Config:
    """Errors are as in `checked`."""
    return checked(Config, settings)


def dump(config: Config) -> dict[str, Any]:
    """Plain mapping of a configuration, for YAML and JSON: `parse(dump(config)) == config`."""
    plain: dict[str, Any] = adapter(Config).dump_python(config, mode="json")
    return plain


def instantiated_objects(config: Config) -> dict[str, Any]:
    """What `ser_fl.train` takes as objects, by its argument's name, where the configuration names some by import path.
    Here somebody's code is imported and called.
    """
    named: dict[str, object] = {"network": config.model, "objective": config.objective}
    named |= {"algorithm": config.federation.algorithm, "aggregation": config.federation.aggregation}
    named["adversary"] = config.adversaries.attack
    own = {name: value for name, value in named.items() if isinstance(value, ObjectConfig)}
    made = {name: value.instantiate(_partial_=name == "network") for name, value in own.items()}
    if network := made.get("network"):  # whoever knows the number of classes builds it
        update_wrapper(network, network.func)
    if config.callbacks:
        made["callbacks"] = [callback.instantiate() for callback in config.callbacks]
    return made
