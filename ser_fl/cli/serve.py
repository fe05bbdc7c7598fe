"""`ser-fl serve`: a page for one model, on this machine."""

from argparse import ArgumentParser, Namespace

from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.environment import collection_paused

_SETTINGS = {"port": "8765", "host": "127.0.0.1", "exposed": "false", "enrol": ""}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a trained run, or a model of the zoo")
    parser.add_argument(
        "settings",
        nargs="*",
        help="port=8765 (0: a free one), enrol=FILE, folder or pattern: clips of the speaker, for a model that "
        "scales speakers, host=127.0.0.1, exposed=true to let other machines ask",
    )


def run(arguments: Namespace) -> None:
    """Serve until Ctrl-C."""
    from ser_fl.cli.terminal import say

    given = dict(_SETTINGS)
    for setting in arguments.settings:
        name, _, value = setting.partition("=")
        if name not in given:
            raise unknown_name("setting", name, given)
        given[name] = value
    if not given["port"].isdecimal() or int(given["port"]) > 65535:
        raise UserError(f"port must be a whole number from 0 to 65535, got {given['port'] or 'none'}")
    if given["exposed"] not in ("true", "false"):
        raise UserError(f"exposed must be true or false, got {given['exposed'] or 'none'}")
    with collection_paused():
        from ser_fl.models.emotion_model import load_model
        from ser_fl.prediction import enrol_speaker
        from ser_fl.serving.app import check_installed, serve
    check_installed()
    model = load_model(arguments.run)
    if given["enrol"]:
        model = enrol_speaker(model, given["enrol"])
    elif model.by_speaker and model.fallback is None:
        raise UserError("the model scales each speaker by own clips: enrol=FILE names some of who will speak")
    serve(model, arguments.run, given["host"], int(given["port"]), exposed=given["exposed"] == "true", tell=say)
