"""`ser-fl train`: one run, or a sweep of them; also what Hydra says of settings without a run."""

import os
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ser_fl.runs.preemption import Preemption


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", help="settings, as key=value; an unknown one lists the known ones")
    parser.add_argument("--config", type=Path, metavar="FILE", help="repeat a run from its config.yaml")
    parser.add_argument("--config-dir", "-cd", type=Path, metavar="DIR", help="groups and experiments of your own")
    parser.add_argument("--config-name", "-cn", default="train", metavar="NAME", help="start from DIR/NAME.yaml")
    parser.add_argument("--multirun", "-m", action="store_true", help="train every combination: seed=1,2,3")
    of_hydra = parser.add_argument_group("in place of a run, by Hydra")
    of_hydra.add_argument("--cfg", "-c", choices=("job", "hydra", "all"), help="print the settings")
    of_hydra.add_argument("--resolve", action="store_true", help="with --cfg: also what refers to others")
    of_hydra.add_argument("--package", "-p", metavar="GROUP", help="with --cfg: of one group")
    infos = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    of_hydra.add_argument("--info", "-i", nargs="?", const="all", choices=infos, help="print where settings come from")
    of_hydra.add_argument("--hydra-help", action="store_true", help="print Hydra's help")
    of_hydra.add_argument(
        "--shell-completion", "-sc", action="store_true", help='install=bash, fish or zsh: eval "$(ser-fl -sc ...)"'
    )


def run(arguments: Namespace) -> None:
    """Train, or print what is asked for instead."""
    from ser_fl.cli.hydra_program import ask_hydra, sweep, train_once
    from ser_fl.cli.training_job import print_summary, train_visibly

    if arguments.shell_completion and "COMP_LINE" in os.environ:
        # Hydra's completion takes all words of a line but the program's for settings.
        os.environ["COMP_LINE"] = re.sub(r"^(\S+\s+)train\s", r"\1", os.environ["COMP_LINE"])
    flags = ["--resolve"] if arguments.resolve else []
    for name in ("cfg", "package", "info"):
        flags += [f"--{name}", given] if (given := getattr(arguments, name)) else []
    for name in ("hydra_help", "shell_completion"):
        flags += [f"--{name.replace('_', '-')}"] if getattr(arguments, name) else []
    if flags:
        ask_hydra(arguments, flags)
        return
    preemption = Preemption()
    with preemption.listening():
        if arguments.multirun:
            sweep(arguments)
        else:
            print_summary(train_once(arguments, lambda config: train_visibly(config, preemption)))
