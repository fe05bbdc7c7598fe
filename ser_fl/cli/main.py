"""`ser-fl`: one module a subcommand, imported when it is called; each waits with heavy imports until it runs."""

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pathlib import Path

from ser_fl import __version__
from ser_fl.cli.examples import epilog
from ser_fl.cli.standard_streams import unbreakable_streams
from ser_fl.errors import DaemonStopped, RoundFailed, UserError
from ser_fl.runs.preemption import Stopped

_DESCRIPTION = "Robust federated speech emotion recognition: train across clients, attack, randomise, report."
COMMANDS: Mapping[str, str] = {
    "demo": "the paper's four-way comparison on the built-in synthetic corpus",
    "train": "train across clients: experiment=NAME data=CORPUS data.root=DIR ...",
    "crossval": "train and test all folds of a split: split=speaker_independent ... run_dir=DIR",
    "benchmark": "attack a trained run: run=RUN attacks=[pgd] epsilons=[0.05] ...",
    "evaluate": "clean figures on any speech: run=RUN data=CORPUS data.root=DIR ...",
    "baseline": "what a plain classifier reaches on the same split: run=RUN, or data=CORPUS data.root=DIR ...",
    "transfer": "attack each run and show it to the others: RUN RUN attack=pgd ...",
    "report": "tables, figures and one report.html from run folders",
    "predict": "emotions of audio files",
    "export": "a model for other programs: RUN onnx|torch|hf [output=DIR]",
    "serve": "a page on this machine to hear a clip, attack it, and see the model change its mind: RUN [port=...]",
    "leaderboard": "table of robust models and what is left of them under attack; add RUN makes an entry",
    "verify": "check an entry of the leaderboard and score it again: ENTRY data.root=DIR",
    "zoo": "list the trained models that come with ser_fl, or print the card of one",
    "corpus": "list the known corpora, check or describe one",
    "federation": "across machines: make keys, run the link, run a node",
}
_CHATTY = ("demo", "train", "crossval", "benchmark", "evaluate", "baseline", "transfer")
"""They take long, and say how far they are."""
TRY_AGAIN = 75
"""Exit code of a training that a signal stopped: EX_TEMPFAIL of sysexits.h."""


def program() -> int:
    """`ser-fl` as a program: `main`, whose output may be lost; then it says so, and where that was all, returns 1."""
    asked = sys.argv[1:]
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        print("ser-fl: the working directory is gone: change to one that is there", file=sys.stderr)
        return 2
    warnings.formatwarning = _in_a_line
    with unbreakable_streams() as output:
        code = main(asked)
    if output.lost is None:
        return code
    prints_alone = asked[:1] and asked[0] in ("corpus", "leaderboard", "predict", "verify", "zoo")
    if prints_alone and isinstance(output.lost, BrokenPipeError):  # `ser-fl corpus list | head`
        return code
    with suppress(OSError, ValueError, AttributeError):
        print(f"ser-fl: not all of standard output was written: {output.lost.strerror}", file=sys.stderr)
    return code or int(bool(prints_alone))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: 0 when it did what was asked, 2 for a mistake of the user's, told in one line; 1 for a round that
    failed, with the clients' own errors, or a daemon that ended by itself; 130 for Ctrl-C; 75 for a training that
    SIGTERM or SIGUSR1 stopped, which the same command with resume=true takes up again.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] and given[0] in ("-sc", "--shell-completion"):  # as Hydra's completion of a shell calls a program
        given.insert(0, "train")
    if not given or given[0] not in COMMANDS:
        return _usage(given)
    name, *rest = given
    way_on = "; the same command with resume=true goes on" if name in ("train", "crossval") else ""
    command = import_module(f"ser_fl.cli.{name}")
    parser = argparse.ArgumentParser(
        f"ser-fl {name}",
        description=COMMANDS[name],
        epilog=epilog(name) if {"-h", "--help"} & {*rest} else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    if name in _CHATTY:
        parser.add_argument("--quiet", action="store_true", help="print results and warnings alone")
    # Options may stand between settings, but argparse cannot do that where a command has actions.
    parse = parser.parse_args if name in ("corpus", "federation") else parser.parse_intermixed_args
    try:
        parsed = parse(rest)
        with _hushed() if getattr(parsed, "quiet", False) else nullcontext():
            command.run(parsed)
    except UserError as error:
        print(f"ser-fl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"ser-fl: {error.strerror}: {error.filename}{way_on}", file=sys.stderr)
        return 2
    except (RoundFailed, DaemonStopped) as failure:
        print(f"ser-fl: {failure}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"ser-fl: {stopped}{way_on}", file=sys.stderr)
        return TRY_AGAIN
    except KeyboardInterrupt:
        print(f"ser-fl: interrupted{way_on}", file=sys.stderr)
        return 130
    return 0


_with_place = warnings.formatwarning


def _in_a_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What a warning of ours says; of others where it comes from too."""
    ours = Path(__file__).parents[1] in Path(filename).parents
    return f"ser-fl: {message}\n" if ours else _with_place(message, category, filename, lineno, line)


def _hushed() -> AbstractContextManager[None]:
    from ser_fl.cli.terminal import quiet

    return quiet()


def _usage(given: Sequence[str]) -> int:
    """What there is, for whoever asks, or names no command."""
    parser = argparse.ArgumentParser(
        "ser-fl",
        description=_DESCRIPTION,
        epilog=f"{epilog('')}\n\nof one command: ser-fl COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ser-fl {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    parser.parse_args(given)
    return 2
