"""`ser-fl predict`: emotions of audio files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ser_fl.runs.environment import collection_paused


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--run", required=True, metavar="RUN", help="folder of a trained run")
    parser.add_argument("--channel", default="first", choices=("first", "second", "mean"))


def run(arguments: Namespace) -> None:
    """A line for each file, the likeliest emotion first."""
    from ser_fl.cli.terminal import say

    with collection_paused():
        from ser_fl.prediction import predict

    for prediction in predict(arguments.files, arguments.run, channel=arguments.channel):
        ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        shares = "  ".join(f"{emotion} {probability:.2f}" for emotion, probability in ranked)
        say(f"{prediction.path}  {shares}")
