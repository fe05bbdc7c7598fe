"""Transfer matrices as tables: what an attack that was made on one model did to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ser_fl.report import wording
from ser_fl.report.markup import Table
from ser_fl.runs.folder import RunFolder, read_transfer
from ser_fl.runs.records import TransferMatrix, TransferRecord


def read_matrices(folders: Sequence[Path], files: Sequence[Path] = ()) -> list[TransferMatrix]:
    """The matrices in run folders and those in other files, each file once.

    Raises:
        UserError: a file is missing, damaged or of another schema.
    """
    there = [file for file in (RunFolder(folder).transfer for folder in folders) if file.exists()]
    return [read_transfer(file) for file in {file.resolve(): file for file in (*there, *files)}.values()]


def transfer_tables(matrix: TransferMatrix) -> list[Table]:
    """Robust UAR, a table for every defence."""
    return [_square(matrix, defence) for defence in dict.fromkeys(record.defence for record in matrix.records)]


def attack_of(matrix: TransferMatrix) -> str:
    """The attack and its budget: "PGD ε 0.05"."""
    record = matrix.records[0]
    return f"{wording.attack_name(record.attack)} {wording.budget(record)}"


def _square(matrix: TransferMatrix, defence: str) -> Table:
    """A row for each source, a column for each target."""
    cells = {(record.source, record.target): record for record in matrix.records if record.defence == defence}
    rows = [
        (source, *(wording.percent(cells[source, target].robust_uar) for target in matrix.models))
        for source in matrix.models
    ]
    clean = ("nothing (clean)", *(wording.percent(cells[target, target].clean_uar) for target in matrix.models))
    return Table(
        title=f"{attack_of(matrix)} from one model to another, {wording.defence_name(defence)}",
        header=("Made on", *(f"shown to {target}" for target in matrix.models)),
        rows=(clean, *rows),
        caption=f"UAR in per cent; where both are one model it is the white-box figure. {_conditions(matrix)}",
    )


_COLUMNS: tuple[tuple[str, Callable[[TransferRecord], str]], ...] = (
    ("Made on", lambda record: record.source),
    ("Shown to", lambda record: record.target),
    ("Test-time defence", lambda record: wording.defence_name(record.defence)),
    ("Knowledge", lambda record: wording.marked(record.knowledge, record)),
    ("n", lambda record: wording.count(record.num_examples)),
    ("Clean UAR", lambda record: wording.scores(record.clean_uar, record.clean_accuracy)),
    ("Carried over", lambda record: wording.percent(record.carried_uar)),
    ("Robust UAR", lambda record: wording.scores(record.robust_uar, record.robust_accuracy)),
    ("Success rate", lambda record: wording.percent(record.attack_success_rate)),
    ("Max L∞ there", lambda record: wording.number(record.max_linf, ".3g")),
    ("Mean L2 there", lambda record: wording.number(record.mean_l2, ".3g")),
    ("Max dB", lambda record: wording.number(record.max_db, ".2f")),
    ("Forward passes", lambda record: wording.count(record.forward_passes)),
    ("Backward passes", lambda record: wording.count(record.backward_passes)),
    ("Seconds", lambda record: wording.number(record.seconds, ".1f")),
)
_LABELS = 4
"""Columns of words among those."""


def pair_table(matrix: TransferMatrix) -> Table:
    """All that was measured, a row for each source, target and defence."""
    caption = (
        f"{_conditions(matrix)} UAR / accuracy in per cent, over the n utterances that are test utterances of both."
        " Carried over: UAR on the source's clean utterances, which its box has clipped. Max L∞ and mean L2 (over"
        " successful attacks) are in the target's units, max dB is of raw log-mel. Passes and seconds: of the attack on"
        " the source, spent once for all its targets."
    )
    return Table(
        title=f"{attack_of(matrix)} from one model to another: all that was measured",
        header=tuple(name for name, _ in _COLUMNS),
        rows=tuple(tuple(cell(record) for _, cell in _COLUMNS) for record in matrix.records),
        caption=caption + wording.mark_explained(matrix.records),
        num_labels=_LABELS,
    )


def _conditions(matrix: TransferMatrix) -> str:
    """What epsilon means, and what came of it in the units of the targets."""
    changes = [record.max_linf for record in matrix.records]
    least, largest = (wording.number(change, ".3g") for change in (min(changes), max(changes)))
    synthetic = " SYNTHETIC speech is no evidence about real speech." if matrix.synthetic else ""
    return (
        "Epsilon is in the standardised units of the model that the attack was made on; in the units of those that it"
        f" was shown to, the largest change is {least if least == largest else f'{least} to {largest}'}.{synthetic}"
    )
