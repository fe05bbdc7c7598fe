"""Giving an experiment to a SuperLink, and staying until it has ended there: what is told, both ways."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import tomli_w

from ser_fl.config.compose import compose
from ser_fl.config.schema import Config, dump, parse
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.checkpoint import given_folder, new_folders
from ser_fl.federation.flower import QUIET
from ser_fl.files import write_bytes
from ser_fl.flower_home import CONNECTION, write_home
from ser_fl.runs.folder import RunFolder

_LOOKS, _LOOK_S = 3, 2.0
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_COURTESIES = ("Using SuperLink", "Displaying information")
"""What Flower says before it says what is wrong."""
_APP = """
[project]
name = "ser-fl"
version = "{version}"
description = "The ser_fl that link and nodes have installed."
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.42"]
[tool.flwr.app]
publisher = "ser-fl"
config = {{ config = "", settings = "" }}
[tool.flwr.app.components]
serverapp = "ser_fl.federation.flower.server_app:app"
clientapp = "ser_fl.federation.flower.client_app:app"
"""
"""An app without code of its own: link and nodes run the ser_fl that they have installed, and none that is sent."""
_OURS = "ser-fl: "
_FAILED = "the run has failed: "
"""How the server's part of a run begins the line of its log that says why it ends."""


def submit(config: Config) -> RunFolder:
    """Run an experiment on a SuperLink, or go on with it, and show what it prints. The run folder is written by the
    link, on its machine: `run_dir` is a path there.

    Raises:
        UserError: the SuperLink does not take it, or the settings, the nodes or their data do not fit.
        RoundFailed: the run has failed there.
    """
    # as `open_run` chooses it, but absolute: the link has a folder of its own
    run = (given_folder(config) or next(new_folders(config))).absolute()
    sent = dump(config) | {"run_dir": str(run)}  # nothing of this machine but where the run folder is to be
    if config.init_from is not None:  # of the link's machine, as `run_dir`
        sent["init_from"] = str(Path(config.init_from).expanduser().absolute())
    sent["data"] |= {"root": None, "cache_dir": None}
    sent["executor"] |= {"root_certificates": None, "credential": None}
    with tempfile.TemporaryDirectory(prefix="ser_fl-") as folder:
        home, app = Path(folder, "home"), Path(folder, "app")
        _write_connection(config, home)
        write_bytes(app / "pyproject.toml", _APP.format(version=version("ser-fl")).encode())
        write_bytes(app / "run.toml", tomli_w.dumps({"config": json.dumps(sent)}).encode())
        flower = _Flower(home)
        link = config.executor.superlink
        try:
            started = flower.call("run", str(app), CONNECTION, "--run-config", str(app / "run.toml"))
        except _Unanswered as error:
            raise UserError(
                f"{link} does not take the run ({error}): it must be a link that runs,"
                " executor.root_certificates its ca.crt, and executor.credential its link/credential"
            ) from None
        run_id = str(started["run-id"])
        try:
            status, told = flower.follow(run_id)
        except _Unanswered as error:
            raise RoundFailed(
                f"{link} does not answer any more ({error}): start the link again;"
                f" the same command with resume=true goes on with {run}"
            ) from None
        except BaseException:  # Ctrl-C, or a signal: a run that went on there would hold the folder
            with suppress(_Unanswered):
                flower.call("stop", run_id, CONNECTION)
            raise
    if status != "finished:completed":
        if told is not None:
            raise told
        raise RoundFailed(f"the run has ended as {status}; the same command with resume=true goes on with {run}")
    return RunFolder(run)


def configured(run_config: Mapping[str, object]) -> Config:
    """The experiment of a run: ``config``, a whole configuration as JSON, or else ``settings``, overrides in a row. A
    wrong setting is a `UserError`.
    """
    if text := str(run_config.get("config", "")):
        return parse(json.loads(text))
    return compose(["executor=flower", *shlex.split(str(run_config.get("settings", "")))])


def error_line(error: UserError | RoundFailed) -> str:
    """An error as a line of the log of a run, by which it is told to whoever submitted it."""
    first, *others = (" ".join(line.split()) for line in str(error).splitlines())
    text = " ".join([first, "; ".join(others)]).rstrip()
    return f"{_OURS}{_FAILED if isinstance(error, RoundFailed) else ''}{text}"


def error_told_by(line: str) -> UserError | RoundFailed | None:
    """The error that a line of a log tells of; None where it tells of none."""
    if not line.startswith(_OURS):
        return None
    text = line.removeprefix(_OURS).strip()
    return RoundFailed(text.removeprefix(_FAILED)) if text.startswith(_FAILED) else UserError(text)


def _write_connection(config: Config, home: Path) -> None:
    """Make a FLWR_HOME; a `UserError` where a file is missing, or no certificates are named for another machine."""
    link, given = str(config.executor.superlink), config.executor
    named = (given.root_certificates, given.credential)
    ca, credential = (None if file is None else Path(file).expanduser().absolute() for file in named)
    if ca is None and link.rpartition(":")[0] not in _LOOPBACK:
        raise UserError(
            f"executor.superlink={link} needs executor.root_certificates=KEYS/ca.crt: "
            "without it everything would cross in the clear"
        )
    if ca is not None and not ca.is_file():
        raise UserError(f"executor.root_certificates: no such file: {ca}")
    if ca is not None and credential is None and (beside := ca.parent / "link" / "credential").exists():
        credential = beside
    write_home(home, link, ca, credential)


class _Unanswered(Exception):
    """A SuperLink does not answer, or not what was asked."""


class _Flower:
    def __init__(self, home: Path) -> None:
        self._command = [sys.executable, "-c", "from flwr.cli.app import app; app()"]
        self._environment = {**os.environ, **QUIET, "FLWR_HOME": str(home)}

    def call(self, *arguments: str) -> dict[str, Any]:
        """What a command says; raises `_Unanswered` where it does not succeed."""
        done = subprocess.run(
            [*self._command, *arguments, "--format", "json"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        try:
            said: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            said = {"success": False, "error-message": done.stderr or done.stdout}
        if not said.get("success"):
            lines = str(said.get("error-message", "no reason")).splitlines()
            problem = " ".join(line.strip() for line in lines if not line.startswith(_COURTESIES))
            raise _Unanswered(f"flwr {arguments[0]}: {problem[-300:]}")
        return said

    def follow(self, run_id: str) -> tuple[str, UserError | RoundFailed | None]:
        """Print what a run prints until its end; how it ended, and its error. `_Unanswered`: the link is gone."""
        shown, told = 0, None
        while True:
            process = subprocess.Popen(
                [*self._command, "log", run_id, CONNECTION, "--stream"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # its own words; whether it still answers is asked next
                text=True,
            )
            with process:
                assert process.stdout is not None
                try:
                    for line in islice(process.stdout, shown, None):
                        shown += 1
                        told = told or error_told_by(line)
                        if told is None:  # what follows is where in the code it was raised
                            print(line, end="", flush=True)
                finally:
                    process.terminate()  # where we are interrupted
            for looks_left in reversed(range(_LOOKS)):  # a SuperLink that does not answer at once is asked again
                try:
                    (run,) = self.call("list", "--run-id", run_id, CONNECTION)["runs"]
                    break
                except _Unanswered:
                    if not looks_left:
                        raise
                    time.sleep(_LOOK_S)
            if str(run["status"]).startswith("finished"):
                return str(run["status"]), told
            time.sleep(_LOOK_S)
