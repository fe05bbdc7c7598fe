"""`ser-fl export`: a trained model as files for other programs."""

from argparse import ArgumentParser, Namespace

from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.environment import collection_paused


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a trained run, or a model of the zoo")
    parser.add_argument("form", metavar="FORMAT", help="onnx, torch (torch.export, .pt2) or hf (Hugging Face)")
    parser.add_argument(
        "settings", nargs="*", help="output=DIR (exports/NAME-FORMAT), client=ID of a run with federation=local_only"
    )


def run(arguments: Namespace) -> None:
    """Write the files, and name their folder."""
    from ser_fl.cli.terminal import say

    settings = dict[str, str]()
    for setting in arguments.settings:
        name, _, settings[name] = setting.partition("=")
    for name, value in settings.items():
        if name not in ("output", "client"):
            raise unknown_name("setting", name, ("output", "client"))
        if not value:
            raise UserError(f"{name} must be given a value, {name}=VALUE, got none")
    with collection_paused():
        from ser_fl.exporting.export import export
    folder = export(arguments.run, arguments.form, settings.get("output"), client_id=settings.get("client"))
    say(f"{', '.join(sorted(file.name for file in folder.iterdir()))}: {folder}")
