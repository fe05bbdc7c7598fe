"""The leaderboard as tables: tracks and corpora apart, the best worst case first."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ser_fl.errors import UserError
from ser_fl.leaderboard import suite
from ser_fl.leaderboard.entry import FILE, TRACKS, Entry, read_entry
from ser_fl.report.markup import MISSING, Table, to_markdown
from ser_fl.report.wording import percent
from ser_fl.runs.records import NO_DEFENCE

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE.parent / "docs" / "leaderboard" / "entries", _PACKAGE / "leaderboard" / "entries")
"""Of a checkout, and of the installed package."""
_PAGE = """# Robust speech emotion recognition: the leaderboard

How much is left of a model when somebody attacks it? [The rules](rules.md) say what is measured, [submit.md](submit.md)
how to enter. Every weight below is in this repository or in the package, and `ser-fl verify` scores each entry again.
This page is what `ser-fl leaderboard --markdown` prints.

"""


def default_folder() -> Path:
    return next((place for place in _PLACES if place.is_dir()), _PLACES[0])


def read_entries(folders: Sequence[Path]) -> list[Entry]:
    """Entries, and those that lie in folders of several, the best first; a `UserError` as `read_entry` says, or where a
    folder holds none.
    """
    found: dict[Path, Entry] = {}
    for folder in folders:
        within = [folder] if (folder / FILE).exists() else [file.parent for file in sorted(folder.glob(f"*/{FILE}"))]
        if not within:
            raise UserError(f"{folder} holds no entry of a leaderboard (no {FILE}): `ser-fl leaderboard add` makes one")
        for each in within:
            found.setdefault(each.resolve(), read_entry(each))
    return sorted(found.values(), key=_order)


def _order(entry: Entry) -> tuple[object, ...]:
    """By track, corpus and worst case; of a tie by the clean figure, and then by name."""
    worst = [entry.worst(stage.domain, budget) for stage in suite.STAGES for budget in stage.budgets]
    first, *others = [1.0 if one is None else -one.uar for one in worst]
    return list(TRACKS).index(entry.test.track), entry.corpus, first, -entry.test.clean_uar, *others, entry.name


def tables(entries: Sequence[Entry]) -> list[Table]:
    """One of each track and corpus, of entries in their order."""
    found: list[Table] = []
    budgets = [(stage, budget) for stage in suite.STAGES for budget in stage.budgets]
    header = [f"ε {budget:g}" if stage.domain == "logmel" else f"{budget:g} dB" for stage, budget in budgets]
    for (track, corpus), alike in groupby(entries, key=lambda entry: (entry.test.track, entry.corpus)):
        rows, synthetic = list[tuple[str, ...]](), ""
        for entry in alike:
            worst = [entry.worst(stage.domain, budget) for stage, budget in budgets]
            name = entry.name if entry.defence == NO_DEFENCE else f"{entry.name} ({entry.defence}, adaptive)"
            figures = [MISSING if one is None else percent(one.uar) for one in worst]
            counts = dict.fromkeys(str(one.num_examples) for one in worst if one is not None)
            rows.append((name, *figures, percent(entry.test.clean_uar), "/".join(counts), f"{entry.test.parameters:,}"))
            synthetic = ", SYNTHETIC speech" if entry.synthetic else ""
        found.append(
            Table(
                title=f"{TRACKS[track]}; {corpus}{synthetic}",
                header=("Entry", *header, "Clean", "n", "Parameters"),
                rows=tuple(rows),
                caption="UAR in per cent. Worst case over the attacks of the suite, utterance by utterance, on n test "
                "utterances: features within ε (L∞, standardised log-mel), recordings at a signal-to-noise ratio. "
                "Clean: on the whole test part.",
            )
        )
    return found


def facts(entries: Sequence[Entry]) -> Table:
    """Who made each entry, of what, and how it is told from others."""
    rows = []
    for entry in entries:
        first = entry.worst_cases[0]
        interval = MISSING if first.interval is None else "{}–{}".format(*(percent(end) for end in first.interval))
        where = entry.model or "in the entry"
        rows.append(
            (
                entry.name,
                " ".join(entry.settings),
                entry.trained_by,
                entry.authors,
                entry.licence,
                where,
                entry.digests["model.safetensors"][:12],
                interval,
                f"{entry.test.num_examples:,}",
                str(entry.test.forward_passes),
                entry.checks + (f". {entry.remarks}" if entry.remarks else ""),
            )
        )
    return Table(
        title="The entries",
        header=("Entry", "Corpus and split", "Trained by", "Authors", "Licence", "Weights", "SHA-256 of them",
                "95 % of the first worst case", "Test utterances", "Forward passes", "Checks and remarks"),
        rows=tuple(rows),
        caption="",
        num_labels=7,
    )  # fmt: skip


def page(entries: Sequence[Entry]) -> str:
    """``docs/leaderboard/index.md``."""
    return _PAGE + "\n".join(map(to_markdown, (*tables(entries), facts(entries))))
