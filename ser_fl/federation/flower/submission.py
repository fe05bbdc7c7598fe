"""Giving an experiment to a SuperLink, and staying until it has ended there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import tomli_w

from ser_fl.config.schema import Config, dump
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.checkpoint import given_folder, new_folders
from ser_fl.federation.flower import QUIET
from ser_fl.federation.flower.error_reporting import error_told_by
from ser_fl.files import write_bytes
from ser_fl.runs.folder import RunFolder

_LOOKS, _LOOK_S = 3, 2.0
_CONNECTION = "ser_fl"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_COURTESIES = ("Using SuperLink", "Displaying information")
"""What Flower says before it says what is wrong."""
APP: dict[str, Any] = {
    "project": {
        "name": "ser-fl",
        "version": version("ser-fl"),
        "description": "The ser_fl that link and nodes have installed.",
        "license": "Apache-2.0",
        "dependencies": ["flwr>=1.41,<1.42"],
    },
    "tool": {
        "flwr": {
            "app": {
                "publisher": "ser-fl",
                "components": {
                    "serverapp": "ser_fl.federation.flower.server_app:app",
                    "clientapp": "ser_fl.federation.flower.client_app:app",
                },
                "config": {"config": "", "settings": ""},
            }
        }
    },
}
"""An app without code of its own: link and nodes run the ser_fl that they have installed, and none that is sent."""


def submit(config: Config) -> RunFolder:
    """Run an experiment on a SuperLink, or go on with it, and show what it prints.

    The run folder is written by the link, on its machine: `run_dir` is a path there.

    Raises:
        UserError: the SuperLink does not take it, or the settings, the nodes or their data do not fit.
        RoundFailed: the run has failed there.
    """
    run = _run_folder(config)
    with tempfile.TemporaryDirectory(prefix="ser_fl-") as folder:
        home, app = Path(folder, "home"), Path(folder, "app")
        write_bytes(home / "config.toml", tomli_w.dumps(_connection(config)).encode())
        write_bytes(app / "pyproject.toml", tomli_w.dumps(APP).encode())
        write_bytes(app / "run.toml", tomli_w.dumps({"config": json.dumps(_sent(config, run))}).encode())
        flower = _Flower(home)
        link = config.executor.superlink
        try:
            run_id = flower.start(app)
        except _Unanswered as error:
            raise UserError(
                f"{link} does not take the run ({error}): it must be a link that runs,"
                " and executor.root_certificates its ca.crt"
            ) from None
        try:
            status, told = flower.follow(run_id)
        except _Unanswered as error:
            raise RoundFailed(
                f"{link} does not answer any more ({error}): start the link again;"
                f" the same command with resume=true goes on with {run}"
            ) from None
        except BaseException:  # Ctrl-C, or a signal: a run that went on there would hold the folder
            flower.stop(run_id)
            raise
    if status != "finished:completed":
        if told is not None:
            raise told
        raise RoundFailed(f"the run has ended as {status}; the same command with resume=true goes on with {run}")
    return RunFolder(run)


def _run_folder(config: Config) -> Path:
    """As `open_run` chooses it, but absolute: the link has a folder of its own."""
    return (given_folder(config) or next(new_folders(config))).absolute()


def _sent(config: Config, run: Path) -> dict[str, Any]:
    """What the link is told: nothing of this machine but where the run folder is to be."""
    settings = dump(config) | {"run_dir": str(run)}
    settings["data"] |= {"root": None, "cache_dir": None}
    settings["executor"]["root_certificates"] = None
    return settings


def _connection(config: Config) -> dict[str, Any]:
    """Flower's ``config.toml``.

    Raises:
        UserError: there is no such file of certificates.
    """
    connection: dict[str, Any] = {"address": config.executor.superlink}
    if config.executor.root_certificates is None:
        if str(config.executor.superlink).rpartition(":")[0] not in _LOOPBACK:
            raise UserError(
                f"executor.superlink={config.executor.superlink} needs executor.root_certificates=KEYS/ca.crt: "
                "without it everything would cross in the clear"
            )
        connection["insecure"] = True
    else:
        certificates = Path(config.executor.root_certificates).expanduser().absolute()
        if not certificates.is_file():
            raise UserError(f"executor.root_certificates: no such file: {certificates}")
        connection["root-certificates"] = str(certificates)
    return {"superlink": {"default": _CONNECTION, _CONNECTION: connection}}


class _Unanswered(Exception):
    """A SuperLink does not answer, or not what was asked."""


class _Flower:
    """The `flwr` command, told of one SuperLink."""

    def __init__(self, home: Path) -> None:
        self._environment = {**os.environ, **QUIET, "FLWR_HOME": str(home)}

    def start(self, app: Path) -> str:
        """Submit, and return the run's number there."""
        return str(self._json("run", str(app), _CONNECTION, "--run-config", str(app / "run.toml"))["run-id"])

    def follow(self, run_id: str) -> tuple[str, UserError | RoundFailed | None]:
        """Print what a run prints until it has ended; how it has, and the error that it tells of.

        Raises:
            _Unanswered: the SuperLink is gone.
        """
        shown, told = 0, None
        while True:
            for line in self._lines(run_id, shown):
                shown += 1
                told = told or error_told_by(line)
                if told is None:  # what follows is where in the code it was raised
                    print(line, end="", flush=True)
            status = self._status(run_id)
            if status.startswith("finished"):
                return status, told
            time.sleep(_LOOK_S)

    def _lines(self, run_id: str, shown: int) -> Iterator[str]:
        """A run's lines, but for those that were shown before, until they end or the connection does."""
        process = subprocess.Popen(
            self._command("log", run_id, _CONNECTION, "--stream"),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # its own words; that a connection has ended is found out by the next question
            text=True,
        )
        with process:
            assert process.stdout is not None
            try:
                yield from islice(process.stdout, shown, None)
            finally:
                process.terminate()  # where we are interrupted

    def _status(self, run_id: str) -> str:
        """How far a run is; a SuperLink that does not answer at once is asked again."""
        for _ in range(_LOOKS - 1):
            with suppress(_Unanswered):
                return self._look(run_id)
            time.sleep(_LOOK_S)
        return self._look(run_id)

    def _look(self, run_id: str) -> str:
        (run,) = self._json("list", "--run-id", run_id, _CONNECTION)["runs"]
        return str(run["status"])

    def stop(self, run_id: str) -> None:
        """End a run there, if it is not at its end."""
        with suppress(_Unanswered):
            self._json("stop", run_id, _CONNECTION)

    def _json(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            self._command(*arguments, "--format", "json"),
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

    @staticmethod
    def _command(*arguments: str) -> list[str]:
        return [sys.executable, "-c", "from flwr.cli.app import app; app()", *arguments]
