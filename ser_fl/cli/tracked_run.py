"""What comes after a training goes to the run that trackers show of it."""

from collections.abc import Callable

from ser_fl.errors import UserError
from ser_fl.runs.folder import RunFolder
from ser_fl.tracking import Tracker, open_tracker


def add_to_tracked_run(run: RunFolder, what: str, show: Callable[[Tracker], None]) -> None:
    """Show more of a run where it was shown, if its checkpoint still says where. It is on disk by then: whatever is
    wrong with tracking is a warning.
    """
    from ser_fl.cli.terminal import say
    from ser_fl.config.compose import compose
    from ser_fl.config.schema import dump
    from ser_fl.federation.checkpoint import tracked_run

    state = tracked_run(run.checkpoint)
    if not state and not run.tensorboard.is_dir():
        return
    try:
        tracker = open_tracker(dump(compose(config_file=run.config)), run, state)
    except UserError as error:
        say(f"{what} not tracked: {error}")
        return
    show(tracker)
    shown = tracker.sending or tracker.description
    tracker.finish()
    say(f"{what} tracked: {shown}")
