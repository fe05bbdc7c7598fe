"""`ser-fl`: one subcommand a stage. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ser_fl import __version__
from ser_fl.errors import DaemonStopped, RoundFailed, UserError
from ser_fl.runs.preemption import Stopped

_DESCRIPTION = "Robust federated speech emotion recognition: train across clients, attack, randomise, report."
_MULTIRUN = ("-m", "--multirun")
TRY_AGAIN = 75
"""Exit code of a training that a signal stopped: EX_TEMPFAIL of sysexits.h."""
_SETTINGS = "settings, as key=value; an unknown key or name lists the known ones"


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = argparse.ArgumentParser("ser-fl", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"ser-fl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the paper's four-way comparison on the built-in synthetic corpus")
    demo.add_argument(
        "--output", type=Path, default=None, help="folder for the two runs and the report (default: runs/demo/...)"
    )

    train = commands.add_parser("train", help="train across clients: experiment=NAME data=CORPUS data.root=DIR ...")
    train.add_argument("--config", default=None, metavar="FILE", help="repeat a run from its config.yaml")
    train.add_argument(
        *_MULTIRUN, dest="multirun", action="store_true", help="train every combination: seed=1,2,3 objective=clean,pgd"
    )
    train.add_argument("settings", nargs="*", help=_SETTINGS)

    benchmark = commands.add_parser("benchmark", help="attack a trained run: run=RUN attacks=[pgd] epsilons=[0.05] ...")
    benchmark.add_argument("settings", nargs="*", help=_SETTINGS)

    transfer = commands.add_parser("transfer", help="attack each run and show it to the others: RUN RUN attack=pgd ...")
    transfer.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders; RUN:CLIENT is a client's own model of a local-only run"
    )
    transfer.add_argument("settings", nargs="*", help=_SETTINGS)

    report = commands.add_parser("report", help="tables, figures and one report.html from run folders")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders; also the transfer.json of any")
    report.add_argument(
        "--output", default=None, metavar="FILE", help="the page (default: report.html in the first run)"
    )
    report.add_argument("--markdown", action="store_true", help="print the tables as Markdown instead")

    predict = commands.add_parser("predict", help="emotions of audio files")
    predict.add_argument("files", nargs="+", metavar="FILE")
    predict.add_argument("--run", required=True, metavar="RUN", help="folder of a trained run")
    predict.add_argument("--channel", default="first", choices=("first", "second", "mean"))

    corpus = commands.add_parser("corpus", help="list the known corpora, check or describe one")
    actions = corpus.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="corpora, their label maps and published counts")
    for action, text in (
        ("check", "compare with the published counts, find broken files"),
        ("describe", "counts and durations"),
    ):
        command = actions.add_parser(action, help=text)
        command.add_argument("name", help="a corpus of `ser-fl corpus list`, or builtin")
        command.add_argument("root", nargs="?", default=None, help="its folder")
        command.add_argument("--channel", default="first", choices=("first", "second", "mean"))
    _add_federation(commands.add_parser("federation", help="across machines: make keys, run the link, run a node"))
    return parser


def _add_federation(federation: argparse.ArgumentParser) -> None:
    """The actions of `ser-fl federation`."""
    actions = federation.add_subparsers(dest="action", required=True, metavar="ACTION")
    keys = actions.add_parser("keys", help="certificates of the link and a key pair for each node")
    link = actions.add_parser("link", help="run the link, which nodes call, until Ctrl-C or SIGTERM")
    node = actions.add_parser("node", help="run a node, beside its recordings, until Ctrl-C or SIGTERM")
    for command in (keys, link, node):
        command.add_argument("folder", type=Path, metavar="DIR", help="folder of keys, made by `keys`")

    keys.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME_OR_IP",
        help="by which nodes find the link; may be given again (localhost and 127.0.0.1 are always in)",
    )
    keys.add_argument("--nodes", type=_names, default=[], metavar="NAME,NAME", help="nodes to make keys for")
    keys.add_argument("--days", type=int, default=365, help="how long the link's certificate is valid (365)")

    link.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (127.0.0.1)")
    link.add_argument("--port", type=int, default=9092, help="(9092)")
    node.add_argument("name", metavar="NAME", help="of the node, as in `keys --nodes`")
    node.add_argument("--link", required=True, metavar="HOST:PORT", help="where the link listens")
    node.add_argument("--data", type=Path, metavar="ROOT", help="corpus folder (default: the built-in corpus)")
    node.add_argument("--speakers", type=_names, default=[], metavar="A,B", help="that the node hosts (default: all)")
    node.add_argument("--cache", type=Path, metavar="FOLDER", help="for prepared features")
    node.add_argument("--port", type=int, help="of its own parts on 127.0.0.1 (default: a free one)")
    for command in (link, node):
        command.add_argument(
            "--state", type=Path, metavar="FOLDER", help="logs and what outlives a restart (default: in DIR/state)"
        )
        command.add_argument("--telemetry", action="store_true", help="let Flower report its use to flower.ai")
        command.add_argument("--update-check", action="store_true", help="let Flower look for newer versions")
        command.add_argument(
            "--install-dependencies", action="store_true", help="let Flower install what an app names, for each run"
        )


def _names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",")]


def _run(parsed: argparse.Namespace) -> None:
    if parsed.command == "demo":
        from ser_fl.cli.demo import run_demo

        run_demo(parsed.output)
        return
    if parsed.command == "train" and parsed.multirun:
        from ser_fl.cli.multirun import run_multirun

        run_multirun(parsed)
        return
    from ser_fl.cli import commands

    getattr(commands, f"run_{parsed.command}")(parsed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0 when it did what was asked, 2 for a mistake of the user's, told in one line.

    1 for a round that failed, with the clients' own errors, or a daemon that ended by itself; 130 for Ctrl-C; and 75
    for a training that SIGTERM or SIGUSR1 stopped, which the same command with resume=true takes up again.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"]:  # Hydra's users write -m anywhere, argparse wants it before the settings
        given[1:] = sorted(given[1:], key=lambda argument: argument not in _MULTIRUN)
    parsed = build_parser().parse_args(given)
    try:
        _run(parsed)
    except UserError as error:
        print(f"ser-fl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"ser-fl: {error.strerror}: {error.filename}{_way_on(parsed.command)}", file=sys.stderr)
        return 2
    except (RoundFailed, DaemonStopped) as failure:
        print(f"ser-fl: {failure}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"ser-fl: {stopped}; the same command with resume=true goes on", file=sys.stderr)
        return TRY_AGAIN
    except KeyboardInterrupt:
        print(f"ser-fl: interrupted{_way_on(parsed.command)}", file=sys.stderr)
        return 130
    return 0


def _way_on(command: str) -> str:
    """What to do after something that is no mistake in the command."""
    return "; the same command with resume=true goes on" if command == "train" else ""
