"""`ser-fl evaluate`: a run's clean figures on any speech."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from ser_fl.errors import UserError
from ser_fl.runs.environment import collection_paused, keep_freed_memory
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.zoo import writable_run


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        help="run=RUN part=test|validation|train|all allow_seen=true out=DIR, and those of the speech: data=CORPUS "
        "data.root=DIR ..., enrolment=K",
    )


def run(arguments: Namespace) -> None:
    """Print figures, and write them with every prediction."""
    from rich.table import Table

    from ser_fl.cli.terminal import bars, console, say
    from ser_fl.cli.tracked_run import add_to_tracked_run

    keep_freed_memory()
    with collection_paused():
        from ser_fl.evaluation import SETTINGS, evaluate
        from ser_fl.robustness.trained_run import enrolment_given

    own = {name: value for name, _, value in (s.partition("=") for s in arguments.settings) if name in SETTINGS}
    speech = [setting for setting in arguments.settings if setting.partition("=")[0] not in SETTINGS]
    if "run" not in own:
        raise UserError("say which run: ser-fl evaluate run=RUN")
    if (allow_seen := own.get("allow_seen", "false")) not in ("true", "false"):
        raise UserError(f"allow_seen must be true or false, got {allow_seen}")
    run = RunFolder(writable_run(own["run"]))
    with bars() as shown:
        found = evaluate(
            run,
            speech,
            part=own.get("part"),  # an unknown one is told there
            allow_seen=allow_seen == "true",
            on_features=shown.features,
        )
    interval = "" if found.uar_interval is None else " (95 %: {:.3f} to {:.3f})".format(*found.uar_interval)
    say(
        f"UAR {found.uar:.3f}{interval}, accuracy {found.accuracy:.3f}, {found.num_utterances} utterances of "
        f"{found.corpus}, part {found.part}{'; means over corpora:' if found.corpora else ''}"
    )
    for name, alone in found.corpora.items():
        interval = "" if alone.uar_interval is None else " (95 %: {:.3f} to {:.3f})".format(*alone.uar_interval)
        say(
            f"  {name}: UAR {alone.uar:.3f}{interval}, accuracy {alone.accuracy:.3f}, {alone.num_utterances} utterances"
        )
    say(
        f"temperature {found.temperature:.3g}: expected calibration error {found.uncalibrated.ece:.3f} without it, "
        f"{found.calibrated.ece:.3f} with it; negative log-likelihood {found.uncalibrated.nll:.3f} and "
        f"{found.calibrated.nll:.3f}"
    )
    for line in found.words():
        say(line)
    table = Table(title="recall by emotion, UAR by speaker and sex")
    for column in ("of", "figure"):
        table.add_column(column, justify="right" if column == "figure" else "left")
    for name, figure in {**found.recall, **found.speaker_uar, **found.sex_uar}.items():
        table.add_row(name, "–" if figure is None else f"{figure:.3f}")
    console.print(table)
    place = run.on(found.corpus, found.part, enrolment_given(speech))
    folder = Path(own.get("out") or place.root)
    found.write(folder)
    figures = {name: value for name, value in asdict(found).items() if name != "utterances"}
    add_to_tracked_run(run, "figures", lambda tracker: tracker.log_evaluation(place.root.name, figures))
    say(f"figures and predictions: {folder}")
