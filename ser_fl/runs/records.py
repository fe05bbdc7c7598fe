"""What crosses stages or lands on disk: the records of a run."""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from ser_fl.files import Figure
from ser_fl.runs.parties import LeftOut

if TYPE_CHECKING:
    from torch import Tensor

ATTACKS_SCHEMA = SUMMARY_SCHEMA = MODEL_SCHEMA = PROFILE_SCHEMA = TRANSFER_SCHEMA = BASELINE_SCHEMA = 1
"""Versions of ``attacks.json``, ``summary.json``, ``model.json``, ``profile.json``, ``transfer.json`` and
``baseline.json``."""

CLEAN = "clean"
"""`AttackRecord.attack` of the score without an attack."""
WORST_CASE = "worst_case"
"""`AttackRecord.attack` of the worst over all attacks of one budget, utterance by utterance."""
ON_ENROLMENT, WITH_ENROLMENT = "_on_enrolment", "_with_enrolment"
"""End `AttackRecord.attack` where the clips that enrol a speaker were attacked: in place of the scored ones, or before
them (`ser_fl.attacks.enrolment`)."""
NO_DEFENCE = "none"
"""`AttackRecord.defence` without one."""

State = dict[str, "Tensor"]
"""A model's full state: parameters and buffers by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFigures:
    """What a client says of its local epochs in numbers; whatever carries an update carries these."""

    num_examples: int
    """Distinct clean utterances trained on: the weight in the average."""
    train_loss: float
    """Mean loss over the local epochs' examples."""
    seconds: float
    update_norm: float
    """L2 norm of the difference to the received parameters."""


FIGURES = tuple(each.name for each in fields(ClientFigures))
"""Their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientUpdate(ClientFigures):
    """What a client sends back after its local epochs."""

    client_id: str
    state: State
    """The client's full model state: parameters, running statistics and counters."""
    optimiser_state: State = field(default_factory=dict)
    """The client's optimiser, where `federation.keep_optimiser` carries it to its next round; empty otherwise."""
    nanoseconds: dict[str, int] = field(default_factory=dict)
    """By part of its work (`ser_fl.stopwatch.ClientPart`), where the run is profiled; empty otherwise."""


class Offence(str):
    """Why there is nothing that can be used, of what no honest client sends: it is counted against whoever sent it.
    Plain text is of one that is late, away, or says itself that it failed.
    """

    __slots__ = ()


Outcome = ClientUpdate | str
"""An update, or why there is none: the traceback of the client that raised, or how its process ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFailure:
    """A client that was left out of a round, or a holder of validation utterances that gave no figures, and why."""

    client_id: str
    error: str
    stage: Literal["training", "validation"] = "training"
    offence: bool = False
    """Whether what came could not be an honest client's (`Offence`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRecord(ClientFigures):
    """A line of ``clients.jsonl``: one client in one round."""

    round: int
    client_id: str
    bytes_down: int
    bytes_up: int
    cosine: float | None = None
    """Of its update with the sum of the others', all of one length, give or take 0.03
    (`ser_fl.federation.screening.sketch_of`); None where it is alone, clients do not start from one model, or with
    ``federation.strikes=0``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A line of ``rounds.jsonl``: one round, and how its model does on the validation part, where it was scored."""

    round: int
    cohort: tuple[str, ...]
    train_loss: float
    uar: float | None
    """None in rounds between those that are scored (`selection.every`), as accuracy and macro F1."""
    accuracy: float | None
    macro_f1: float | None
    seconds: float
    failures: tuple[ClientFailure, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    """From the next round on."""
    learning_rate: float
    """Of the clients."""
    server_learning_rate: float | None = None
    """Of Adam at the server."""
    robust_uar: float | None = None
    """UAR under the selection attack, in rounds that measure it."""
    shares: dict[str, float] = field(default_factory=dict)
    """By client, how much of its update is in the round's model: 0 for one that was dropped, 1 at most together, the
    rest being the model before. Empty where the aggregation does not say, or there is none."""

    def line(self, experiment: str) -> str:
        scored = "" if self.uar is None else f"  validation UAR {self.uar:.3f}"
        robust = "" if self.robust_uar is None else f"  robust {self.robust_uar:.3f}"
        failed = "".join(f"  {failure.client_id} failed" for failure in self.failures)
        out = "".join(f"  {left}" for left in self.left_out)
        return (
            f"{experiment}  round {self.round:3d}{scored}{robust}  "
            f"loss {self.train_loss:.3f}  {self.seconds:.1f} s{failed}{out}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechRecord:
    """Whose utterances figures are of: under "speech" in ``attacks.json`` and ``transfer.json``."""

    corpus: str
    part: str
    """Of the corpus's split, or "all"."""
    num_utterances: int
    utterances: str
    """Digest of their ids, emotions and sounds."""
    synthetic: bool
    words: tuple[str, ...]
    """What they share with training, and which emotions either side lacks, a line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackFacts:
    """What is said of an attack wherever it is written down: what it was, what it knew, and what it took."""

    attack: str
    """Name in the registry, or "clean" without an attack; with "_unlabelled" it did not know the true classes, with
    "_on_enrolment" or "_with_enrolment" it moved the clips that enrol a speaker, alone or too."""
    library: str
    """The class that ran, with its module's root."""
    knowledge: str
    """Threat model: undefended, adaptive, transfer, score, decision; of a worst case all of them, joined by "+"."""
    domain: str
    """"logmel" (standardised units) or "waveform"."""
    norm: str
    """"inf" or "2"; "masking" for a budget that is the masking threshold of each clip; "none" for clean."""
    snr_db: float | None
    """The budget, in the waveform domain; None without."""
    steps: int | None
    step_size: float | None
    restarts: int | None
    eot_samples: int
    """Draws of a defence that every answer of the model was averaged over."""
    swept: bool = False
    """Whether the attack went on from a smaller epsilon: what that one broke counts as broken, and passes and seconds
    are those of this epsilon alone."""
    forward_passes: int
    """Utterances that went forward through the model."""
    backward_passes: int
    seconds: Figure

    @property
    def enrolment(self) -> str:
        """`ON_ENROLMENT`, `WITH_ENROLMENT`, or nothing where enrolment was clean."""
        return next((suffix for suffix in (ON_ENROLMENT, WITH_ENROLMENT) if self.attack.endswith(suffix)), "")

    @property
    def is_worst_case(self) -> bool:
        return self.attack.startswith(WORST_CASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRecord(AttackFacts):
    """One attack on one defended model: an entry of ``attacks.json``."""

    epsilon: float | None
    """In standardised log-mel units, or an amplitude (full scale 1) in the waveform domain; None without."""
    defence: str
    """Name of the test-time defence that the adversarial utterances were shown to; "none" without one."""
    clean_uar: Figure
    robust_uar: Figure
    attack_success_rate: Figure
    """Over what was right when clean."""
    mean_l2: Figure
    """Mean L2 norm of the perturbation over successful attacks, in the units of the domain; 0 where none was."""
    max_linf: Figure
    median_snr_db: float | None
    """Waveform domain: over successes."""
    num_examples: int
    seed: int
    device: str = "cpu"
    """Kind of device that the model and the attack ran on: "cpu" or "cuda"."""
    clean_accuracy: Figure | None = None
    """Share of all utterances that are recognised; None in records of earlier versions."""
    robust_accuracy: Figure | None = None
    confusion: tuple[tuple[Figure, ...], ...] = ()
    """Rows true, columns predicted, under attack and defence."""
    uar_interval: tuple[Figure, Figure] | None = None
    """95 % interval of `robust_uar` by bootstrap over recordings (`ser_fl.metrics.Bootstrap`)."""
    recording_products: tuple[tuple[Figure, ...], ...] = ()
    """`ser_fl.metrics.recording_products`, for intervals over folds; empty where every utterance is a recording."""
    undefended_gap: tuple[Figure, Figure, Figure] | None = None
    """Of an adaptive attack: UAR under the same attack by an attacker who does not know of the defence, minus
    `robust_uar`, on the utterances of both, and its 95 % interval. None where that attack was not made."""
    speaker_uar: dict[str, Figure] = field(default_factory=dict)
    sex_uar: dict[str, Figure] = field(default_factory=dict)
    """Robust UAR of female and male speakers, where known."""
    emotion_recall: dict[str, Figure] = field(default_factory=dict)
    median_epsilon: float | None = None
    """Median over utterances (and runs) of the smallest epsilon that broke them: of those up to this record's that the
    attack ran at, or, for a minimal-norm attack in L-infinity, of its norms; of a worst case, the smallest of all
    attacks. What was wrong when clean has 0. None where more than half withstood, where nothing was attacked, and in
    another norm."""
    median_pesq: float | None = None
    """Waveform domain: median wide-band PESQ over successes, where the package is installed; so with STOI."""
    median_stoi: float | None = None
    masked_share: float | None = None
    """Waveform domain: median over successes of the share of time-frequency bins in which the perturbation lies under
    the masking threshold of its clip; None where the benchmark had no psychoacoustic attack."""
    lost_to_quantisation: float | None = None
    """Waveform domain: (expected) number of successes that are recognised again after a 16-bit WAV file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord(AttackRecord):
    """What an attack made on one model did to another, under one defence: an entry of ``transfer.json``. ``epsilon`` is
    in the standardised units of the source; ``mean_l2`` and ``max_linf`` are in the target's, from its own clean
    features. Passes and seconds are the source's, spent once for all its targets. ``knowledge`` is "transfer", or the
    attack's own where source and target are one model, the white-box figure.
    """

    source: str
    target: str
    """Name of the model that was shown what came of it."""
    carried_uar: Figure
    """Of the target, on the source's clean utterances carried over without an attack: it differs from ``clean_uar``
    only by what the source's box cut off."""
    max_db: Figure
    """Largest change of a log-mel cell that the target was shown, in dB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferMatrix:
    """``transfer.json``: an attack made on each of some models and shown to all of them."""

    models: dict[str, str]
    """Names, as in the records, and where each lies: a run folder, with ":" and a client for a client's own model."""
    synthetic: bool
    """Whether the speech is of the built-in corpus."""
    seconds: Figure
    """Wall time of everything but the features."""
    records: tuple[TransferRecord, ...]
    """For every defence each source with each target, in the order of the models."""
    speech: SpeechRecord | None = None
    """Of the first model; None in files of earlier versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpent:
    """Where the time of some rounds went, in seconds."""

    first_round: int
    last_round: int
    client_rounds: int
    """Updates that came back."""
    seconds: float
    """Wall time of the rounds."""
    clients: dict[str, float]
    """By part (`ser_fl.stopwatch.ClientPart`), summed over clients."""
    server: dict[str, float]
    """By part (`ser_fl.stopwatch.ServerPart`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRecord:
    """``profile.json``: where the time went since the run was last started. With the serial executor clients and server
    together add up to the wall time. With worker processes the server alone does, most of it waiting, and the clients'
    are worker-seconds. What a failed client took is in the server's "other" or waiting.
    """

    executor: str
    first: TimeSpent
    """The first round: workers start, and much is done once only."""
    later: TimeSpent | None
    """All other rounds together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRecord:
    """A plain classifier on functionals: an entry of ``baseline.json``; figures of the test utterances, in [0, 1]."""

    features: str
    """"logmel" or "opensmile" (`ser_fl.data.functionals`)."""
    classifier: str
    """"svm" (linear) or "logistic"."""
    c: float
    """Inverse strength of its regularisation, chosen by UAR over inner folds of what does not test."""
    inner_uar: float
    uar: float
    uar_interval: tuple[float, float] | None
    """95 %, by bootstrap over recordings (`ser_fl.metrics.Bootstrap`)."""
    accuracy: float
    macro_f1: float
    recall: dict[str, float | None]
    """By emotion; None for one without a test utterance."""
    speaker_uar: dict[str, float]
    confusion: tuple[tuple[float, ...], ...]
    """Rows true, columns predicted, in the order of `recall`."""
    speaker_confusion: dict[str, tuple[tuple[float, ...], ...]]
    recording_products: tuple[tuple[float, ...], ...] = ()
    """As of an `AttackRecord`."""
    versions: dict[str, str]
    """Of the packages that it was computed with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """``baseline.json``: what plain classifiers reach on the split, the normalisation and the test utterances of a run,
    or of settings alone.
    """

    corpus: str
    split: dict[str, Any]
    """Its settings."""
    synthetic: bool
    """Whether the speech is of the built-in corpus."""
    normalisation: str
    """"pooled" or "speaker"."""
    enrolment: int | str | None
    """Of test speakers that nobody trained on; None where all are scaled alike."""
    scaling: str | None
    """How speakers are scaled, in words; None where all are scaled alike."""
    num_utterances: dict[str, int]
    """By part; of the test part those that are scored."""
    utterances: str
    """Digest of the ids and emotions that are scored."""
    records: tuple[BaselineRecord, ...]
