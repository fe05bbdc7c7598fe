"""How strong must an attack be to break this model? For a run folder, or for any torch classifier.

Legend: B utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from ser_fl.attacks.attack import UNLABELLED, Attack
from ser_fl.attacks.registry import ATTACKS, ON_RECORDINGS
from ser_fl.attacks.threat_model import Box
from ser_fl.config.robustness import Backend, BenchmarkConfig
from ser_fl.config.schema import Config
from ser_fl.data.features import OnFeatures
from ser_fl.defences import Defence, build_defence
from ser_fl.devices import CPU, devices_of, exact_arithmetic
from ser_fl.errors import UserError, unknown_name
from ser_fl.files import write_json
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.robustness.arrays import Numbers
from ser_fl.robustness.curves import epsilons_of_curve
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.example_pair import spectrogram_pair
from ser_fl.robustness.foreign import Model, check_gradients, foreign_test_set
from ser_fl.robustness.plan import ADAPTIVE, EOT_SAMPLES, plan
from ser_fl.robustness.progress import OnAttack, silent
from ser_fl.robustness.recordings import recordings_of
from ser_fl.robustness.requested import Request, request_of, subsets_for
from ser_fl.robustness.run_cache import RunCache
from ser_fl.robustness.runner import run_plan
from ser_fl.robustness.sanity_checks.report import SanityReport, write_sanity_report
from ser_fl.robustness.sanity_checks.run import check_benchmark
from ser_fl.robustness.test_set import box_of, load_run
from ser_fl.runs.environment import threads_limited_to
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.lock import claimed
from ser_fl.runs.records import AttackRecord

_AROUND = 0.05
"""Where the search for the epsilons of a curve begins, where nothing else is said."""


def benchmark(
    model: Model,
    features: Numbers,
    labels: Numbers,
    *,
    attacks: object = ("fgsm", "bim", "pgd"),
    epsilons: Sequence[float] | Literal["auto"] = (0.05,),
    defences: Sequence[str | Defence] = ("none",),
    adaptive: object = (),
    eot_samples: int | Literal["exact"] = EOT_SAMPLES,
    box: Box | None = None,
    ids: Sequence[str] | None = None,
    speakers: Sequence[str] = (),
    sexes: Sequence[str | None] = (),
    subsets: Mapping[str, int] | None = None,
    sweep: bool = True,
    drop_broken: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    backend: Backend = "auto",
    on_checks: Callable[[SanityReport], object] | None = None,
    on_attack: OnAttack = silent,
) -> list[AttackRecord]:
    """Attack any torch classifier of features.

    Args:
        model: maps features to logits of shape (B, C) (`ser_fl.robustness.foreign.Model`); all runs where it is.
        features: clean features, of shape (B, F, L) or any other that the model takes, in any real type; cast to
            float32, in which attacks run, and clipped to the box before anything is measured.
        labels: true classes as whole numbers, or one-hot; always passed to the attacks.
        attacks: one of these or many. Names of the registry or of suites, and mappings such as
            ``{"name": "bim", "steps": 100}``, each run at every epsilon; full `AttackSettings`; attacks of ART, as
            instances, which keep their own settings and classifier, or as classes; and functions
            ``(model, features_BFL, labels_B) -> adversarial``. What a caller brings is held against every epsilon.
        epsilons: L-infinity budgets, in the units of the features; "auto" for a curve from where UAR is within two
            points of clean to where it is at most chance (`ser_fl.robustness.curves.epsilons_of_curve`).
        defences: test-time defences that what an attack made is shown to, by name or as `Defence` objects.
        adaptive: attacks, given in the same ways, that are also made against every defence but "none", in expectation
            over its randomness.
        eot_samples: draws of the defence that they average over in every step; "exact" for all that there are.
        box: the values that features may take; None is the box of a model of `ser_fl.load`, and any values for others.
        ids: utterance ids, each once, that key all random draws; None numbers them.
        speakers: of the utterances, for figures by speaker.
        sexes: of the speakers, for figures by sex.
        subsets: attack names to the size of a balanced subset, for slow attacks, and "adaptive" for all adaptive ones.
        sweep: whether an attack goes on at an epsilon where it was at a smaller one, so that robust UAR never rises.
        drop_broken: whether attacks are spared the utterances that earlier ones broke.
        batch_size: utterances at a time.
        seed: of all random draws.
        backend: whose code runs the attacks (`ser_fl.config.robustness.Backend`).
        on_checks: given what the checks of the benchmark itself found (`ser_fl.robustness.sanity_checks`), which are
            then made at the end.
        on_attack: told of progress: attack, utterances done, utterances in all, and the seconds left.

    Returns:
        Records: "clean", each attack, and "worst_case" per utterance, for every defence.

    Raises:
        UserError: an unknown attack or defence, an epsilon below 0, an attack that needs a box and has none, a model or
            arrays that do not fit (`ser_fl.robustness.foreign`), an adaptive attack without gradients, or no defence
            for it.
    """
    if box is None and isinstance(model, EmotionModel):
        box = box_of(model.standardisation)
    shown_to = [build_defence(defence) for defence in defences]
    taken = foreign_test_set(model, features, labels, box=box, ids=ids, batch_size=batch_size)
    for name, given in (("speakers", speakers), ("sexes", sexes)):
        if given and len(given) != len(taken):
            raise UserError(f"{name} must be one an utterance, got {len(given)} for {len(taken)} utterances")
    test_set = replace(
        taken,
        seed=seed,
        speakers=tuple(speakers),
        sexes=tuple(sexes),
        emotions=model.classes if isinstance(model, EmotionModel) else (),
    )
    with evaluating(test_set.model), exact_arithmetic():
        request = Request(num_classes=test_set.num_classes, backend=backend)
        draws = None if eot_samples == "exact" else eot_samples
        if epsilons == "auto":  # what cannot run is told before a curve is looked for
            around = request.attacks(attacks, (_AROUND,)), request.adaptive(adaptive, (_AROUND,))
            plan(test_set, around[0], shown_to, adaptive=around[1], eot_samples=draws)
        at = epsilons_of_curve(test_set) if epsilons == "auto" else tuple(epsilons)
        chosen, aware = request.attacks(attacks, at), request.adaptive(adaptive, at)
        sizes = subsets_for(attacks, subsets)
        units = plan(test_set, chosen, shown_to, adaptive=aware, eot_samples=draws, subsets=sizes, sweep=sweep)
        check_gradients(test_set, [*chosen, *aware])
        records = run_plan(test_set, units, shown_to, drop_broken=drop_broken, on_attack=on_attack)
        if on_checks is not None:
            on_checks(check_benchmark(test_set, chosen, records, on_check=on_attack))
        return records


def benchmark_run(
    config: BenchmarkConfig,
    *,
    on_attack: OnAttack = silent,
    on_features: OnFeatures | None = None,
) -> list[AttackRecord]:
    """Attack the selected model of a run on its test utterances, and write ``attacks.json`` and an example pair.

    ``attacks.json`` is written after every attack; the worst cases are added at the end, and what the
    checks of the benchmark found (`ser_fl.robustness.sanity_checks`). What every attack did to every
    utterance is kept below ``attacks/``, so that a benchmark that was killed goes on at the batch it was at (on audio:
    at the attack and budget), and one of more attacks adds to what is there. Records of another model, as after more
    training, are put aside as ``attacks.before.json``, and so is everything with ``fresh``.

    Returns:
        All records of ``attacks.json``, those of earlier benchmarks included.

    Raises:
        UserError: no such run or model, an unknown attack or defence, an attack without the box it needs, a corpus
            that moved, or another process that writes to the run: two benchmarks at once would lose records.
    """
    folder = Path(config.run)
    if not folder.is_dir():
        raise UserError(f"no such run folder: {folder}")
    run = RunFolder(folder)
    with claimed(folder):
        return _benchmark_run(config, run, on_attack, on_features)


def _benchmark_run(
    config: BenchmarkConfig, run: RunFolder, on_attack: OnAttack, on_features: OnFeatures | None
) -> list[AttackRecord]:
    """The same of a run folder that is ours alone for as long as it lasts."""
    _refuse_unknown_subsets(config)
    defences = [build_defence(name) for name in config.defences]
    trained = load_run(run.root, root=config.root)
    request = request_of(config, len(trained.model.classes))
    attacks, adaptive = _ordered(config, request, trained.config, (_AROUND,))  # tells of an unknown name
    device = device_of_benchmark(config, trained.config)
    with threads_limited_to(trained.config.executor.threads), exact_arithmetic():
        store = trained.store(on_features)
        test_set = trained.test_set(store, seed=config.seed, batch_size=config.batch_size).subset(config.max_examples)
        test_set, model = test_set.to(device), trained.model.to(device)
        cache = RunCache(run, test_set, config)
        if config.domain == "waveform":
            test_set = recordings_of(trained, store, test_set, config, run)
        draws = None if config.eot_samples == "exact" else config.eot_samples
        if _wants_a_curve(config):  # what cannot run is told before it is looked for
            plan(test_set, attacks, defences, adaptive=adaptive, eot_samples=draws)
            attacks, adaptive = _ordered(config, request, trained.config, epsilons_of_curve(test_set))
        units = plan(
            test_set,
            attacks,
            defences,
            adaptive=adaptive,
            eot_samples=draws,
            subsets=subsets_for(config.attacks, config.subsets),
            sweep=config.sweep,
        )
        records = run_plan(
            test_set,
            units,
            defences,
            drop_broken=config.drop_broken,
            open_cache=cache.open,
            on_attack=on_attack,
            on_records=cache.write,
        )
        together = cache.write(records)
        if config.checks:
            found = check_benchmark(test_set, attacks, together, subset_size=config.checks_subset, on_check=on_attack)
            write_sanity_report(run, found)
        if config.domain == "logmel":
            write_json(run.spectrograms, spectrogram_pair(test_set, attacks, model))
        return together


def _wants_a_curve(config: BenchmarkConfig) -> bool:
    return config.domain == "logmel" and (
        config.epsilons == "auto" or (config.curve_epsilons == "auto" and bool(config.curve_attacks))
    )


def _ordered(
    config: BenchmarkConfig, request: Request, trained: Config, curve: Sequence[float]
) -> tuple[list[Attack], list[Attack]]:
    """Attacks on the bare model, and adaptive ones: each at every budget, and those of the curve at the curve's.

    Args:
        config: of the benchmark.
        request: what is set for all attacks.
        trained: of the run, whose epsilon is the default.
        curve: the epsilons of "auto".
    """
    if config.domain == "waveform":
        attacks, adaptive = (
            request.on_recordings(choices, config.snr_dbs, config.amplitudes)
            for choices in (config.attacks, config.adaptive)
        )
        return attacks, adaptive
    main = curve if config.epsilons == "auto" else config.epsilons or (trained.stock_objective.epsilon,)
    more = curve if config.curve_epsilons == "auto" else config.curve_epsilons
    of_curve = request.attacks(config.curve_attacks, more)
    curved = {attack.name for attack in of_curve}
    aware = [attack for attack in request.adaptive(config.adaptive, more) if attack.name in curved]
    both = [*request.attacks(config.attacks, main), *of_curve], [*request.adaptive(config.adaptive, main), *aware]
    attacks, adaptive = (list({attack.settings: attack for attack in some}.values()) for some in both)
    return attacks, adaptive


def _refuse_unknown_subsets(config: BenchmarkConfig) -> None:
    """Tell of a subset of an attack that there is not.

    Raises:
        UserError: there is one.
    """
    for name in config.subsets.keys() - {ADAPTIVE}:
        known = {**ATTACKS, **ON_RECORDINGS}
        if name.removesuffix(UNLABELLED) not in known and not name.startswith("art:"):
            raise unknown_name("attack in subsets", name, [*known, ADAPTIVE])


def device_of_benchmark(config: BenchmarkConfig, trained: Config) -> torch.device:
    """The first device of the accelerator that is asked for; else of the run's, or the CPU where that is not here.

    Attacks measure distances in float64, which Apple's GPUs lack: their runs are attacked on the CPU.

    Raises:
        UserError: the accelerator that is asked for is not here.
    """
    if config.accelerator is not None:
        (device, *_) = devices_of(config.accelerator, "accelerator")
    else:
        (device, *_) = devices_of("auto" if trained.executor.accelerator in ("auto", "cuda") else "cpu")
    return CPU if device.type == "mps" else device
