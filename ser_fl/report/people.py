"""Whom a model understands, and whom attacks hit: tables by speaker and by emotion of one run, and confusions."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ser_fl.report import wording
from ser_fl.report.four_way import Budget, budget_key, reference_budgets
from ser_fl.report.markup import Table
from ser_fl.report.reader import RunRecords
from ser_fl.report.wording import count, percent
from ser_fl.runs.parties import shown_names
from ser_fl.runs.records import CLEAN, NO_DEFENCE, AttackRecord

Shares = Mapping[str, float | None]


def standing_out(run: RunRecords) -> Table | None:
    """Clients and nodes that sent what no honest one would, were left out, or differ from all others; None where nobody
    did.
    """
    left_out = {left.names: left for left in run.summary.left_out}
    rows = []
    for party in run.summary.parties:
        left = left_out.pop(party.names, None)
        reasons = [*party.outlier, f"left out: {left.reason}" if left else ""]
        if party.outlier or party.offences or left:
            figures = (party.times_median, party.cosine, party.share)
            rows.append(
                (
                    left.who if left else shown_names(party.names),
                    "\n".join(filter(None, reasons)) or "offended",
                    f"{party.offences}",
                    *("" if figure is None else f"{figure:.2f}" for figure in figures),
                    percent(party.uar),
                )
            )
    rows += [(one.who, f"left out: {one.reason}", "", "", "", "", "") for one in left_out.values()]
    if not rows:
        return None
    return Table(
        title="Who stood out",
        header=("Who", "Why", "Offences", "Times the median", "Cosine", "Times its share", "Test UAR"),
        rows=tuple(rows),
        caption="An offence is a round in which something came that no honest client sends, such as an update that is "
        "not finite; after several (federation.strikes) nothing is asked of its sender any more. The server measures "
        "how long updates are (beside the median of a round), where they point (1: where those of the others do; "
        "below 0: away from them), and how much the aggregation takes of them (beside what their utterances would "
        "get). To stand out is no proof: rare speech does, too. Test figures are a node's own word.",
        num_labels=2,
    )


def group_tables(run: RunRecords) -> list[Table]:
    """UAR by sex and speaker, and recall by emotion, without attack and in the worst case at the reference budgets, a
    column for each of these and each defence; a table is left out where nobody is known.
    """
    recalls = dict(zip(run.summary.classes, run.test.per_class_recall, strict=False))
    supports = {name: sum(map(sum, matrix)) for name, matrix in run.test.per_speaker_confusion.items()}
    emotions = {name: sum(row) for name, row in zip(run.summary.classes, run.test.confusion, strict=False)}
    found = (
        _table("By speaker", "UAR of each test speaker", _columns(run, run.test.per_speaker_uar, _of_people), supports),
        _table("By emotion", "Recall of each emotion", _columns(run, recalls, lambda r: r.emotion_recall), emotions),
    )
    return [table for table in found if table is not None]


def _of_people(record: Any) -> Shares:
    return {**{f"all {_SEXES.get(sex, sex)}": uar for sex, uar in record.sex_uar.items()}, **record.speaker_uar}


_SEXES = {"f": "female", "m": "male"}


def _columns(run: RunRecords, tested: Shares, of: Callable[[Any], Shares]) -> dict[str, Shares]:
    """By heading; the test scores stand where the benchmark has no clean ones of its own."""
    budgets = reference_budgets([run])
    shown: dict[str, Shares] = {}
    for record in sorted(run.attacks, key=lambda each: (each.domain != "logmel", each.defence != NO_DEFENCE)):
        is_worst = record.is_worst_case and (budget_key(record) in budgets or record.norm == "none")
        if (record.attack == CLEAN or is_worst) and (shares := of(record)):
            budget = "" if record.attack == CLEAN else wording.budget(record)
            size = run.subset(record)
            lines = (
                wording.marked(wording.attack_name(record.attack), record),
                budget.replace("ε", wording.norm_name(record.norm)),
                "" if record.defence == NO_DEFENCE else wording.defence_name(record.defence),
                "" if record.domain == "logmel" else record.domain,
                "" if size is None else f"n = {size}",
            )
            shown["\n".join(filter(None, lines))] = shares
    return shown if "clean" in shown else {"clean": tested, **shown}


def _table(title: str, caption: str, columns: Mapping[str, Shares], sizes: Mapping[str, float]) -> Table | None:
    names = sorted({name for shares in columns.values() for name in shares}, key=lambda name: (name not in sizes, name))
    if not names:
        return None

    def row(name: str) -> Iterator[str]:
        yield name
        yield count(sizes.get(name))
        yield from (percent(shares.get(name)) for shares in columns.values())

    return Table(
        title=title,
        header=(title.removeprefix("By ").capitalize(), "Utterances", *columns),
        rows=tuple(tuple(row(name)) for name in names),
        caption=f"{caption}, in per cent; the bar is the figure.",
    )


def confusion_tables(run: RunRecords) -> list[tuple[Table, list[list[float]]]]:
    """Utterances by true and predicted emotion, and the shares of the true ones: clean, and under the attack of the
    reference budgets that leaves the bare model least.
    """
    shown = [(f"Without attack, UAR {percent(run.test.uar)} %", run.test.confusion)]
    if worst := strongest_on_all(run, reference_budgets([run])):
        attack = f"{wording.attack_name(worst.attack)} {wording.budget(worst)}"
        shown.append((f"{attack}, UAR {percent(worst.robust_uar)} %", worst.confusion))
    return [
        (
            Table(
                title=title,
                header=("true, predicted", *run.summary.classes),
                rows=tuple(
                    (name, *(f"{each:,.4g}" for each in row))
                    for name, row in zip(run.summary.classes, confusion, strict=True)
                ),
                caption="",
            ),
            [[round(each / max(sum(row), 1), 3) for each in row] for row in confusion],
        )
        for title, confusion in shown
        if confusion and run.summary.classes
    ]


def strongest_on_all(run: RunRecords, budgets: set[Budget]) -> AttackRecord | None:
    """The attack at some budgets on the whole test part that leaves the bare model least."""
    bare = (record for record in run.attacked if record.defence == NO_DEFENCE and record.confusion)
    whole = (record for record in bare if budget_key(record) in budgets and run.subset(record) is None)
    return min(whole, key=lambda record: record.robust_uar, default=None)
