"""All folds of a split, one after the other, and what they say together: every speaker (or text) tested once."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ser_fl.api import train
from ser_fl.baselines import baseline, check_installed
from ser_fl.config.compose import compose_benchmark
from ser_fl.config.robustness import BenchmarkConfig
from ser_fl.config.schema import Config
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.functionals import Kind
from ser_fl.data.joint import num_folds_of_each, split_each
from ser_fl.errors import UserError
from ser_fl.federation.checkpoint import checkpoint_key, is_checkpoint_of, new_folders
from ser_fl.files import write_bytes, write_json
from ser_fl.report.folds import CrossValidation, fold_tables
from ser_fl.report.markup import Table, to_markdown
from ser_fl.report.reader import read_run
from ser_fl.report.replications import Replication, not_pooled, replication_table
from ser_fl.robustness.benchmark import benchmark_run
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.lock import claimed

SCHEMA = 1
"""Version of ``crossval.json``."""


def crossval(
    config: Config,
    *,
    benchmark: Sequence[str] | None = None,
    baselines: Sequence[Kind] = (),
    train_fold: Callable[[Config], RunFolder] = train,
    attack_fold: Callable[[BenchmarkConfig], object] = benchmark_run,
) -> CrossValidation:
    """Train every fold of a split, each in a folder ``fold0``, ``fold1``, ... below ``run_dir``, and pool their test
    figures into ``crossval.json`` and ``crossval.md`` there. Each is the run that `ser_fl.train` makes of its fold.

    Args:
        config: what `ser_fl.compose` gives. With ``resume=true`` finished folds stay as they are, and the one that was
            cut off goes on.
        benchmark: settings of `ser-fl benchmark`, such as ``["attacks=[pgd]"]``, for every fold; None attacks nothing.
        baselines: functionals on which plain classifiers are trained on every fold, see `ser_fl.baseline`.
        train_fold: in place of `ser_fl.train`.
        attack_fold: in place of `ser_fl.robustness.benchmark.benchmark_run`.

    Raises:
        UserError: the split has no folds, a fold lacks a part, or whatever `ser_fl.train` refuses.
        RoundFailed: as `ser_fl.train`.
    """
    if config.resume and not config.run_dir:
        raise UserError("say which folds go on: run_dir=DIR")
    for features in baselines:
        check_installed(features)
    if len(config.data.corpora) > 1 and (benchmark is not None or baselines):
        raise UserError(
            f"corpora are attacked one by one, and have baselines of their own, got {config.data.written}: ser-fl "
            f"benchmark run=FOLD data={config.data.corpora[0]}, afterwards"
        )
    folder = Path(config.run_dir).expanduser() if config.run_dir else next(new_folders(config))
    with claimed(folder):
        runs = list[RunFolder]()
        for fold in folds_of(replace(config, run_dir=str(folder))):
            if runs:  # the first fold has measured what precision=auto is here
                fold = replace(fold, precision=read_run(runs[0].root).setting("precision"))
            run = RunFolder(Path(str(fold.run_dir)))
            if not (config.resume and is_done(run, fold)):
                train_fold(fold)
            runs.append(run)
        for run in runs if benchmark is not None else ():
            attack_fold(compose_benchmark([*(benchmark or ()), f"run={run.root}"]))
        for run in runs:
            for features in baselines:
                baseline(run, features=features)
        return pool(folder, runs)


def is_done(run: RunFolder, fold: Config) -> bool:
    """Whether a fold was trained and tested as asked. One that stopped before its last round is asked again, which
    trains nothing.
    """
    if not (run.summary.exists() and run.heard.exists() and is_checkpoint_of(run.checkpoint, checkpoint_key(fold))):
        return False
    return read_run(run.root).summary.num_rounds == fold.federation.num_rounds


def folds_of(config: Config) -> Iterator[Config]:
    """A configuration for each fold, in a folder of its own; all splits are tried first."""
    split = config.split
    named = next((name for name in ("test_speakers", "test_texts") if getattr(split, name)), None)
    if named or not (split.is_by_speaker or split.is_by_text):
        given = f"split.{named}" if named else f"split={split.name}"
        raise UserError(
            f"{given} has no folds: take split=speaker_independent or text_independent, split.num_folds=K; or repeat "
            "one split with other seeds: ser-fl train -m seed=1,2,3"
        )
    if split.fold:
        raise UserError(f"all folds are trained, got split.fold={split.fold}: ser-fl train trains one")
    if None in config.data.folders.values():
        raise UserError("the folds of a corpus on other machines are not known here: ser-fl train split.fold=0")
    utterances = open_configured_corpus(config).utterances
    count = num_folds_of_each(utterances, split)
    if count < 2:
        raise UserError(f"there must be two folds at least, got {count}: set split.num_folds")
    folder = Path(str(config.run_dir))
    group = config.tracking.group or os.environ.get("WANDB_RUN_GROUP") or folder.name
    tracking = replace(config.tracking, group=group)
    folds = [
        replace(config, split=replace(split, fold=k), run_dir=str(folder / f"fold{k}"), tracking=tracking)
        for k in range(count)
    ]
    for fold in folds:
        validated = config.selection.needs_validation
        split_each(utterances, fold.split, corpus=config.data.name, validated=validated)
    return iter(folds)


def pool(folder: Path, runs: Sequence[RunFolder]) -> CrossValidation:
    """Write what finished folds say together."""
    records = [read_run(run.root) for run in runs]
    if problems := not_pooled(records):
        raise UserError(problems[0])
    pooled = CrossValidation.of(Replication(records))
    names = [run.root.name for run in runs]
    write_json(folder / "crossval.json", {"schema": SCHEMA, **asdict(pooled), "folds": names})
    write_bytes(folder / "crossval.md", "\n\n".join(map(to_markdown, tables_of(pooled))).encode())
    return pooled


def tables_of(pooled: CrossValidation) -> list[Table]:
    """Clean figures, confusion and, where all folds were attacked, robust UAR of the folds together."""
    records = [read_run(folder) for folder in pooled.folds]
    return [table for table in (*fold_tables(records), replication_table(records)) if table is not None]
