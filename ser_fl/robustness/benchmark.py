"""How strong must an attack be to break this model? For a run folder, or for any torch classifier.

Legend: B utterances, F mel bins, L frames, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

from ser_fl.attacks.attack import UNLABELLED, Attack
from ser_fl.attacks.registry import ATTACKS, ON_RECORDINGS
from ser_fl.attacks.threat_model import Box
from ser_fl.config.robustness import Backend, BenchmarkConfig
from ser_fl.config.schema import Config
from ser_fl.data.features import OnFeatures
from ser_fl.defences import Defence, build_defence
from ser_fl.devices import exact_arithmetic, threads_limited_to
from ser_fl.errors import UserError, unknown_name
from ser_fl.files import write_json
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.robustness.crafting import spectrogram_pair
from ser_fl.robustness.curves import epsilons_of_curve
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.foreign import Model, Numbers, check_gradients, foreign_test_set
from ser_fl.robustness.plan import ADAPTIVE, EOT_SAMPLES, Request, Unit, listed, plan, subsets_for
from ser_fl.robustness.poisoned_enrolment import poisoned_units
from ser_fl.robustness.recordings import recordings_of
from ser_fl.robustness.result_cache import ResultCache, merged
from ser_fl.robustness.runner import OnAttack, run_plan, silent
from ser_fl.robustness.sanity_checks.poison import check_poison
from ser_fl.robustness.sanity_checks.probes import probe
from ser_fl.robustness.sanity_checks.records import check_records
from ser_fl.robustness.sanity_checks.report import CheckedRecords, write_sanity_report
from ser_fl.robustness.strangers import Strangers
from ser_fl.robustness.test_set import TestSet
from ser_fl.robustness.trained_run import attack_device, load_run
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.lock import claimed
from ser_fl.runs.zoo import writable_run

_AROUND = 0.05
"""Where the search for the epsilons of a curve begins, where nothing else is said."""
AttacksAt = Callable[[Sequence[float]], tuple[list[Attack], list[Attack]]]


class ModelSettings(TypedDict, total=False):
    """What may be set for the benchmark of a model, by keyword; `DEFAULTS` holds else. What is the same of a run is
    told in `ser_fl.config.robustness.BenchmarkConfig`.
    """

    attacks: object
    """One of these or many: names of the registry or of suites, and mappings such as ``{"name": "bim", "steps": 100}``,
    each run at every epsilon; full `AttackSettings`; attacks of ART, as instances, which keep their own settings and
    classifier, or as classes; functions ``(model, features_BFL, labels_B) -> adversarial``. These, a caller's own, are
    held against every epsilon."""
    epsilons: Sequence[float] | Literal["auto"]
    """L-infinity budgets, in the units of the features; "auto" for a curve from where UAR is within two points of clean
    to where it is at most chance (`ser_fl.robustness.curves.epsilons_of_curve`)."""
    defences: Sequence[str | Defence]
    """By name or as `Defence` objects."""
    adaptive: object
    """Attacks, given so too."""
    eot_samples: int | Literal["exact"]
    box: Box | None
    """The values that features may take; None is the box of a model of `ser_fl.load`, and any values for others."""
    ids: Sequence[str] | None
    """Utterance ids, each once, that key all random draws; None numbers them."""
    speakers: Sequence[str]
    """Of the utterances, for figures by speaker."""
    sexes: Sequence[str | None]
    """Of the speakers, for figures by sex."""
    subsets: Mapping[str, int] | None
    sweep: bool
    drop_broken: bool
    batch_size: int
    seed: int
    backend: Backend
    checks: bool
    on_attack: OnAttack
    """Told of progress: attack, utterances done, utterances in all, and the seconds left."""


DEFAULTS = ModelSettings(
    attacks=("fgsm", "bim", "pgd"),
    epsilons=(0.05,),
    defences=("none",),
    adaptive=(),
    eot_samples=EOT_SAMPLES,
    box=None,
    ids=None,
    speakers=(),
    sexes=(),
    subsets=None,
    sweep=True,
    drop_broken=False,
    batch_size=64,
    seed=0,
    backend="auto",
    checks=True,
    on_attack=silent,
)


def benchmark(model: Model, features: Numbers, labels: Numbers, **settings: Unpack[ModelSettings]) -> CheckedRecords:
    """Attack any torch classifier of features, where it is; `ser_fl.benchmark` says how. Arguments are as of
    `ser_fl.robustness.foreign.foreign_test_set`. A `UserError` tells of an unknown attack, defence or setting, an
    epsilon below 0, an attack that needs a box and has none, a model or arrays that do not fit, an adaptive attack
    without gradients, or no defence for it.
    """
    for name in settings.keys() - DEFAULTS.keys():
        raise unknown_name("setting", name, DEFAULTS)
    asked: ModelSettings = {**DEFAULTS, **settings}
    bare, aware = listed(asked["attacks"]), listed(asked["adaptive"])
    box, epsilons, on_attack = asked["box"], asked["epsilons"], asked["on_attack"]
    if box is None and isinstance(model, EmotionModel):
        box = Box.of(model.standardisation.lower_F1, model.standardisation.upper_F1)
    defences = [build_defence(defence) for defence in asked["defences"]]
    taken = foreign_test_set(model, features, labels, box=box, ids=asked["ids"], batch_size=asked["batch_size"])
    for name, given in (("speakers", asked["speakers"]), ("sexes", asked["sexes"])):
        if given and len(given) != len(taken):
            raise UserError(f"{name} must be one an utterance, got {len(given)} for {len(taken)} utterances")
    test_set = replace(
        taken,
        seed=asked["seed"],
        speakers=tuple(asked["speakers"]),
        sexes=tuple(asked["sexes"]),
        emotions=model.classes if isinstance(model, EmotionModel) else (),
    )
    request = Request(num_classes=test_set.num_classes, backend=asked["backend"])

    def attacks_at(curve: Sequence[float]) -> tuple[list[Attack], list[Attack]]:
        at = curve if epsilons == "auto" else tuple(epsilons)
        return request.attacks(bare, at), request.attacks(aware, at, adaptive=True)

    with evaluating(test_set.model), exact_arithmetic():
        attacks, units = _planned(test_set, attacks_at, defences, {**asked, "attacks": bare}, curve=epsilons == "auto")
        check_gradients(test_set, [unit.attack for unit in units])
        records = run_plan(test_set, units, defences, drop_broken=asked["drop_broken"], on_attack=on_attack)
        found = CheckedRecords(records)
        if asked["checks"]:
            found.checks = check_records(records) + probe(test_set, attacks, records=records, on_check=on_attack)
    return found


def benchmark_run(
    config: BenchmarkConfig, *, on_attack: OnAttack = silent, on_features: OnFeatures | None = None
) -> CheckedRecords:
    """Attack the selected model of a run, and write ``attacks.json`` and an example pair: on its test utterances, or on
    other speech (`BenchmarkConfig.speech`), whose files lie in a folder of its own (`RunFolder.on`).

    ``attacks.json`` is written after every attack; the worst cases and what `ser_fl.robustness.sanity_checks` found are
    added at the end. What every attack did to every utterance is kept below ``attacks/``, so that a killed benchmark
    goes on at its batch (on audio: at the attack and budget), and one of more attacks adds to what is there. Records of
    another model or other utterances, and with ``fresh`` all, are put aside as ``attacks.before.json``.

    Returns:
        All records of ``attacks.json``, those of earlier benchmarks included.

    Raises:
        UserError: no such run or model, an unknown attack or defence, an attack without the box it needs, a corpus that
            moved, or another process that writes to the run: two benchmarks at once would lose records.
    """
    run = RunFolder(writable_run(config.run))
    if not run.root.is_dir():
        raise UserError(f"no such run folder: {run.root}")
    with claimed(run.root):
        known = {**ATTACKS, **ON_RECORDINGS}
        for name in config.subsets.keys() - {ADAPTIVE}:
            if name.removesuffix(UNLABELLED) not in known and not name.startswith("art:"):
                raise unknown_name("attack in subsets", name, [*known, ADAPTIVE])
        trained = load_run(run.root, config.speech, part=config.part, root=config.root)
        defences = trained.defences(config.defences)
        run = trained.folder
        attacks_at = partial(_attacks_of, config, trained.config, len(trained.classes))
        attacks_at((_AROUND,))  # tells of an unknown name
        device = attack_device(config.accelerator, trained.config)
        with threads_limited_to(trained.config.executor.threads), exact_arithmetic():
            test_set = trained.test_set(
                seed=config.seed,
                batch_size=config.batch_size,
                allow_seen=config.allow_seen,
                device=device,
                on_features=on_features,
            ).subset(config.max_examples)
            of_features = test_set  # what is kept of its recordings lies there too
            if config.domain == "waveform":
                test_set = recordings_of(trained, test_set, config, run)
            curve = config.domain == "logmel" and (
                config.epsilons == "auto" or (config.curve_epsilons == "auto" and bool(config.curve_attacks))
            )
            strangers = None
            if config.enrolment_attack != "none":
                strangers = Strangers.of(test_set, trained.model.standardisation)
                test_set = strangers.test_set
            attacks, units = _planned(test_set, attacks_at, defences, vars(config), curve=curve)
            if strangers is not None:
                units += poisoned_units(
                    strangers,
                    units,
                    defences,
                    both=config.enrolment_attack == "both",
                    steps=config.steps,
                    restarts=config.restarts,
                    eot_samples=None if config.eot_samples == "exact" else config.eot_samples,
                    subsets=subsets_for(config.attacks, config.subsets),
                )
            # Nothing is refused any more: a benchmark that is leaves the run folder as it was.
            cache = ResultCache.of(run, of_features, keeps_adversarials=config.keep_adversarials, fresh=config.fresh)
            earlier = run.read_attacks()
            records = run_plan(
                test_set,
                units,
                defences,
                drop_broken=config.drop_broken,
                cache=cache,
                on_attack=on_attack,
                on_records=lambda records: run.write_attacks(merged(earlier, records), test_set.speech),
            )
            together = CheckedRecords(merged(earlier, records))
            together.speech, together.folder = test_set.speech, run
            run.write_attacks(together, test_set.speech)
            if config.checks:
                size = config.checks_subset
                probed = probe(test_set, attacks, records=together, subset_size=size, on_check=on_attack)
                together.checks = check_records(together) + probed
                if strangers is not None:
                    together.checks += check_poison(units)
                write_sanity_report(run, together.checks)
            if config.domain == "logmel":
                write_json(run.spectrograms, spectrogram_pair(test_set, attacks, trained.model))
    return together


def _planned(
    test_set: TestSet,
    attacks_at: AttacksAt,
    defences: Sequence[Defence],
    settings: Mapping[str, Any],
    *,
    curve: bool,
) -> tuple[list[Attack], list[Unit]]:
    """Attacks on the bare model, and all units of the benchmark; with a curve its epsilons are looked for first."""
    draws = None if settings["eot_samples"] == "exact" else settings["eot_samples"]
    attacks, adaptive = attacks_at((_AROUND,))
    if curve:  # what cannot run is told before it is looked for
        plan(test_set, attacks, defences, adaptive=adaptive, eot_samples=draws)
        attacks, adaptive = attacks_at(epsilons_of_curve(test_set))
    more = {"subsets": subsets_for(settings["attacks"], settings["subsets"]), "sweep": settings["sweep"]}
    return attacks, plan(test_set, attacks, defences, adaptive=adaptive, eot_samples=draws, **more)


def _attacks_of(
    config: BenchmarkConfig, trained: Config, num_classes: int, curve: Sequence[float]
) -> tuple[list[Attack], list[Attack]]:
    """Attacks on the bare model, and adaptive ones: each at every budget (by default the epsilon of training), and
    those of the curve at ``curve``, what "auto" stands for.
    """
    request = Request(num_classes=num_classes, steps=config.steps, restarts=config.restarts, backend=config.backend)
    if config.domain == "waveform":
        attacks, adaptive = (
            request.on_recordings(choices, config.snr_dbs, config.amplitudes)
            for choices in (config.attacks, config.adaptive)
        )
        return attacks, adaptive
    main = curve if config.epsilons == "auto" else config.epsilons or (trained.stock_objective.epsilon,)
    more = curve if config.curve_epsilons == "auto" else config.curve_epsilons
    attacks, adaptive = request.attacks(config.attacks, main), request.attacks(config.adaptive, main, adaptive=True)
    of_curve = request.attacks(config.curve_attacks, more)
    names = {attack.name for attack in of_curve}
    aware = [attack for attack in request.attacks(config.adaptive, more, adaptive=True) if attack.name in names]
    attacks, adaptive = (
        list({attack.settings: attack for attack in some}.values())
        for some in ([*attacks, *of_curve], [*adaptive, *aware])
    )
    return attacks, adaptive
