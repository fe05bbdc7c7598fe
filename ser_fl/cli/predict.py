"""`ser-fl predict`: emotions of recordings, as they are heard."""

from __future__ import annotations

import csv
import io
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from ser_fl.errors import UserError
from ser_fl.runs.environment import collection_paused

if TYPE_CHECKING:
    from ser_fl.prediction import Prediction, Segment


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help='recordings, folders, patterns ("speech/**/*.wav"), tables with a path'
    )
    parser.add_argument("--run", required=True, metavar="RUN", help="folder of a trained run, or a model of the zoo")
    parser.add_argument("--channel", default="first", choices=("first", "second", "mean"))
    parser.add_argument("--format", default="table", choices=("table", "csv", "jsonl"))
    parser.add_argument(
        "--segment",
        type=float,
        metavar="SECONDS",
        help="tell of every so many seconds too (a long recording is always heard in segments, and averaged)",
    )
    parser.add_argument(
        "--enrol",
        nargs="+",
        default=(),
        metavar="FILE",
        help="recordings of the one speaker of all files, for a model that scales each speaker by own clips",
    )
    parser.add_argument("--silence", type=float, metavar="DBFS", help="what is softer throughout is silence (-60)")


def run(arguments: Namespace) -> None:
    """A line for each recording, and with ``--segment`` one for each of its segments before it. What cannot be used is
    told on standard error, and the rest goes on.
    """
    with collection_paused():
        from ser_fl.models.emotion_model import load_model
        from ser_fl.prediction import SILENCE_DBFS, Failed, predict_each

    model = load_model(arguments.run)
    found = predict_each(
        arguments.files,
        model,
        channel=arguments.channel,
        segment_s=arguments.segment,
        silence_dbfs=SILENCE_DBFS if arguments.silence is None else arguments.silence,
        enrol=arguments.enrol,
    )
    if arguments.format == "csv":
        _write(_row(["path", "of", "start_s", "end_s", "emotion", *model.classes]), "csv")
    failed = total = 0
    first, second = next(found, None), next(found, None)
    if isinstance(first, Failed) and second is None:
        raise UserError(first.reason)
    for one in chain((first, second), found):
        if one is None:
            break
        total += 1
        if isinstance(one, Failed):
            failed += 1
            print(f"ser-fl: {one.reason}", file=sys.stderr)
            continue
        for line in _lines(one, arguments.format, model.classes, with_segments=arguments.segment is not None):
            if not _write(line, arguments.format):
                return
    if failed:
        raise UserError(f"{failed} of {total} could not be classified")


def _lines(found: Prediction, form: str, classes: Sequence[str], *, with_segments: bool) -> Iterator[str]:
    """The lines of a recording in a format, with their ends."""
    from ser_fl.prediction import Segment

    whole = Segment(0.0, found.segments[-1].end_s, found.emotion, found.probabilities)
    parts = [("segment", segment) for segment in found.segments] if with_segments else []
    for of, part in (*parts, ("recording", whole)):
        if form == "csv":
            shares = (part.probabilities.get(emotion, "") for emotion in classes)
            yield _row([found.path, of, part.start_s, part.end_s, part.emotion, *shares])
        elif form == "jsonl":
            facts = {"path": str(found.path), "of": of, "synthetic": found.synthetic}
            facts |= {name: getattr(part, name) for name in ("start_s", "end_s", "emotion", "probabilities")}
            yield f"{json.dumps(facts)}\n"  # in ASCII: bytes that are no UTF-8 are the escapes of os.fsdecode
        else:
            yield _in_words(found, part, of)


def _in_words(found: Prediction, part: Segment, of: str) -> str:
    """For a terminal: the likeliest emotion first."""
    name = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(found.path))
    ranked = sorted(part.probabilities.items(), key=lambda item: -item[1])
    shares = "  ".join(f"{emotion} {probability:.2f}" for emotion, probability in ranked)
    times = f"  {part.start_s:.2f}-{part.end_s:.2f} s" if of == "segment" else ""
    return f"{name}{times}  {shares or part.emotion}\n"


def _row(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _write(line: str, form: str) -> bool:
    """Write at once; False where nobody reads any more. CSV has the bytes of names that are no UTF-8; in a terminal of
    another encoding, what that lacks is replaced.
    """
    encoding, errors = (sys.stdout.encoding, "replace") if form == "table" else ("utf-8", "surrogateescape")
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:  # a notebook's
        sys.stdout.write(line)
        return True
    stream.write(line.encode(encoding, errors))
    stream.flush()
    return getattr(getattr(stream, "raw", None), "lost", None) is None
