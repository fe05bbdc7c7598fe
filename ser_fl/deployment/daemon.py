"""Long-running processes: each is started in a group of its own, logs to a file, and is stopped with its children."""

import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

from ser_fl.deployment.flower_environment import Outgoing, flower_environment
from ser_fl.deployment.keys import KeyFolder
from ser_fl.errors import DaemonStopped, UserError
from ser_fl.files import write_bytes

LOOK_S = 0.2
"""Seconds between two looks at a daemon."""
_GRACE_S = 8.0
_LEFTOVER_S = 20.0
_TAIL_LINES = 12
_LOG_BYTES = 20_000_000


class StateFolder:
    """The folder for what a daemon keeps while it runs. It takes one daemon at a time."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root.absolute()
        self.name = name
        self.home = self.root / "flwr"
        """FLWR_HOME."""
        self.pid = self.root / f"{name}.pid"
        self.lock: int | None = None

    def claim(self) -> None:
        """Take the folder; parts of a killed daemon get time to end. A `UserError` where a daemon runs on it."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
        lock = os.open(self.pid, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LEFTOVER_S
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            try:
                os.kill(int(holder), 0)
                is_there = True
            except (OSError, ValueError) as error:
                is_there = isinstance(error, PermissionError)  # somebody else's
            if is_there or time.monotonic() > deadline:
                os.close(lock)
                raise UserError(f"a {self.name} runs on {self.root} already (process {holder}): stop it first")
            time.sleep(LOOK_S)
        os.truncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self.lock = lock

    def release(self) -> None:
        if self.lock is not None:
            os.truncate(self.lock, 0)
            os.close(self.lock)
            self.lock = None

    def new_secret(self) -> list[str]:
        """Arguments that name a file with fresh random bytes, by which a daemon and its SuperExec know each other."""
        file = self.root / "superexec.secret"
        file.unlink(missing_ok=True)
        write_bytes(file, secrets.token_bytes(32), private=True)
        return ["--superexec-auth-secret-file", str(file)]


class Daemon:
    """One of Flower's programs as a process, in a process group of its own, so that Ctrl-C reaches only us, and all it
    started ends with it. It holds the lock of its state folder, so that a daemon that outlives us for a moment still
    counts.
    """

    def __init__(self, program: str, arguments: Sequence[str], state: StateFolder, environment: Mapping[str, str]):
        self.program = program
        self.log = state.root / f"{program}.log"
        self._asked = False
        assert state.lock is not None, "the folder is claimed first"
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as log:
            self._begin = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ser_fl.deployment.program", str(os.getpid()), program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                pass_fds=(state.lock,),
            )

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._begin)
            return log.read().decode("utf-8", "replace")

    def stopped(self) -> DaemonStopped:
        """The error for a process that has ended by itself, with the end of its log."""
        tail = "\n".join(self.said.rstrip().splitlines()[-_TAIL_LINES:])
        return DaemonStopped(
            f"the {self.program} has ended (exit code {self.process.poll()}), {self.log} ends:\n{tail}"
        )

    def ask_to_stop(self) -> None:
        """Tell it and its children to end. Only once: a second signal cuts Flower's clean-up short."""
        if not self._asked:
            self._asked = True
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End it and all it started, by force where it takes too long."""
        self.ask_to_stop()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(kw_only=True)
class Daemons(ABC):
    """The daemons of one state folder, as a context: started one after the other on entry, stopped together on exit."""

    kind: ClassVar[str]
    folder: Path = field(kw_only=False)
    """Of keys, from `ser_fl.deployment.keys.make_keys`."""
    name: str = field(kw_only=False)
    state_folder: Path | None = None
    """For what outlives them (default: state/NAME in that of the keys)."""
    outgoing: Outgoing = field(default_factory=Outgoing)
    """What Flower may do on the internet (default: nothing)."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the processes, to which those of this process and of Flower are added."""

    def __post_init__(self) -> None:
        self.keys = KeyFolder(self.folder.absolute())
        self.state = StateFolder(self.state_folder or self.keys.root / "state" / self.name, self.kind)
        self.environment = flower_environment(self.state.home, self.outgoing, self.environment)
        self._daemons: list[Daemon] = []

    @abstractmethod
    def start(self) -> None:
        """Start them, each daemon's own way."""

    def _start_daemon(self, program: str, *arguments: str, more: Mapping[str, str] = {}) -> None:
        if self.outgoing.install_dependencies and program != "superlink":
            arguments = (*arguments, "--allow-runtime-dependency-installation")
        self._daemons.append(Daemon(program, arguments, self.state, {**self.environment, **more}))

    def _tell_link(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ser_fl.deployment.registration", *arguments]
        return subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def _require(self) -> None:
        """Check that all run; `DaemonStopped`, with the end of the log, where one has ended by itself."""
        for daemon in self._daemons:
            if not daemon.runs:
                raise daemon.stopped()

    def _stop_daemons(self) -> None:
        for daemon in self._daemons:
            daemon.ask_to_stop()
        for daemon in self._daemons:
            daemon.stop()
        self._daemons.clear()

    def stop(self) -> None:
        """End all that were started; their state stays."""
        self._stop_daemons()
        self.state.release()

    @contextmanager
    def _stopped_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free(host: str, port: int) -> None:
    """Check that a daemon can listen there; a `UserError` where it cannot."""
    if not 0 < port < 65536:
        raise UserError(f"--port must be between 1 and 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(f"cannot listen on {host} port {port} ({error.strerror}): choose --host and --port") from None
