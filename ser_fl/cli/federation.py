"""`ser-fl federation`: make keys, run the link, run a node."""

import shlex
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ser_fl.errors import UserError

_SHARED = ("FLWR_HOME", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK")
"""Variables of the link's environment that whoever submits a run needs too."""


def add_arguments(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
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
    keys.add_argument("--policies", type=_names, default=[], metavar="NAME,NAME", help="nodes that lack a policy alone")
    keys.add_argument("--days", type=int, default=365, help="how long the link's certificate is valid (365)")

    link.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (127.0.0.1)")
    link.add_argument("--port", type=int, default=9092, help="(9092)")
    node.add_argument("name", metavar="NAME", help="of the node, as in `keys --nodes`")
    node.add_argument("--link", metavar="HOST:PORT", help="where the link listens")
    node.add_argument("--data", type=Path, metavar="ROOT", help="corpus folder (default: the built-in corpus)")
    node.add_argument("--speakers", type=_names, default=[], metavar="A,B", help="that the node hosts (default: all)")
    node.add_argument("--cache", type=Path, metavar="FOLDER", help="for prepared features")
    node.add_argument("--port", type=int, help="of its own parts on 127.0.0.1 (default: a free one)")
    node.add_argument(
        "--dry-run",
        nargs="*",
        metavar="SETTING",
        help="print what the node would tell in an experiment with these settings, by its policy, and send nothing",
    )
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
    return [name.strip() for name in text.split(",")]


def run(arguments: Namespace) -> None:
    """Make keys and say what goes to which machine, or run the link or a node until asked to stop."""
    from ser_fl.cli.terminal import say
    from ser_fl.deployment.flower_environment import Outgoing
    from ser_fl.flower_home import CONNECTION

    if arguments.action == "keys":
        from ser_fl.deployment.keys import KeyFolder, make_keys, write_policy

        for name in arguments.policies:
            say(write_policy(KeyFolder(arguments.folder), name))
        if not arguments.policies or arguments.nodes or arguments.host:
            for line in make_keys(arguments.folder, arguments.host, arguments.nodes, arguments.days):
                say(line)
        return
    switches = ("telemetry", "update_check", "install_dependencies")
    outgoing = Outgoing(**{name: getattr(arguments, name) for name in switches})
    if arguments.action == "link":
        from ser_fl.deployment.link import Link

        named = {"host": arguments.host, "port": arguments.port, "state_folder": arguments.state}
        with _until_asked_to_stop(), Link(arguments.folder, outgoing=outgoing, **named) as link:
            shared = " ".join(f"{name}={shlex.quote(link.environment[name])}" for name in _SHARED)
            say(f"ready: {link.address} knows {', '.join(link.keys.public_keys)}; logs in {link.state.root}")
            say(f"submit from this machine: {shared} flwr run APP {CONNECTION}")
            files = f"executor.root_certificates={link.keys.ca} executor.credential={link.keys.credential}"
            say(f"or: ser-fl train executor=flower executor.superlink={link.address} {files}")
            link.watch(say)
        return
    from ser_fl.deployment.node import Node, node_config

    config = node_config(arguments.data, arguments.speakers, arguments.cache)
    if arguments.dry_run is not None:
        from ser_fl.deployment.keys import KeyFolder
        from ser_fl.federation.flower.dry_run import what_is_shared

        keys = KeyFolder(arguments.folder.absolute())
        state = arguments.state or keys.root / "state" / arguments.name
        for line in what_is_shared(keys.policy(arguments.name), state, config, arguments.dry_run):
            say(line)
        return
    if arguments.link is None:
        raise UserError("a node needs --link HOST:PORT, where the link listens (or --dry-run)")
    named = {"link": arguments.link, "port": arguments.port, "state_folder": arguments.state}
    node = Node(arguments.folder, arguments.name, config=config, outgoing=outgoing, **named)
    with _until_asked_to_stop():
        try:
            node.start(tell=say)
            say(f"ready: {node.name} is accepted by {node.link}; logs in {node.state.root}")
            node.watch(say)
        finally:
            node.stop()


class _AskedToStop(BaseException):
    """A signal that asks for the end: not an error."""


@contextmanager
def _until_asked_to_stop() -> Iterator[None]:
    """Leave the block on SIGTERM, Ctrl-C or a closed terminal; further signals cannot cut its clean-up short."""
    from ser_fl.cli.terminal import say

    asked = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        asked.append(signal.SIGHUP)

    def leave(number: int, _: FrameType | None) -> NoReturn:
        for each in asked:
            signal.signal(each, signal.SIG_IGN)
        raise _AskedToStop(number)

    before = {each: signal.signal(each, leave) for each in asked}
    try:
        yield
    except _AskedToStop:
        say("stopped")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
