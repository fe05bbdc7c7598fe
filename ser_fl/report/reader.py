"""What a report knows of a run: the files of its folder, read once and never changed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ser_fl.errors import UserError
from ser_fl.files import Figure, record_of
from ser_fl.robustness.sanity_checks.report import SanityReport, read_sanity_report
from ser_fl.runs.folder import RunFolder, read_transfer
from ser_fl.runs.parties import LeftOut, Party
from ser_fl.runs.records import CLEAN, NO_DEFENCE, AttackRecord, Baseline, SpeechRecord, TransferMatrix

_Form = TypeVar("_Form")
_NUMBER = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class TestScores:
    """Under "test" in ``summary.json``."""

    uar: float | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    confusion: tuple[tuple[Figure, ...], ...] = ()
    """Rows true, columns predicted."""
    per_class_recall: tuple[float | None, ...] = ()
    per_speaker_uar: dict[str, float | None] = field(default_factory=dict)
    per_speaker_confusion: dict[str, tuple[tuple[Figure, ...], ...]] = field(default_factory=dict)
    """Empty in runs of earlier versions."""
    recording_products: tuple[tuple[Figure, ...], ...] = ()
    """`ser_fl.metrics.recording_products`; empty where every utterance is a recording, or where nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusScores:
    """Under "corpora" in ``summary.json``."""

    classes: tuple[str, ...]
    uar: float | None
    speaker_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a report takes from ``summary.json``."""

    classes: tuple[str, ...] = ()
    split: str | None = None
    shared: dict[str, Any] | None = None
    """What the test part shares with training, in ``words`` too; None where nodes alone could tell."""
    normalisation: str | None = None
    """How speakers are scaled, in words; None where all are scaled alike."""
    synthetic: bool = False
    num_clients: int | None = None
    num_rounds: int | None = None
    """That were done."""
    selected_round: int | None = None
    stopped: str | None = None
    parties: tuple[Party, ...] = ()
    """Empty in runs of earlier versions."""
    left_out: tuple[LeftOut, ...] = ()
    test: TestScores | None = None
    """None before the run has finished."""
    corpora: dict[str, CorpusScores] = field(default_factory=dict)
    """Of several corpora, over the emotions of each; those of ``test`` are their means. Empty of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    round: int
    train_loss: float | None = None
    uar: float | None = None
    robust_uar: float | None = None
    seconds: float | None = None
    failures: tuple[Any, ...] = ()
    shares: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A clean and adversarial log-mel pair (`RunFolder.spectrograms`), both of shape (F, L)."""

    attack: str
    epsilon: float | None
    emotion: str
    predicted_clean: str
    predicted_adversarial: str
    clean: tuple[tuple[Figure, ...], ...]
    adversarial: tuple[tuple[Figure, ...], ...]
    hop_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecords:
    """The records of one run; what its folder does not hold yet is empty or None."""

    root: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    summary: Summary
    rounds: tuple[Round, ...]
    attacks: tuple[AttackRecord, ...]
    example: Example | None = None
    sanity_report: SanityReport | None = None
    """What the benchmark doubts of itself; None where it made no checks."""
    speech: SpeechRecord | None = None
    """Of attacks on other speech than the test part of the run's own corpus; None of those."""
    baseline: Baseline | None = None
    """What plain classifiers reach on the same test utterances; None where nobody asked."""
    others: tuple["RunRecords", ...] = ()
    """The same run under attack on other speech."""

    def setting(self, key: str) -> Any:
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    @property
    def name(self) -> str:
        return str(self.setting("run_name") or self.setting("experiment") or self.root.name)

    @property
    def is_hardened(self) -> bool:
        return self.setting("objective.name") not in (None, "clean", "domain_adversarial")

    @property
    def synthetic(self) -> bool:
        """True where the speech was made by the built-in synthesiser."""
        if self.speech:
            return self.speech.synthetic
        return self.setting("data.name") == "builtin" or self.summary.synthetic

    @property
    def corpus(self) -> str:
        """Name of the corpus; it says so where the speech is synthetic."""
        name = self.speech.corpus if self.speech else str(self.setting("data.name") or "unknown")
        return f"{name} (SYNTHETIC speech)" if self.synthetic else name

    @property
    def split(self) -> str:
        if self.speech:
            return f"part {self.speech.part}"
        return str(self.summary.split or self.setting("split.name") or "unknown")

    @property
    def split_in_words(self) -> str:
        """With what it shares, and how speakers are scaled."""
        said = [self.summary.shared["words"]] if self.summary.shared else []
        said += [self.summary.normalisation] if self.summary.normalisation else []
        return f"{self.split} ({'; '.join(said)})" if said else self.split

    @property
    def test(self) -> TestScores:
        """Scores on the test part; without figures before the run has finished."""
        return self.summary.test or TestScores()

    @property
    def attacked(self) -> Iterator[AttackRecord]:
        return (record for record in self.attacks if record.attack != CLEAN)

    @property
    def num_test_utterances(self) -> int | None:
        """Utterances of the test part, from the confusion matrix; None before the run has finished."""
        return round(sum(map(sum, self.test.confusion))) if self.test.confusion else None

    @property
    def defences(self) -> tuple[str, ...]:
        """Test-time defences the model was tested with, none first."""
        return tuple(dict.fromkeys([NO_DEFENCE, *sorted({record.defence for record in self.attacks})]))

    def clean_scores(self, defence: str) -> tuple[float | None, float | None]:
        """Clean UAR and accuracy under a defence, from the largest set of utterances they were measured on."""
        records = [record for record in self.attacks if record.defence == defence]
        if not records:
            return (self.test.uar, self.test.accuracy) if defence == NO_DEFENCE else (None, None)
        best = max(records, key=lambda record: (record.num_examples, record.attack == CLEAN))
        if best.attack == CLEAN:
            return best.robust_uar, best.robust_accuracy
        return best.clean_uar, best.clean_accuracy

    def subset(self, record: AttackRecord) -> int | None:
        """Number of utterances of a record that saw only some of the test part; None where it saw all."""
        whole = self.num_test_utterances or max(other.num_examples for other in self.attacks)
        return record.num_examples if record.num_examples < whole else None


def run_folders(given: Sequence[Path]) -> list[Path]:
    """What a user names, as run folders, each once: a folder of several, such as a cross-validation's, stands for all
    that lie in it, its own records for the folder, and an earlier page for nothing.
    """
    found: dict[Path, Path] = {}
    for path in given:
        if path.is_file() and path.suffix == ".html":
            continue
        folder = path.parent if path.is_file() and path.stem == "crossval" else path
        within = [config.parent for config in folder.glob("*/config.yaml")]
        if (folder / "config.yaml").exists() or not within:
            within = [folder]
        for run in sorted(within, key=lambda run: [int(p) if p.isdecimal() else p for p in _NUMBER.split(run.name)]):
            found.setdefault(run.resolve(), run)
    return list(found.values())


def read_run(folder: Path) -> RunRecords:
    """Read the files of a run folder; those that are not there yet are left empty. A `UserError` says that it is none,
    or that a file in it is damaged or of another schema.
    """
    run = RunFolder(folder)
    run.refuse_no_run()
    run.refuse_links_out()
    summary = _form(run.summary, Summary, _mapping(run, run.summary))
    record = RunRecords(
        root=folder,
        config=_mapping(run, run.config),
        environment=_mapping(run, run.environment),
        summary=summary,
        rounds=tuple(_form(run.rounds, Round, entry) for entry in run.read_jsonl(run.rounds)),
        attacks=(),
    )
    _check_confusion(run.summary, "test.confusion", summary, record.test.confusion)
    _check_confusion(run.summary, "test.recording_products", summary, record.test.recording_products, 2)
    for speaker, matrix in record.test.per_speaker_confusion.items():
        _check_confusion(run.summary, f"test.per_speaker_confusion.{speaker}", summary, matrix)
    baseline = run.read_baseline()
    for each in baseline.records if baseline else ():
        _check_confusion(run.baseline, "confusion", summary, each.confusion)
    bare = replace(record, summary=replace(summary, test=None), rounds=())
    found = list[RunRecords]()
    for other in (RunFolder(file.parent) for file in sorted(run.evaluations.glob("*/attacks.json"))):
        speech, of = other.read_speech(), bare
        if speech and (own := summary.corpora.get(speech.corpus)):
            of = replace(bare, summary=replace(bare.summary, classes=own.classes))
        found.append(replace(_attacked(of, other), speech=speech))
    return replace(_attacked(record, run), baseline=baseline, others=tuple(found))


def _attacked(record: RunRecords, run: RunFolder) -> RunRecords:
    """With the attacks of a folder, which is the run's or lies below it."""
    attacks = tuple(run.read_attacks())
    for attack in attacks:
        _check_confusion(run.attacks, "confusion", record.summary, attack.confusion)
        _check_confusion(run.attacks, "recording_products", record.summary, attack.recording_products, 2)
    example = _form(run.spectrograms, Example, run.read_json(run.spectrograms)) if run.spectrograms.exists() else None
    if example is not None:
        clean, adversarial = ([len(line) for line in lines] for lines in (example.clean, example.adversarial))
        if clean != adversarial or len(set(clean)) != 1:
            raise UserError(f"{run.spectrograms} must hold two spectrograms of one shape: was it changed by hand?")
    return replace(record, attacks=attacks, example=example, sanity_report=read_sanity_report(run))


def _check_confusion(
    path: Path, name: str, summary: Summary, matrix: Sequence[Sequence[Figure]], rows_a_class: int = 1
) -> None:
    size = len(summary.classes) * rows_a_class or len(matrix)
    if matrix and ([len(row) for row in matrix] != [size] * size or any(not n >= 0 for row in matrix for n in row)):
        raise UserError(f"{path} must hold {size} rows of {size} counts as {name}: was it changed by hand?")


def read_matrices(folders: Sequence[Path], files: Sequence[Path] = ()) -> list[TransferMatrix]:
    """The transfer matrices in run folders and other files, each once; a `UserError` for a missing or damaged one."""
    there = [file for file in (RunFolder(folder).transfer for folder in folders) if file.exists()]
    return [read_transfer(file) for file in {file.resolve(): file for file in (*there, *files)}.values()]


def _form(path: Path, kind: type[_Form], content: Any) -> _Form:
    try:
        return record_of(kind, content)
    except ValueError as error:
        raise UserError(f"{path} {error}: was it changed by hand?") from None


def _mapping(run: RunFolder, path: Path) -> Mapping[str, Any]:
    """Content of a file of YAML or JSON; an empty one where there is none."""
    if not path.exists():
        return {}
    if path.suffix == ".yaml":
        from ser_fl.config.text import UNFIT, bounded_yaml

        try:
            content = yaml.safe_load(bounded_yaml(path))
            str(content)  # a number of thousands of digits cannot be written
        except UserError:
            raise
        except (yaml.YAMLError, *UNFIT) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is not YAML ({reason}): was it changed by hand?") from None
    else:
        content = run.read_json(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must hold a mapping, got {type(content).__name__}: was it changed by hand?")
    return content
