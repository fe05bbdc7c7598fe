"""`ser-fl crossval`: all folds of a split one after the other, and their figures together."""

import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from ser_fl.runs.environment import collection_paused
from ser_fl.runs.preemption import Preemption


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        help="settings of train, as key=value; any of benchmark's, such as attacks=[pgd], attacks every fold as well; "
        "baseline=true or opensmile trains plain classifiers on every fold",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="repeat the config.yaml of a run, on all folds")
    parser.add_argument("--config-dir", "-cd", type=Path, metavar="DIR", help="groups and experiments of your own")


def run(arguments: Namespace) -> None:
    """Train and attack with a line for every round; print the tables."""
    from ser_fl.cli.benchmark import attack_visibly
    from ser_fl.cli.hydra_program import REPEATED
    from ser_fl.cli.terminal import console, say
    from ser_fl.cli.training_job import print_summary, train_visibly
    from ser_fl.config.compose import compose
    from ser_fl.config.robustness import BenchmarkConfig
    from ser_fl.config.schema import Config
    from ser_fl.report.markup import print_table

    with collection_paused():
        from ser_fl.cross_validation import crossval, tables_of
        from ser_fl.runs.folder import RunFolder

    known, of_train = ({field.name for field in fields(stage)} for stage in (BenchmarkConfig, Config))
    of_benchmark, of_folds, baselines = list[str](), list[str](), list[Any]()
    for setting in arguments.settings:
        name = setting.partition("=")[0].partition(".")[0]
        if name == "baseline":
            value = setting.partition("=")[2]
            baselines.append("logmel" if value == "true" else value)
            continue
        (of_benchmark if name in known - of_train - {"run", "speech", "part"} else of_folds).append(setting)
    if arguments.config:
        of_folds = [*REPEATED, "split.fold=0", *of_folds]
    config = compose(of_folds, config_file=arguments.config, config_dir=arguments.config_dir)
    preemption = Preemption()

    def train_fold(fold: Config) -> RunFolder:
        say(f"fold {fold.split.fold}, in {fold.run_dir}")
        done = train_visibly(fold, preemption)
        print_summary(done)
        return done

    with preemption.listening():
        found = crossval(
            config,
            benchmark=of_benchmark or None,
            baselines=baselines,
            train_fold=train_fold,
            attack_fold=attack_visibly,
        )
    for table in tables_of(found):
        print_table(table, console)
    folder = found.folds[0].parent
    say(f"{folder / 'crossval.json'}, crossval.md; the page: ser-fl report {shlex.quote(str(folder))}")
