"""How strong must an attack be to break this model? For a run folder, or for any torch classifier.

Legend: B utterances, F mel bins, L frames, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ser_fl.attacks.budget import Box
from ser_fl.attacks.catalogue import ATTACKS, build
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.suites import expand, subsets_of
from ser_fl.attacks.waveform import WAVEFORM_ATTACKS
from ser_fl.composition import compose
from ser_fl.config import BenchmarkConfig, Config
from ser_fl.data.datamodule import load_examples
from ser_fl.data.features import OnFeatures
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.defences import build_defence
from ser_fl.devices import CPU, devices_of, exact_arithmetic, send
from ser_fl.environment import threads_limited_to
from ser_fl.errors import UserError, unknown_name
from ser_fl.evaluation.example import spectrogram_pair
from ser_fl.evaluation.robustness import Challenge, OnAttack, OnRecords, benchmark_attacks
from ser_fl.evaluation.scoring import evaluating
from ser_fl.evaluation.waveform import WavPairs, benchmark_waveforms, plans_of, reader_of
from ser_fl.models.bundle import EmotionModel, load_model
from ser_fl.records import AttackRecord, RunFolder, write_json


def benchmark(
    model: nn.Module,
    features_BFL: Tensor,
    labels_B: Tensor,
    *,
    attacks: str | Sequence[str | AttackSettings] = ("fgsm", "bim", "pgd"),
    epsilons: Sequence[float] = (0.05,),
    defences: Sequence[str] = ("none",),
    box: Box | None = None,
    ids: Sequence[str] | None = None,
    subsets: Mapping[str, int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    on_attack: OnAttack = lambda name, done, total: None,
) -> list[AttackRecord]:
    """Attack any torch classifier of features.

    Args:
        model: maps features of shape (B, F, L) to logits of shape (B, C); everything runs where it is.
        features_BFL: clean features, of any real type, cast to float32; clipped to the box before anything is measured.
        labels_B: true classes, of any integer type; always passed to the attacks.
        attacks: names of the catalogue or of suites, each run at every epsilon, or full settings.
        epsilons: L-infinity budgets, in the units of the features.
        defences: test-time defences that what an attack made is shown to.
        box: the values that features may take; None is the box of a model of `ser_fl.load`, and any values for others.
        ids: utterance ids, each once, that key all random draws; None numbers them.
        subsets: attack names to the size of a balanced subset, for slow attacks.
        batch_size: utterances at a time.
        seed: of all random draws.
        on_attack: told of progress.

    Returns:
        Records: "clean", each attack, and "worst_case" per utterance, for every defence.

    Raises:
        UserError: an unknown attack or defence, an epsilon below 0, an attack that needs a box and has none, ids that
            are not one an utterance.
    """
    chosen = [
        build(settings)
        for attack in ([attacks] if isinstance(attacks, str) else attacks)
        for settings in (
            [attack]
            if isinstance(attack, AttackSettings)
            else [AttackSettings(name=name, epsilon=epsilon) for name in expand([attack]) for epsilon in epsilons]
        )
    ]
    if box is None and isinstance(model, EmotionModel):
        box = box_of(model)
    device = next((parameter.device for parameter in model.parameters()), features_BFL.device)
    box = (box or Box.unbounded()).to(device, torch.float32)
    features_BFL, labels_B = box.clip(send(features_BFL.float(), device)), send(labels_B.long(), device)
    known_ids = tuple(ids) if ids is not None else tuple(f"{index:06d}" for index in range(len(labels_B)))
    check_ids(known_ids, len(features_BFL))
    built = [build_defence(name) for name in defences]
    with evaluating(model), exact_arithmetic():
        with torch.inference_mode():
            num_classes = model(features_BFL[:1]).shape[1]
        challenge = Challenge(
            model=model,
            features_NFL=features_BFL,
            labels_N=labels_B,
            ids=known_ids,
            num_classes=num_classes,
            box=box,
            seed=seed,
            batch_size=batch_size,
        )
        return benchmark_attacks(challenge, chosen, built, subsets=subsets, on_attack=on_attack)


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
    on_attack: OnAttack = lambda name, done, total: None,
    on_features: OnFeatures | None = None,
) -> list[AttackRecord]:
    """Attack the selected model of a run on its test utterances, and write ``attacks.json`` and an example pair.

    ``attacks.json`` is written after every attack, so that a late error or a kill loses the one that ran only; the
    worst cases are added at the end.

    Raises:
        UserError: no such run or model, an unknown attack or defence, an attack without the box it needs, a corpus
            that moved.
    """
    folder = Path(config.run)
    if not folder.is_dir():
        raise UserError(f"no such run folder: {folder}")
    run = RunFolder(folder)
    plans = plans_of(config) if config.domain == "waveform" else []
    config = with_suites(config)
    trained = compose([f"data.root={config.root}"] if config.root else [], config_file=run.config)
    attacks = [] if plans else [build(settings) for settings in attack_settings(config, trained)]
    for name in config.subsets.keys() - ATTACKS.keys() - WAVEFORM_ATTACKS.keys():
        if not name.startswith("art:"):
            raise unknown_name("attack in subsets", name, ATTACKS)
    defences = [build_defence(name) for name in config.defences]
    device, bundle = device_of_benchmark(config, trained), load_model(folder)
    with threads_limited_to(trained.executor.threads), exact_arithmetic():
        prepared = prepare(trained, on_features)
        challenge = challenge_of(config, trained, bundle, prepared).to(device)
        bundle.to(device)
        write = recorder(run, config.domain)
        told: dict[str, Any] = {"subsets": config.subsets, "on_attack": on_attack, "on_records": write}
        if plans:
            read = reader_of(trained, prepared.store)
            pairs = WavPairs(run.adversarial, challenge.subset(config.write_audio).ids) if config.write_audio else None
            records = benchmark_waveforms(challenge, bundle, read, plans, defences, pairs=pairs, **told)
        else:
            records = benchmark_attacks(challenge, attacks, defences, **told)
            write_json(run.spectrograms, spectrogram_pair(challenge, attacks, bundle))
        write(records)
    return records


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


def recorder(run: RunFolder, domain: str) -> OnRecords:
    """Writes records to ``attacks.json``; those of the last benchmark, which took its time, are put aside first.

    Records of the other domain stay: a model is attacked in both, each in a benchmark of its own. Nothing moves before
    there is something to write: a benchmark that is refused leaves the folder as it was.
    """
    aside = [run.attacks.with_suffix(".before.json")] if run.attacks.exists() else []
    others: list[AttackRecord] = []
    with suppress(UserError):  # of another schema, or changed by hand: put aside as it is
        others = [record for record in run.read_attacks() if record.domain != domain]

    def write(records: list[AttackRecord]) -> None:
        if aside:
            run.attacks.replace(aside.pop())
        run.write_attacks([*others, *records])

    return write


def challenge_of(config: BenchmarkConfig, trained: Config, bundle: EmotionModel, prepared: Prepared) -> Challenge:
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
    return Challenge(
        model=bundle.network,
        features_NFL=examples.features_NFL,
        labels_N=examples.labels_N,
        ids=tuple(prepared.store.utterances[index].utterance_id for index in prepared.split.test),
        num_classes=len(bundle.classes),
        box=box_of(bundle),
        seed=config.seed,
        batch_size=config.batch_size,
    ).subset(config.max_examples)


def box_of(model: EmotionModel) -> Box:
    """The values that features of this model take."""
    return Box.of(model.standardisation.lower_F1, model.standardisation.upper_F1)


def with_suites(config: BenchmarkConfig) -> BenchmarkConfig:
    """The same settings with the attacks of every suite by their own names."""
    return replace(  # type: ignore[type-var]  # mypy does not see that pydantic's dataclass is one
        config,
        attacks=expand(config.attacks),
        curve_attacks=expand(config.curve_attacks),
        subsets=subsets_of(config.attacks) | config.subsets,
    )


def attack_settings(config: BenchmarkConfig, trained: Config) -> list[AttackSettings]:
    """Every attack at every epsilon, and those of the curve at the curve's epsilons."""
    main = config.epsilons or (trained.objective.epsilon,)
    wanted = [(name, epsilon) for name in config.attacks for epsilon in main]
    wanted += [(name, epsilon) for name in config.curve_attacks for epsilon in config.curve_epsilons]
    return [
        AttackSettings(
            name=name,
            epsilon=epsilon,
            steps=config.steps if _takes(name, "steps") else None,
            restarts=config.restarts if _takes(name, "restarts") else None,
        )
        for name, epsilon in dict.fromkeys(wanted)
    ]


def _takes(name: str, setting: str) -> bool:
    """Whether a setting that is given for all attacks applies to this one."""
    return name not in ATTACKS or setting in ATTACKS[name].settable
