"""`ser-fl federation`: make keys, run the link, run a node."""

from __future__ import annotations

import shlex
import signal
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from ser_fl.deployment.connection import CONNECTION
from ser_fl.deployment.flower_environment import Outgoing
from ser_fl.deployment.key_folder import KeyFolder
from ser_fl.deployment.keys import handed_out, make_keys
from ser_fl.deployment.link import Link
from ser_fl.deployment.node import Node, node_config

_SWITCHES = ("FLWR_HOME", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK")


def make_federation_keys(console: Console, folder: Path, hosts: list[str], nodes: list[str], days: int) -> None:
    """Make what is asked for, and say what goes to which machine."""
    made = make_keys(folder, hosts, nodes, days)
    for line in handed_out(KeyFolder(folder), made):
        _say(console, line)


def run_link(console: Console, arguments: Namespace) -> None:
    """Run the link until asked to stop."""
    link = Link(
        arguments.folder,
        host=arguments.host,
        port=arguments.port,
        state=arguments.state,
        outgoing=_outgoing(arguments),
    )
    with _until_asked_to_stop(console), link:
        switches = " ".join(f"{name}={shlex.quote(link.environment[name])}" for name in _SWITCHES)
        _say(console, f"ready: {link.address} knows {', '.join(link.keys.public_keys)}; logs in {link.state.root}")
        _say(console, f"submit from this machine: {switches} flwr run APP {CONNECTION}")
        link.watch()


def run_node(console: Console, arguments: Namespace) -> None:
    """Run a node until asked to stop."""
    node = Node(
        arguments.folder,
        arguments.name,
        link=arguments.link,
        config=node_config(arguments.data, arguments.speakers, arguments.cache),
        port=arguments.port,
        state=arguments.state,
        outgoing=_outgoing(arguments),
    )
    tell = partial(_say, console)
    with _until_asked_to_stop(console):
        try:
            node.start(tell=tell)
            tell(f"ready: {node.name} is accepted by {node.link}; logs in {node.state.root}")
            node.watch(tell)
        finally:
            node.stop()


class _AskedToStop(BaseException):
    """A signal that asks for the end: not an error."""


@contextmanager
def _until_asked_to_stop(console: Console) -> Iterator[None]:
    """Leave the block on SIGTERM, Ctrl-C or a closed terminal; further signals cannot cut its clean-up short."""
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
        _say(console, "stopped")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _outgoing(arguments: Namespace) -> Outgoing:
    return Outgoing(
        telemetry=arguments.telemetry,
        update_check=arguments.update_check,
        install_dependencies=arguments.install_dependencies,
    )


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
