"""Whether an entry is what it says: its files, its test utterances, and its figures, scored again."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ser_fl.config.compose import compose, compose_benchmark
from ser_fl.data.features import OnFeatures
from ser_fl.errors import UserError
from ser_fl.files import write_bytes
from ser_fl.leaderboard import suite
from ser_fl.leaderboard.entry import FILE, MODEL_FILES, Entry, WorstCase, model_of, read_entry
from ser_fl.leaderboard.examination import examine, root_of, settings_of
from ser_fl.robustness.benchmark import benchmark_run
from ser_fl.robustness.runner import OnAttack, silent
from ser_fl.runs.records import NO_DEFENCE

_ALL = 1 << 62
_FLIPS = 2
"""Utterances that another processor may turn."""
_Z = 2.58
"""Of 99 % of a normal distribution."""


def tolerance(stated: float, of: int, scored: int) -> float:
    """How far a share of some ``scored`` of ``of`` utterances may be from that of all, in [0, 1]. Of the same number
    these are the same utterances, attacked from the same starts: two may turn by rounding. Of fewer, it is the error of
    a draw without replacement too (the share is moved towards a half by four utterances, since a share of 0 has one).

    >>> tolerance(0.5, 120, 120) == 2 / 120
    True
    """
    share = (stated * of + 2) / (of + 4)
    return _FLIPS / scored + _Z * math.sqrt(max(0.0, share * (1 - share) * (1 / scored - 1 / of)))


def verify(
    folder: Path,
    *,
    root: str | None = None,
    max_examples: int | None = None,
    attacks: Sequence[str] = (),
    on_features: OnFeatures | None = None,
    on_attack: OnAttack = silent,
) -> Iterator[str]:
    """Check an entry, and say what was found as it is found, a line each.

    Args:
        folder: of the entry.
        root: folder of the corpus.
        max_examples: attack so many of the utterances; None for as many as the entry did.
        attacks: on log-mel, beside those of the suite.
        on_features: told how far the features are.
        on_attack: told how far the attacks are.

    Raises:
        UserError: a file was changed, the split or the utterances are others, a figure is not what the entry says (both
            are told), or an attack leaves less than it says.
    """
    entry = read_entry(folder)
    if entry.suite != suite.VERSION:
        raise UserError(
            f"{folder} was judged by version {entry.suite} of the suite, this is {suite.VERSION}: benchmark and add it "
            "again"
        )
    yield f"{entry.name}: {len(entry.digests)} digests are as stated"
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "run")
        for name in MODEL_FILES:
            write_bytes(copy / name, (model_of(folder, entry) / name).read_bytes())
        _same_split(copy, entry, folder)
        found = examine(copy, entry.defence, root=root, on_features=on_features)
        for what, ours, theirs in (
            ("test utterances", found.num_examples, entry.test.num_examples),
            ("the digest of their audio", found.audio[:16], entry.test.audio[:16]),
            ("the track", found.track, entry.test.track),
            ("parameters", found.parameters, entry.test.parameters),
        ):
            if ours != theirs:
                raise UserError(f"{what}: {ours} by {' '.join(entry.settings)}, but {folder / FILE} states {theirs}")
        yield f"its {found.num_examples} test utterances are those of the entry ({found.track}, sound by sound)"
        _compare("clean UAR", found.clean_uar, entry.test.clean_uar, found.num_examples, found.num_examples, folder)
        yield f"clean UAR {found.clean_uar:.3f}, stated {entry.test.clean_uar:.3f}"
        for stage in suite.STAGES:
            stated = _stated(stage, entry, folder)
            number = min([max_examples or _ALL, *(one.num_examples for one in stated)])
            settings = stage.settings(entry.defence, number, attacks if stage.domain == "logmel" else ())
            place = [f"root={root}"] if root else []
            config = compose_benchmark([f"run={copy}", *settings, "checks=false", *place])
            records = benchmark_run(config, on_attack=on_attack)
            for one in stated:
                what, worst = f"worst case at {named(one)}", stage.worst(records, one.budget, entry.defence)
                _compare(what, worst.robust_uar, one.uar, worst.num_examples, one.num_examples, folder)
                yield f"{what} {worst.robust_uar:.3f} on {worst.num_examples} utterances, stated {one.uar:.3f}"


def named(worst: WorstCase) -> str:
    """Its budget in words."""
    return f"epsilon {worst.budget:g}" if worst.domain == "logmel" else f"SNR {worst.budget:g} dB"


def _stated(stage: suite.Stage, entry: Entry, folder: Path) -> list[WorstCase]:
    """The worst case of each budget; refused where it is missing, or of too few utterances."""
    found = list[WorstCase]()
    number = min(entry.test.num_examples, stage.num_examples if entry.defence == NO_DEFENCE else stage.num_adaptive)
    for budget in stage.budgets:
        one = entry.worst(stage.domain, budget)
        if one is None or one.num_examples < number:
            there = "none" if one is None else f"one of {one.num_examples}"
            where = "ε" if stage.domain == "logmel" else "dB"
            raise UserError(
                f"{folder / FILE} must state a worst case at {budget:g} {where} on {number} utterances at least, got "
                f"{there}"
            )
        found.append(one)
    return found


def _same_split(copy: Path, entry: Entry, folder: Path) -> None:
    """Refuse settings that are not those of ``config.yaml``."""
    own = compose(config_file=copy / "config.yaml")
    if own.objects:
        raise UserError(f"{folder} has objects of its own ({', '.join(own.objects)}), which no entry may hold")
    said = compose([*entry.settings, *root_of(own)])
    own = replace(own, data=replace(own.data, cache_dir=said.data.cache_dir))
    if (said.data, said.split, said.enrolment, said.data.name) != (own.data, own.split, own.enrolment, entry.corpus):
        raise UserError(
            f"{folder / FILE} states {' '.join(entry.settings)} of {entry.corpus}, but its config.yaml has "
            f"{' '.join(settings_of(own))}"
        )


def _compare(what: str, ours: float, stated: float, scored: int, of: int, folder: Path) -> None:
    apart = tolerance(stated, of, scored)
    if abs(ours - stated) <= apart + 1e-9:
        return
    more = ": a stronger attack lowers the figure" if ours < stated else ""
    raise UserError(
        f"{what} of {folder} is {ours:.3f} on {scored} utterances, but it states {stated:.3f} on {of}; "
        f"they may differ by {apart:.3f}{more}"
    )
