"""The typed schema of ``configs/benchmark.yaml`` and ``configs/transfer.yaml``: what is done to trained runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ser_fl.config.values import Amount, Count, Epsilon, Positive, as_yaml, is_count, must_be, stage

Backend = Literal["auto", "art", "native"]
"""Whose code runs an attack: ART's for FGSM, BIM, PGD, MIM, DeepFool and HopSkipJump and ours for the rest; ART's
wherever it has the attack; ours wherever we have it. In expectation over a defence and on recordings always ours."""


@stage
class AttackChoice:
    """One attack or suite, and what is set for it alone; null is what is set for all."""

    name: str
    """In the registry, art:ClassName, or a suite."""
    epsilon: Epsilon | None = None
    """The one budget that it is run at, in place of all others."""
    steps: Count | None = None
    """Gradient steps or, of score attacks, queries."""
    step_size: Positive | None = None
    """Null: a quarter of epsilon, or what the attack chooses."""
    restarts: Amount | None = None
    """Random starts; 0: one start at the clean utterance."""
    labels: bool = True
    """Whether it knows the true classes; else the model's own clean predictions stand for them, as in published
    studies, and records name it with "_unlabelled"."""
    backend: Backend | None = None
    """As of all attacks."""


def _listed(given: object) -> object:
    """One attack need not be in brackets, nor a name in braces."""
    many = [given] if isinstance(given, (str, Mapping)) else given
    if not isinstance(many, (list, tuple)):
        return given
    return tuple({"name": one} if isinstance(one, str) else one for one in many)


Choices = Annotated[tuple[AttackChoice, ...], BeforeValidator(_listed)]
_EPSILONS = "epsilons must be auto or a list of numbers"
Epsilons = Annotated[
    tuple[Epsilon, ...] | Literal["auto"],
    must_be(_EPSILONS, lambda given: not isinstance(given, str) or given == "auto"),
]
_SAMPLES = "eot_samples must be exact or a whole number from 1 up"
Defences = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...] | Literal["auto"],
    must_be(
        "defences must be auto, or a list that must name one at least",
        lambda given: given == "auto" or (isinstance(given, (list, tuple)) and len(given) > 0),
    ),
]
Scored = Literal["train", "validation", "test", "all"]
"""A part of a split, or all utterances of a corpus."""
Samples = Annotated[Count | Literal["exact"], must_be(_SAMPLES, lambda given: given == "exact" or is_count(given))]


@stage
class BenchmarkConfig:
    """Which attacks, at which budgets, shown to which defences, on a trained run."""

    run: str
    """The run folder."""
    root: str | None
    """Folder of the corpus, where it is no longer the one in the run's config.yaml."""
    speech: tuple[str, ...]
    """Settings of the utterances that are attacked, in place of the run's own test part: on a command line by
    themselves, data=CORPUS data.root=DIR and any of data and split; from Python a list of these. Emotions are mapped by
    name. Records then lie below RUN/evaluations."""
    part: Scored | None
    """Of the split; null is the test part of the run's own corpus, and all of another."""
    allow_seen: bool
    """Whether test utterances are attacked that the model was trained on or selected by, as in a corpus that has grown
    since."""
    attacks: Annotated[Choices, Field(min_length=1)]
    """Names in the registry, art:ClassName, or a suite: quick, standard, thorough or paper. With settings of its own an
    attack is written as {name: bim, steps: 100, step_size: 0.1}."""
    epsilons: Epsilons
    """L-infinity budgets in standardised log-mel units; empty: the epsilon that the run was trained with; auto: ten,
    from where UAR is within 2 points of clean to where it is at most chance."""
    defences: Defences
    """auto: none, and randomisation where the model takes it."""
    adaptive: Choices
    """Attacks that are also made against every defence but "none", in expectation over its randomness."""
    eot_samples: Samples
    """Draws of the defence that an adaptive attack averages over in every step; exact: all that there are (84)."""
    steps: Count | None
    """Of every attack that has some; null: each attack's own default."""
    restarts: Amount | None
    """Random starts of every attack that has some; null: each attack's own default."""
    backend: Backend
    """Whose code runs attacks that ART has too: auto, art's, or ours (native)."""
    curve_attacks: Choices
    """Attacks that are measured at `curve_epsilons` too, for the curve of robust UAR over epsilon."""
    curve_epsilons: Epsilons
    """Empty: none; auto: as of epsilons."""
    sweep: bool
    """Whether an attack goes on at an epsilon where it was at a smaller one: cheaper, and robust UAR never rises with
    epsilon. Without, each epsilon is attacked by itself."""
    max_examples: Count | None
    """Attack a balanced subset of the test utterances; null: all."""
    subsets: dict[str, Count]
    """Sizes of balanced subsets for attacks that are too slow for all, by name, and of all adaptive ones, by
    "adaptive"; the smaller counts. They come before those that a suite asks for."""
    drop_broken: bool
    """Spare an attack the utterances that earlier ones broke at the same epsilon. The worst case is the same; figures
    of an attack are then about what the earlier ones left."""
    keep_adversarials: bool
    """Keep the adversarial features below RUN/attacks, which otherwise go when they are no longer needed."""
    fresh: bool
    """Put earlier records aside and begin anew; otherwise a killed benchmark goes on, and another adds to them."""
    batch_size: Count
    """Utterances at a time."""
    seed: Amount
    """Of attacks and of the defences' draws."""
    accelerator: Literal["cpu", "auto", "cuda"] | None = None
    """Of the attacks and of what is shown to the defences; null: that of the run, or cpu where it is not here."""
    domain: Literal["logmel", "waveform"] = "logmel"
    """What attacks move: standardised features, within epsilons, or recorded samples, within snr_dbs or amplitudes."""
    snr_dbs: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()
    """domain=waveform: budgets as signal-to-noise ratios in dB; together with no amplitudes, empty is 60 to 0 by 10."""
    amplitudes: tuple[Epsilon, ...] = ()
    """domain=waveform: budgets as the largest change of a sample, full scale 1."""
    enrolment_attack: Literal["none", "poisoned", "both"] = "none"
    """Of unseen speakers who are enrolled by clips that are not scored (normalisation=speaker, enrolment=10): whether
    these clips are attacked, within each budget; in both the scored ones too, of speakers whose enrolment is poisoned.
    The attacker knows the model, and all that is scored of the speaker: an upper bound."""
    write_audio: Amount = 0
    """domain=waveform: of so many utterances, clean and adversarial WAV files go to the run's folder adversarial/."""
    checks: bool = True
    """Whether the benchmark examines its own figures: attacks some utterances once more, in other ways."""
    checks_subset: Count = 64
    """How many utterances the checks attack."""

    def __post_init__(self) -> None:
        _refuse_two_corpora(self)
        if self.drop_broken and self.enrolment_attack != "none":
            raise ValueError(
                "drop_broken goes with enrolment_attack=none, since one poisoned enrolment is for all clips of a "
                f"speaker, got {self.enrolment_attack}: leave drop_broken out"
            )
        other, budgets, of_other = {
            "waveform": ("logmel", "snr_dbs", ("epsilons", "curve_epsilons", "drop_broken", "keep_adversarials")),
            "logmel": ("waveform", "epsilons", ("snr_dbs", "amplitudes", "write_audio")),
        }[self.domain]
        for setting in of_other:
            given = getattr(self, setting)
            if given and (setting, given) != ("curve_epsilons", "auto"):
                written = list(given) if isinstance(given, tuple) else as_yaml(given)
                instead = f"take {budgets}" if isinstance(given, (tuple, str)) else f"leave {setting} out"
                raise ValueError(
                    f"{setting} goes with domain={other}, got {written} with domain={self.domain}: {instead}, or "
                    f"domain={other}"
                )


def _refuse_two_corpora(config: BenchmarkConfig | TransferConfig) -> None:
    if config.root is not None and any(setting.startswith("data=") for setting in config.speech):
        raise ValueError(f"root is the folder of the run's own corpus, got {config.root} beside data=: write data.root")


@stage
class TransferConfig:
    """Which attack is made on each of some runs and shown to all of them."""

    runs: tuple[str, ...]
    """Run folders; RUN:CLIENT is a client's own model, of a run with federation=local_only."""
    root: str | None
    """Folder of the corpus, where it is no longer the one in the runs' config.yaml."""
    speech: tuple[str, ...]
    """As in `BenchmarkConfig`, but for where records lie; so part."""
    part: Scored | None
    """As in `BenchmarkConfig`."""
    allow_seen: bool
    """As in `BenchmarkConfig`."""
    attack: str
    """A name in the catalogue, or art:ClassName."""
    epsilon: Epsilon
    """L-infinity budget in the standardised log-mel units of the run that is attacked, whichever it is shown to."""
    defences: Defences
    """Of the run that it is shown to; auto as in `BenchmarkConfig`."""
    steps: Count | None
    """Null: the attack's own default, as with restarts."""
    restarts: Amount | None
    """Random starts; null: the attack's own default."""
    max_examples: Count | None
    """A balanced subset of the utterances that two runs have in common; null: all."""
    batch_size: Count
    """Utterances at a time."""
    seed: Amount
    """Of the attack and of the defences' draws."""
    accelerator: Literal["cpu", "auto", "cuda"]
    """Of the attack and of what is shown to the models."""
    out: str | None
    """Folder that transfer.json is written to; null: the first run's."""

    def __post_init__(self) -> None:
        _refuse_two_corpora(self)
        if len(self.runs) < 2:
            raise ValueError(
                f"ser-fl transfer needs two runs at least, got {len(self.runs)}: ser-fl transfer RUN RUN [RUN ...]"
            )
