"""What the checks of a benchmark found, and where it lies on disk: under "checks" in a run's ``attacks.json``. Nothing
here loads torch, so that a report can read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from ser_fl.errors import UserError
from ser_fl.files import record_of, write_json
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.frames import html_table, to_frame
from ser_fl.runs.records import AttackRecord, SpeechRecord

if TYPE_CHECKING:
    from ser_fl.attacks.attack import AttackSettings

HALF_A_POINT = 0.005
"""Of UAR: what may change without a doubt."""
ROUNDING = 1e-9

Severity = Literal["fails", "hint"]
_Subject = TypeVar("_Subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """One reason not to believe a figure of the benchmark."""

    check: str = ""
    """What does not hold, as the check is called."""
    words: str
    """The figures, and what to do, in a sentence or two."""
    severity: Severity = "fails"
    """A check "fails" where the figures contradict each other; a "hint" may have an honest reason."""
    defence: str | None = None
    attack: str | None = None
    epsilon: float | None = None


class NotChecked(Exception):
    """Raised by a check that has nothing to look at; the message says what it would have needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SanityReport:
    doubts: tuple[Doubt, ...]
    passed: tuple[str, ...]
    """Checks that found no fault."""
    not_checked: Mapping[str, str]
    """Checks that had nothing to look at, and what they would have needed."""

    def __add__(self, other: Self) -> Self:
        """Both, where each made checks of its own."""
        return type(self)(
            doubts=self.doubts + other.doubts,
            passed=self.passed + other.passed,
            not_checked={**self.not_checked, **other.not_checked},
        )

    @property
    def failed(self) -> tuple[str, ...]:
        """Checks with a doubt that is more than a hint, each once."""
        return tuple(dict.fromkeys(doubt.check for doubt in self.doubts if doubt.severity == "fails"))

    @property
    def hinted(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(doubt.check for doubt in self.doubts if doubt.check not in self.failed))

    @property
    def headline(self) -> str:
        failed, hinted, passed = map(len, (self.failed, self.hinted, self.passed))
        skipped = f"; {len(self.not_checked)} had nothing to look at" if self.not_checked else ""
        counts = f"{failed} {'fails' if failed == 1 else 'fail'}, {hinted} with a hint, {passed} passed{skipped}"
        return f"{failed + hinted + passed} checks of the benchmark itself: {counts}"


_Check = Callable[[_Subject], Iterable[Doubt]]


class Checks(dict[str, _Check[_Subject]]):
    """Checks of one kind of subject by name, in the order in which they are made."""

    def named(self, name: str) -> Callable[[_Check[_Subject]], _Check[_Subject]]:
        """Adds the function below under this name."""
        return lambda check: self.setdefault(name, check)

    def made_of(
        self, subject: _Subject, on_check: Callable[[str, int, int], None] = lambda name, done, total: None
    ) -> SanityReport:
        """What each check finds in the subject; told of progress before each and at the end."""
        doubts, passed, not_checked = list[Doubt](), list[str](), dict[str, str]()
        for done, (name, check) in enumerate(self.items()):
            on_check("checks", done, len(self))
            try:
                found = [replace(doubt, check=name) for doubt in check(subject)]
            except NotChecked as reason:
                not_checked[name] = str(reason)
                continue
            doubts += found
            passed += [] if found else [name]
        on_check("checks", len(self), len(self))
        return SanityReport(doubts=tuple(doubts), passed=tuple(passed), not_checked=not_checked)


def at_budget(given: AttackRecord | AttackSettings) -> str:
    """The budget of an attack, as sentences name it."""
    if given.snr_db is not None:
        return f"at an SNR of {given.snr_db:g} dB"
    return "without a budget" if given.epsilon is None else f"at epsilon {given.epsilon:.4g}"


class CheckedRecords(list[AttackRecord]):
    """The records of a benchmark, a list of them, and what its checks found."""

    checks: SanityReport | None = None
    """None where none were made."""
    speech: SpeechRecord | None = None
    """Whose utterances they are of; None of arrays."""
    folder: RunFolder | None = None
    """Where they lie; None of arrays."""

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each record; a `UserError` where pandas is missing."""
        return to_frame(map(asdict, self))

    def _repr_html_(self) -> str:
        rows = []
        for one in self:
            interval = one.uar_interval and "{:.2f}–{:.2f}".format(*one.uar_interval)
            facts = (f"{one.attack}, {one.knowledge}", at_budget(one), one.defence, one.num_examples)
            rows.append((*facts, one.clean_uar, one.robust_uar, interval))
        note = "SYNTHETIC speech. " if self.speech and self.speech.synthetic else ""
        note += self.checks.headline if self.checks else ""
        header = ("attack", "budget", "defence", "utterances", "clean UAR", "robust UAR", "95 %")
        return html_table("UAR under attack", header, rows, note)


def write_sanity_report(run: RunFolder, sanity_report: SanityReport) -> None:
    """Add a sanity report to the records of ``attacks.json``, which is there already."""
    write_json(run.attacks, {**run.read_json(run.attacks), "checks": sanity_report})


def read_sanity_report(run: RunFolder) -> SanityReport | None:
    """The sanity report in ``attacks.json``; None where there is none; a `UserError` where it has another form."""
    content: Any = run.read_json(run.attacks) if run.attacks.exists() else None
    checks = content.get("checks") if isinstance(content, Mapping) else None
    if checks is None:
        return None
    try:
        return record_of(SanityReport, checks)
    except ValueError as error:
        raise UserError(f"{run.attacks} has incomplete checks ({error}): run `ser-fl benchmark` again") from None
