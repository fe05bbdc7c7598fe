"""What a report knows of a run: the files of its folder, read once and never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ser_fl.config.yaml_limits import refuse_bombs
from ser_fl.errors import UserError
from ser_fl.report.wording import CLEAN, NO_DEFENCE
from ser_fl.robustness.sanity_checks.report import SanityReport, read_sanity_report
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord
from ser_fl.runs.validation import conform_known

_EXAMPLE_KEYS = {
    *("attack", "epsilon", "emotion", "hop_s"),
    *("predicted_clean", "predicted_adversarial", "clean", "adversarial"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecords:
    """The records of one run; what its folder does not hold yet is empty or None."""

    root: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    summary: Mapping[str, Any]
    rounds: tuple[Mapping[str, Any], ...]
    attacks: tuple[AttackRecord, ...]
    example: Mapping[str, Any] | None
    """A clean and adversarial log-mel pair (`RunFolder.spectrograms`)."""
    sanity_report: SanityReport | None = None
    """What the benchmark doubts of itself; None where it made no checks."""

    def setting(self, key: str) -> Any:
        """A setting by its dotted name, such as "objective.name"; None where the configuration has none."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    @property
    def name(self) -> str:
        return str(self.setting("experiment") or self.root.name)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(emotion) for emotion in self.summary.get("classes") or ())

    @property
    def synthetic(self) -> bool:
        """True where the speech was made by the built-in synthesiser."""
        return self.setting("data.name") == "builtin" or bool(self.summary.get("synthetic"))

    @property
    def corpus(self) -> str:
        """Name of the corpus; it says so where the speech is synthetic."""
        name = str(self.setting("data.name") or "unknown")
        return f"{name} (SYNTHETIC speech)" if self.synthetic else name

    @property
    def split(self) -> str:
        return str(self.summary.get("split") or self.setting("split.name") or "unknown")

    @property
    def test(self) -> Mapping[str, Any]:
        """Scores on the test part; empty before the run has finished."""
        return self.summary.get("test") or {}

    @property
    def num_test_utterances(self) -> int | None:
        """Utterances of the test part, from the confusion matrix; None before the run has finished."""
        confusion = self.test.get("confusion")
        return round(sum(sum(row) for row in confusion)) if confusion else None

    @property
    def defences(self) -> tuple[str, ...]:
        """Test-time defences the model was tested with, none first."""
        return tuple(dict.fromkeys([NO_DEFENCE, *sorted({record.defence for record in self.attacks})]))

    def clean_uar(self, defence: str) -> float | None:
        """Clean UAR under a test-time defence, from the largest set of utterances it was measured on."""
        records = [record for record in self.attacks if record.defence == defence]
        if records:
            best = max(records, key=lambda record: (record.num_examples, record.attack == CLEAN))
            return best.robust_uar if best.attack == CLEAN else best.clean_uar
        return self.test.get("uar") if defence == NO_DEFENCE else None

    def subset(self, record: AttackRecord) -> int | None:
        """Number of utterances of a record that saw only some of the test part; None where it saw all."""
        whole = self.num_test_utterances or max(other.num_examples for other in self.attacks)
        return record.num_examples if record.num_examples < whole else None


def read_run(folder: Path) -> RunRecords:
    """Read the files of a run folder; those that are not there yet are left empty.

    Raises:
        UserError: the folder is not a run folder, or a file in it is damaged or of another schema.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        raise UserError(
            f"{folder} is not a run folder (it has no config.yaml): give the folder that `ser-fl train` made"
        )
    run.refuse_links_out()
    summary = _read_summary(run)
    return RunRecords(
        root=folder,
        config=_read_config(run.config),
        environment=_read_mapping(run, run.environment),
        summary=summary,
        rounds=_read_rounds(run),
        attacks=_read_attacks(run, len(summary.get("classes") or ())),
        example=_read_example(run),
        sanity_report=read_sanity_report(run),
    )


_SUMMARY: Mapping[str, Any] = {
    **dict.fromkeys(("split", "stopped", "experiment"), str | None),
    **dict.fromkeys(("selected_round", "num_clients", "num_rounds"), int | None),
    "classes": tuple[str, ...] | None,
    "test": dict[str, Any] | None,
}
_TEST: Mapping[str, Any] = {
    **dict.fromkeys(("uar", "accuracy", "macro_f1"), float | None),
    "confusion": tuple[tuple[float, ...], ...] | None,
    "per_class_recall": tuple[float | None, ...] | None,
    "per_speaker_uar": dict[str, float | None] | None,
}
_ROUND: Mapping[str, Any] = {
    "round": int | None,
    "failures": tuple[Any, ...] | None,
    **dict.fromkeys(("train_loss", "uar", "accuracy", "macro_f1", "robust_uar", "seconds"), float | None),
}
_EXAMPLE: Mapping[str, Any] = {
    **dict.fromkeys(("attack", "emotion", "predicted_clean", "predicted_adversarial"), str),
    **dict.fromkeys(("clean", "adversarial"), tuple[tuple[float, ...], ...]),
    "epsilon": float | None,
    "hop_s": float,
}


def _read_summary(run: RunFolder) -> Mapping[str, Any]:
    """``summary.json``; what the report looks into must have the form it is written in."""
    summary = _in_form(run.summary, _read_mapping(run, run.summary), _SUMMARY)
    test = _in_form(run.summary, summary.get("test") or {}, _TEST, "test.")
    if confusion := test.get("confusion"):
        _check_square(run.summary, "test.confusion", confusion, len(summary.get("classes") or confusion))
    return {**summary, "test": test}


def _read_attacks(run: RunFolder, num_classes: int) -> tuple[AttackRecord, ...]:
    records = tuple(run.read_attacks())
    for record in records:
        if record.confusion:
            _check_square(run.attacks, "confusion", record.confusion, num_classes or len(record.confusion))
    return records


def _in_form(path: Path, content: Mapping[str, Any], forms: Mapping[str, Any], prefix: str = "") -> Mapping[str, Any]:
    try:
        return conform_known(content, forms, prefix)
    except ValueError as error:
        raise UserError(f"{path} {error}: was it changed by hand?") from None


def _check_square(path: Path, name: str, matrix: Sequence[Sequence[float]], size: int) -> None:
    if [len(row) for row in matrix] != [size] * size or any(not count >= 0 for row in matrix for count in row):
        raise UserError(f"{path} must hold {size} rows of {size} counts as {name}: was it changed by hand?")


def _read_example(run: RunFolder) -> Mapping[str, Any] | None:
    example = _read_mapping(run, run.spectrograms)
    if example and (missing := _EXAMPLE_KEYS - set(example)):
        raise UserError(f"{run.spectrograms} lacks {', '.join(sorted(missing))}: run `ser-fl benchmark` again")
    example = _in_form(run.spectrograms, example, _EXAMPLE)
    if example:
        shapes = [{len(line) for line in example[name]} for name in ("clean", "adversarial")]
        if len(example["clean"]) != len(example["adversarial"]) or shapes[0] != shapes[1] or len(shapes[0]) != 1:
            raise UserError(f"{run.spectrograms} must hold two spectrograms of one shape: was it changed by hand?")
    return example or None


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        refuse_bombs(path)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        str(content)  # a number of thousands of digits cannot be written
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not YAML ({reason}): was it changed by hand?") from None
    return _mapping(path, content)


def _read_mapping(run: RunFolder, path: Path) -> Mapping[str, Any]:
    return _mapping(path, run.read_json(path)) if path.exists() else {}


def _mapping(path: Path, content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must hold a mapping, got {type(content).__name__}: was it changed by hand?")
    return content


def _read_rounds(run: RunFolder) -> tuple[Mapping[str, Any], ...]:
    return tuple(_in_form(run.rounds, entry, _ROUND) for entry in run.read_jsonl(run.rounds))
