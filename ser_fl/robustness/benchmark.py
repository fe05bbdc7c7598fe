"""How strong must an attack be to break this model? For a run folder, or for any torch classifier.

Legend: B utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ser_fl.attacks.registry import ATTACKS, Attack, build
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.suites import expand, subsets_of
from ser_fl.attacks.threat_model import Box
from ser_fl.attacks.waveform import WAVEFORM_ATTACKS
from ser_fl.config.compose import compose
from ser_fl.config.robustness import BenchmarkConfig
from ser_fl.config.schema import Config
from ser_fl.data.datamodule import load_examples
from ser_fl.data.features import OnFeatures
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.defences import Defence, build_defence
from ser_fl.devices import CPU, devices_of, exact_arithmetic, send
from ser_fl.errors import UserError, unknown_name
from ser_fl.files import write_json
from ser_fl.models.emotion_model import EmotionModel, load_model
from ser_fl.robustness.curves import epsilons_of_curve
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.example_pair import spectrogram_pair
from ser_fl.robustness.plan import ADAPTIVE, EOT_SAMPLES, plan
from ser_fl.robustness.progress import OnAttack, silent
from ser_fl.robustness.recordings import Read, WavPairs, reader_of
from ser_fl.robustness.run_cache import RunCache
from ser_fl.robustness.runner import benchmark_attacks
from ser_fl.robustness.sanity_checks.records import check_records
from ser_fl.robustness.sanity_checks.report import write_sanity_report
from ser_fl.robustness.sanity_checks.run import check_benchmark
from ser_fl.robustness.test_set import TestSet
from ser_fl.robustness.waveform import DOMAIN as WAVEFORM
from ser_fl.robustness.waveform import Plan, benchmark_waveforms, plans_of
from ser_fl.runs.environment import threads_limited_to
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.lock import claimed
from ser_fl.runs.records import AttackRecord

_AROUND = 0.05
"""Where the search for the epsilons of a curve begins, where nothing else is said."""


def benchmark(
    model: nn.Module,
    features_BFL: Tensor,
    labels_B: Tensor,
    *,
    attacks: str | Sequence[str | AttackSettings] = ("fgsm", "bim", "pgd"),
    epsilons: Sequence[float] | Literal["auto"] = (0.05,),
    defences: Sequence[str] = ("none",),
    adaptive: str | Sequence[str | AttackSettings] = (),
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
    on_attack: OnAttack = silent,
) -> list[AttackRecord]:
    """Attack any torch classifier of features.

    Args:
        model: maps features of shape (B, F, L) to logits of shape (B, C); everything runs where it is.
        features_BFL: clean features, of any real type, cast to float32; clipped to the box before anything is measured.
        labels_B: true classes, of any integer type; always passed to the attacks.
        attacks: names of the catalogue or of suites, each run at every epsilon, or full settings.
        epsilons: L-infinity budgets, in the units of the features; "auto" for a curve from where UAR is within two
            points of clean to where it is at most chance (`ser_fl.robustness.curves.epsilons_of_curve`).
        defences: test-time defences that what an attack made is shown to.
        adaptive: names or settings of attacks that are also made against every defence but "none", in expectation over
            its randomness.
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
        on_attack: told of progress: attack, utterances done, utterances in all, and the seconds left.

    Returns:
        Records: "clean", each attack, and "worst_case" per utterance, for every defence.

    Raises:
        UserError: an unknown attack or defence, an epsilon below 0, an attack that needs a box and has none, ids that
            are not one an utterance, an adaptive attack without gradients, or no defence for it.
    """
    if box is None and isinstance(model, EmotionModel):
        box = box_of(model)
    device = next((parameter.device for parameter in model.parameters()), features_BFL.device)
    box = (box or Box.unbounded()).to(device, torch.float32)
    features_BFL, labels_B = box.clip(send(features_BFL.float(), device)), send(labels_B.long(), device)
    known_ids = tuple(ids) if ids is not None else tuple(f"{index:06d}" for index in range(len(labels_B)))
    check_ids(known_ids, len(features_BFL))
    for name, given in (("speakers", speakers), ("sexes", sexes)):
        if given and len(given) != len(known_ids):
            raise UserError(f"{name} must be one an utterance, got {len(given)} for {len(known_ids)} utterances")
    built = [build_defence(name) for name in defences]
    with evaluating(model), exact_arithmetic():
        with torch.inference_mode():
            num_classes = model(features_BFL[:1]).shape[1]
        test_set = TestSet(
            model=model,
            features_NFL=features_BFL,
            labels_N=labels_B,
            ids=known_ids,
            num_classes=num_classes,
            box=box,
            seed=seed,
            batch_size=batch_size,
            speakers=tuple(speakers),
            sexes=tuple(sexes),
            emotions=model.classes if isinstance(model, EmotionModel) else (),
        )
        named = [attacks] if isinstance(attacks, str) else attacks
        at = (_AROUND,) if epsilons == "auto" else tuple(epsilons)
        fits = partial(_fits, num_classes)
        chosen, aware = _built(attacks, at, fits), _built(adaptive, at, fits)
        if epsilons == "auto":
            plan(test_set, chosen, built, adaptive=aware)  # what cannot run is told before a curve is looked for
            at = epsilons_of_curve(test_set)
            chosen, aware = _built(attacks, at, fits), _built(adaptive, at, fits)
        return benchmark_attacks(
            test_set,
            chosen,
            built,
            adaptive=aware,
            eot_samples=None if eot_samples == "exact" else eot_samples,
            subsets=subsets_of([name for name in named if isinstance(name, str)]) | dict(subsets or {}),
            sweep=sweep,
            drop_broken=drop_broken,
            on_attack=on_attack,
        )


def _built(
    attacks: str | Sequence[str | AttackSettings],
    epsilons: Sequence[float],
    fits: Callable[[str], bool] = lambda name: True,
) -> list[Attack]:
    """Names, and those of a suite, at every epsilon, and settings as they are."""
    return [
        build(settings)
        for attack in ([attacks] if isinstance(attacks, str) else attacks)
        for settings in (
            [attack]
            if isinstance(attack, AttackSettings)
            else [AttackSettings(name=name, epsilon=epsilon) for name in expand([attack], fits) for epsilon in epsilons]
        )
    ]


def check_ids(ids: Sequence[str], num_utterances: int) -> None:
    """Refuse ids that are not one an utterance: they key random draws, and tell subsets apart.

    Raises:
        UserError: too few or too many, or one of them twice.
    """
    if len(ids) != num_utterances:
        raise UserError(f"ids must be one an utterance, got {len(ids)} for {num_utterances} utterances")
    if twice := [utterance_id for utterance_id, count in Counter(ids).items() if count > 1]:
        raise UserError(f"ids must differ, got {twice[0]!r} more than once: they key all random draws")


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
    run.refuse_links_out()
    trained = compose([f"data.root={config.root}"] if config.root else [], config_file=run.config)
    bundle = load_model(run)
    defences = [build_defence(name) for name in config.defences]
    plans = plans_of(config) if config.domain == WAVEFORM else []
    if not plans:
        config = with_suites(config, len(bundle.classes))
        _built((*config.attacks, *config.curve_attacks, *config.adaptive), [_AROUND])  # tells of an unknown name
    for name in config.subsets.keys() - ATTACKS.keys() - WAVEFORM_ATTACKS.keys() - {ADAPTIVE}:
        if not name.startswith("art:"):
            raise unknown_name("attack in subsets", name, [*ATTACKS, *WAVEFORM_ATTACKS, ADAPTIVE])
    device = device_of_benchmark(config, trained)
    with threads_limited_to(trained.executor.threads), exact_arithmetic():
        prepared = prepare(trained, on_features)
        test_set = load_test_set(config, trained, bundle, prepared).to(device)
        bundle.to(device)
        run_cache = RunCache(run, test_set, config)
        if plans:
            read = reader_of(trained, prepared.store)
            return _attack_recordings(config, run, test_set, bundle, read, plans, defences, run_cache, on_attack)
        return _attack_features(config, trained, run, test_set, bundle, defences, run_cache, on_attack)


def _attack_features(
    config: BenchmarkConfig,
    trained: Config,
    run: RunFolder,
    test_set: TestSet,
    bundle: EmotionModel,
    defences: Sequence[Defence],
    run_cache: RunCache,
    on_attack: OnAttack,
) -> list[AttackRecord]:
    """Log-mel features, within epsilons."""
    aware = _built(config.adaptive, [_AROUND])
    # What cannot run is told before a curve is looked for.
    plan(test_set, _built((*config.attacks, *config.curve_attacks), [_AROUND]), defences, adaptive=aware)
    attacks, adaptive = attacks_of(config, trained, lambda: epsilons_of_curve(test_set))
    records = benchmark_attacks(
        test_set,
        attacks,
        defences,
        adaptive=adaptive,
        eot_samples=_samples(config),
        subsets=config.subsets,
        sweep=config.sweep,
        drop_broken=config.drop_broken,
        open_cache=run_cache.open,
        on_attack=on_attack,
        on_records=run_cache.write,
    )
    together = run_cache.write(records)
    if config.checks:
        found = check_benchmark(test_set, attacks, together, subset_size=config.checks_subset, on_check=on_attack)
        write_sanity_report(run, found)
    write_json(run.spectrograms, spectrogram_pair(test_set, attacks, bundle))
    return together


def _attack_recordings(
    config: BenchmarkConfig,
    run: RunFolder,
    test_set: TestSet,
    bundle: EmotionModel,
    read: Read,
    plans: Sequence[Plan],
    defences: Sequence[Defence],
    run_cache: RunCache,
    on_attack: OnAttack,
) -> list[AttackRecord]:
    """Recorded samples, within SNRs or amplitudes."""
    kept = test_set.subset(config.write_audio).ids if config.write_audio else ()
    records = benchmark_waveforms(
        test_set,
        bundle,
        read,
        plans,
        defences,
        eot_samples=_samples(config),
        subsets=config.subsets,
        pairs=WavPairs(run.adversarial, kept) if kept else None,
        open_cache=run_cache.open,
        on_attack=on_attack,
        on_records=run_cache.write,
    )
    together = run_cache.write(records)
    if config.checks:
        write_sanity_report(run, check_records(together))  # the probes are made for features
    return together


def _samples(config: BenchmarkConfig) -> int | None:
    return None if config.eot_samples == "exact" else config.eot_samples


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


def load_test_set(config: BenchmarkConfig, trained: Config, bundle: EmotionModel, prepared: Prepared) -> TestSet:
    """A run's model and its test utterances.

    Raises:
        UserError: the corpus has other emotions than the model.
    """
    if prepared.store.classes != bundle.classes:
        raise UserError(
            f"the corpus at {trained.data.root} has the emotions {', '.join(prepared.store.classes)}, the model of "
            f"{config.run} knows {', '.join(bundle.classes)}: set root=DIR to the corpus it was trained on"
        )
    examples = load_examples(prepared.store, prepared.split.test, bundle.standardisation)
    utterances = [prepared.store.utterances[index] for index in prepared.split.test]
    return TestSet(
        model=bundle.network,
        features_NFL=examples.features_NFL,
        labels_N=examples.labels_N,
        ids=tuple(utterance.utterance_id for utterance in utterances),
        num_classes=len(bundle.classes),
        box=box_of(bundle),
        seed=config.seed,
        batch_size=config.batch_size,
        speakers=tuple(utterance.speaker for utterance in utterances),
        sexes=tuple(utterance.sex for utterance in utterances),
        emotions=bundle.classes,
    ).subset(config.max_examples)


def box_of(model: EmotionModel) -> Box:
    """The values that features of this model take."""
    return Box.of(model.standardisation.lower_F1, model.standardisation.upper_F1)


def with_suites(config: BenchmarkConfig, num_classes: int) -> BenchmarkConfig:
    """The same settings with the attacks of every suite, as far as they fit, by their own names."""
    fits = partial(_fits, num_classes)
    return replace(  # type: ignore[type-var]  # mypy does not see that pydantic's dataclass is one
        config,
        attacks=expand(config.attacks, fits),
        curve_attacks=expand(config.curve_attacks, fits),
        adaptive=expand(config.adaptive, lambda name: fits(name) and _can_know(name)),
        subsets=subsets_of(config.attacks) | config.subsets,
    )


def _fits(num_classes: int, name: str) -> bool:
    """Whether an attack can run on so many classes."""
    return num_classes >= ATTACKS[name].min_classes


def _can_know(name: str) -> bool:
    """Whether an attack can know of a defence."""
    return ATTACKS[name].knowledge == "undefended" or ATTACKS[name].adaptive


def attacks_of(
    config: BenchmarkConfig, trained: Config, curve: Callable[[], Sequence[float]]
) -> tuple[list[Attack], list[Attack]]:
    """Attacks on the bare model, and adaptive ones: each at every epsilon, and those of the curve at the curve's.

    Args:
        config: of the benchmark.
        trained: of the run, whose epsilon is the default.
        curve: finds the epsilons of "auto"; called where they are wanted.
    """
    found: tuple[float, ...] = ()
    if config.epsilons == "auto" or (config.curve_epsilons == "auto" and config.curve_attacks):
        found = tuple(curve())
    main = found if config.epsilons == "auto" else config.epsilons or (trained.objective.epsilon,)
    more = found if config.curve_epsilons == "auto" else config.curve_epsilons

    def at_their_epsilons(names: Sequence[str], of_curve: Sequence[str]) -> list[Attack]:
        wanted = [(name, epsilon) for name in names for epsilon in main]
        wanted += [(name, epsilon) for name in of_curve for epsilon in more]
        return [build(_settings(config, name, epsilon)) for name, epsilon in dict.fromkeys(wanted)]

    curved = [name for name in config.adaptive if name in config.curve_attacks]
    return at_their_epsilons(config.attacks, config.curve_attacks), at_their_epsilons(config.adaptive, curved)


def _settings(config: BenchmarkConfig, name: str, epsilon: float) -> AttackSettings:
    return AttackSettings(
        name=name,
        epsilon=epsilon,
        steps=config.steps if _takes(name, "steps") else None,
        restarts=config.restarts if _takes(name, "restarts") else None,
    )


def _takes(name: str, setting: str) -> bool:
    """Whether a setting that is given for all attacks applies to this one."""
    return name not in ATTACKS or setting in ATTACKS[name].settable
