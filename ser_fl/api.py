"""What a Python user calls first, beside `compose`, `evaluate`, `load` and `predict`: train, benchmark, and what a run
has to tell. Heavy libraries are imported by what uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from ser_fl.errors import UserError, shown
from ser_fl.files import record_of
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.frames import NotebookProgress, html_table, in_notebook

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from ser_fl.config.schema import Config
    from ser_fl.federation.adversaries import Adversary
    from ser_fl.federation.aggregation import Aggregation
    from ser_fl.federation.algorithm import Algorithm
    from ser_fl.federation.hooks import Hooks, OnRound
    from ser_fl.models.emotion_model import EmotionModel
    from ser_fl.models.networks import NetworkSource
    from ser_fl.robustness.benchmark import ModelSettings
    from ser_fl.robustness.foreign import Model, Numbers
    from ser_fl.robustness.runner import OnAttack
    from ser_fl.robustness.sanity_checks.report import CheckedRecords
    from ser_fl.robustness.test_set import TestSet
    from ser_fl.training.objectives import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """How the selected model of a run does on its test utterances, all in [0, 1]; NaN where there was none."""

    uar: float
    accuracy: float
    macro_f1: float
    recall: dict[str, float | None]
    """By emotion; None for one without a test utterance."""
    speaker_uar: dict[str, float]
    """By test speaker."""
    confusion: tuple[tuple[float, ...], ...]
    """Utterances; rows true, columns predicted, in the order of `recall`."""

    def _repr_html_(self, title: str = "Test utterances", note: str = "") -> str:
        words = ["UAR", "accuracy", "macro F1", *(f"recall of {emotion}" for emotion in self.recall)]
        figures = [self.uar, self.accuracy, self.macro_f1, *self.recall.values()]
        return html_table(title, ("figure", "value"), zip(words, figures, strict=True), note)


@dataclass(frozen=True, slots=True)
class Run(RunFolder):
    """A trained run: its folder, with the path of every record, and what a program wants of it next.
    ``Run(Path("runs/demo"))`` opens one that was trained before.
    """

    network: NetworkSource | None = field(default=None, repr=False, compare=False)
    """Of a run that was trained with a network of its own: the same one, which no file holds."""

    def load(self, *, client_id: str | None = None) -> EmotionModel:
        """The selected model, or a client's own; as `ser_fl.load`."""
        from ser_fl.models.emotion_model import load_model

        return load_model(self, client_id=client_id, network=self.network)

    def _repr_html_(self) -> str:
        if not self.summary.exists():
            return html_table(f"Run {self.root}", (), (), "It has no test figures: it has not finished.")
        synthetic = self.read_json(self.summary).get("synthetic")
        note = "SYNTHETIC speech: no evidence about real speech." if synthetic else ""
        return self.metrics()._repr_html_(f"Run {self.root}: test utterances", note)

    def metrics(self) -> Metrics:
        """Test figures of the selected model; a `UserError` of an unfinished run, or a changed ``summary.json``."""
        summary = self.read_json(self.summary)
        try:
            test = summary["test"]
            recall = dict(zip(summary["classes"], test["per_class_recall"], strict=True))
            return record_of(Metrics, {**test, "recall": recall, "speaker_uar": test["per_speaker_uar"]})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.summary} has no whole test figures ({error}): was it changed by hand?") from None

    def test_set(self, *, root: Path | str | None = None) -> TestSet:
        """The test utterances as the model is given them, for any other model or attack: ``features_NFL`` (standardised
        log-mel, float32), ``labels_N`` (int64), ``ids``, and ``speakers``, ``sexes``, ``emotions``, ``box``. ``root``
        is the corpus's folder, where it is no longer the one that the run was trained on.

        Raises:
            UserError: the corpus is not there, or is another one.
        """
        from ser_fl.devices import exact_arithmetic
        from ser_fl.robustness.trained_run import load_run

        with exact_arithmetic():
            return load_run(self.root, root=root, network=self.network).test_set()


def train(
    config: Config,
    *,
    network: NetworkSource | None = None,
    objective: Objective | type[Objective] | None = None,
    aggregation: Aggregation | type[Aggregation] | None = None,
    algorithm: Algorithm | type[Algorithm] | None = None,
    adversary: Adversary | type[Adversary] | None = None,
    callbacks: Sequence[pl.Callback] = (),
    on_round: OnRound | None = None,
    hooks: Hooks | None = None,
) -> Run:
    """Run an experiment, or with ``resume=true`` go on with one that was killed.

    Args:
        config: what `ser_fl.compose` gives. Objects that it names by ``_target_`` are made here.
        network: in place of the configured one: a module, whose weights are then the initial ones, or a class or
            function that makes one for a number of classes. It gives logits (B, C) for features (B, F, L).
        objective: what clients minimise, an `Objective` of `ser_fl.training.objectives`.
        aggregation: how updates become one state, an `Aggregation` of `ser_fl.federation.aggregation`.
        algorithm: what the server does, an `Algorithm` of `ser_fl.federation.algorithm`.
        adversary: what hostile clients do, an `Adversary` of `ser_fl.federation.adversaries`; who they are, and when,
            `adversaries=own` says.
        callbacks: Lightning callbacks that see every batch of every client (``trainer.datamodule`` says whose). With
            ``executor=processes`` each worker has a copy of its own.
        on_round: told of every committed round. In a notebook, where nobody else is told, a bar below the cell is.
        hooks: all who watch the run, and who may end it by a signal, which raises `Stopped`; ``on_round`` goes before.

    Returns:
        The run: its folder, test figures, test utterances and model.

    Raises:
        UserError: the corpus, the settings, the run folder or an object do not fit, or an object cannot be sent to a
            worker process.
        RoundFailed: too few clients came back in a round.
    """
    from ser_fl.data.heard import Heard
    from ser_fl.data.prepared import prepare
    from ser_fl.devices import devices_of, exact_arithmetic, threads_limited_to
    from ser_fl.federation.checkpoint import as_begun, open_run
    from ser_fl.federation.client import Clients, Executor
    from ser_fl.federation.cohort import cohort_size
    from ser_fl.federation.fine_tuning import FirstRun
    from ser_fl.federation.hooks import Hooks
    from ser_fl.federation.hostile import enrolled_by_all, with_adversaries
    from ser_fl.federation.own_objects import check_network, settled_objects
    from ser_fl.federation.processes import ProcessExecutor, count_workers
    from ser_fl.federation.rounds import Federation
    from ser_fl.training.precision import resolve_precision
    from ser_fl.training.trainer import check_callbacks

    servers = {"aggregation": aggregation, "algorithm": algorithm}
    clients_own = {"network": network, "objective": objective, "adversary": adversary, "callbacks": callbacks or None}
    given = {name: value for name, value in {**servers, **clients_own}.items() if value is not None}
    own, config = settled_objects(as_begun(config), given)
    if on_round is None and hooks is None and in_notebook():
        progress, total = NotebookProgress(), config.federation.num_rounds
        on_round = lambda record: progress(record.line(config.experiment), record.round, total)  # noqa: E731
    if on_round is not None:
        hooks = replace(hooks or Hooks(), on_round=on_round)
    hooks = hooks or Hooks()
    check_callbacks(config, own.callbacks)
    if config.executor.name == "flower":
        if own.callbacks:
            raise UserError("executor=flower runs no callbacks, got some: its clients are on other hosts")
        from ser_fl.federation.flower import launch

        return Run(launch(config, own, hooks).root)
    devices_of(config.executor.accelerator)  # refuses hardware that is not there before anything is written
    with (
        open_run(config) as (run, checkpoint),
        threads_limited_to(config.executor.threads),
        exact_arithmetic(),
        ExitStack() as stack,
    ):
        first = FirstRun.of(config, own.network) if config.init_from and checkpoint is None else None
        prepared = enrolled_by_all(prepare(config, hooks.on_features), config, own)
        if first is not None:
            first.warn_of(prepared, config)
        heard = Heard.of(prepared.store, prepared.split, config.frontend)
        if config.init_from:
            before = Heard.read(run.heard, run.heard_sounds) if first is None else Heard.before_training(first.heard)
            heard = heard.after(before)
        shared = heard.shared(prepared.store, prepared.split.test, config.frontend, allow_seen=True)
        client_manifest = replace(prepared.client_manifest(), shared=shared)
        if own.network is not None:
            check_network(config, len(client_manifest.classes), own)
        if checkpoint is not None and checkpoint.precision is not None:
            config = replace(config, precision=checkpoint.precision)
        elif config.precision == "auto":
            config = resolve_precision(config, len(client_manifest.classes), own.network)
        executor: Executor = (clients := Clients(config, prepared, own))
        if config.executor.name == "processes":
            size = cohort_size(len(client_manifest.client_ids), config.federation.fraction_train)
            executor = ProcessExecutor(clients, count_workers(config.executor, size))
            stack.callback(executor.close)
        federation = Federation(
            config=config,
            run=run,
            client_manifest=client_manifest,
            executor=with_adversaries(executor, config, client_manifest, run, lambda: clients, own),
            own=own,
            hooks=hooks,
            first=first,
        )
        federation.conduct(checkpoint)
        heard.write(run.heard, run.heard_sounds)
    return Run(run.root, network)


@overload
def benchmark(
    model: Model, features: Numbers, labels: Numbers, **settings: Unpack[ModelSettings]
) -> CheckedRecords: ...


@overload
def benchmark(model: RunFolder | Path | str, *, on_attack: OnAttack = ..., **settings: Any) -> CheckedRecords: ...


def benchmark(
    model: Model | RunFolder | Path | str,
    features: Numbers | None = None,
    labels: Numbers | None = None,
    **settings: Any,
) -> CheckedRecords:
    """How strong must an attack be to break a model? Of a trained run, or of any model and any features.

    Args:
        model: a run, which is benchmarked as `ser-fl benchmark` does: on its test utterances, into its folder; or a
            model, see `ser_fl.robustness.foreign.Model`.
        features: of a model: clean features, a tensor, an array or lists of numbers, of shape (B, F, L) or any other
            that the model takes; cast to float32, in which attacks run, and clipped to the box first.
        labels: of a model: true classes as whole numbers, or one-hot.
        **settings: of a run, those of `ser-fl benchmark` (`ser_fl.config.robustness.BenchmarkConfig`), and of a model
            those of `ser_fl.robustness.benchmark.ModelSettings`; both know ``on_attack``.

    Returns:
        Records: "clean", each attack, and "worst_case" per utterance, for every defence; of a run all that its folder
        holds. ``checks`` says what there is to doubt in them; None with ``checks=False``.

    Raises:
        UserError: a model, arrays or settings that do not fit: told before an attack runs.
    """
    from ser_fl.config.compose import compose_benchmark
    from ser_fl.config.robustness import BenchmarkConfig
    from ser_fl.config.schema import checked
    from ser_fl.robustness import benchmark as robustness

    if in_notebook():
        settings.setdefault("on_attack", NotebookProgress())
    if not isinstance(model, (RunFolder, Path, str)):
        if features is None or labels is None:
            raise UserError(
                f"to benchmark a model, give features and labels with it, or a run; got {shown(model)} alone"
            )
        return robustness.benchmark(model, features, labels, **settings)
    if features is not None or labels is not None:
        raise UserError(
            f"a run is benchmarked on its own test utterances, got features: give {model}'s model, ser_fl.load"
        )
    folder = model.root if isinstance(model, RunFolder) else model
    watching = {"on_attack": settings.pop("on_attack")} if "on_attack" in settings else {}
    defaults = vars(compose_benchmark(["run=RUN"]))
    config = checked(BenchmarkConfig, {**defaults, "run": str(folder), **settings})
    return robustness.benchmark_run(config, **watching)
