"""The link of a federation: Flower's SuperLink, which nodes call, and the SuperExec that runs the server's part."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from ser_fl.deployment.connection import answers, join_address, write_connection
from ser_fl.deployment.daemon import LOOK_S, Daemons, StateFolder, require_free
from ser_fl.deployment.flower_environment import NOTHING_OUTGOING, Outgoing, flower_environment, require_flower
from ser_fl.deployment.key_folder import KeyFolder, require_private
from ser_fl.errors import DaemonStopped, UserError

_START_S = 180.0


class Link(Daemons):
    """A SuperLink with TLS that knows the nodes whose public keys are in the folder, and nobody else.

    It has its own SuperExec, and a state folder with Flower's data base, so that after a crash it goes on with the
    same nodes. Runs are submitted, and keys registered, from its own machine only (`ser_fl.deployment.flwr_gate`). Its
    ``environment`` is also that of a ``flwr`` command that is to find it.
    """

    def __init__(
        self,
        keys: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 9092,
        state: Path | None = None,
        outgoing: Outgoing = NOTHING_OUTGOING,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Say what to start.

        Args:
            keys: folder of `ser_fl.deployment.keys.make_keys`, with the link's part and the nodes' public keys.
            host: address to listen on; 0.0.0.0 for all of this machine's.
            port: port to listen on.
            state: folder that outlives the link (default: state/link in `keys`).
            outgoing: what Flower may do on the internet.
            environment: variables for the processes, beside this process's own.
        """
        self.keys = KeyFolder(keys.absolute())
        self.host = host
        self.port = port
        self.address = join_address(_reached_at(host), port)
        """Where its own machine reaches it."""
        folder = StateFolder(state or self.keys.state("link"), "link")
        super().__init__(folder, flower_environment(folder.home, outgoing, environment))

    def start(self) -> None:
        """Start, wait until it answers, and let it know the nodes.

        Raises:
            UserError: it cannot be started as it stands.
            DaemonStopped: Flower ended by itself.
        """
        require_flower()
        self._check()
        self.state.claim()
        with self._stopped_if_it_fails():
            require_free(self.host, self.port)
            write_connection(self.state.home, self.address, self.keys.ca)
            secret = ["--superexec-auth-secret-file", str(self.state.new_secret())]
            self._start_superlink(secret)
            self._wait_until_healthy()
            self._register_nodes()
            self._start_superexec(secret)  # last: it would take up what the link was killed in

    def watch(self) -> None:
        """Stay until a part ends by itself.

        Raises:
            DaemonStopped: it has, with the end of its log.
        """
        while True:
            for daemon in self._daemons:
                daemon.require()
            time.sleep(LOOK_S)

    def _check(self) -> None:
        """Refuse what can be told before anything is started."""
        from ser_fl.deployment.certificates import certified_hosts, require_valid

        require_private(self.keys.server_key, made_by="`ser-fl federation keys` makes it for the link's machine")
        for certificate in (self.keys.ca, self.keys.server):
            require_valid(certificate)
        if (host := _reached_at(self.host)) not in (hosts := certified_hosts(self.keys.server)):
            raise UserError(
                f"the certificate of the link is for {', '.join(hosts)}, not {host}:"
                f" `ser-fl federation keys {self.keys.root} --host {host}` adds it"
            )
        if not self.keys.public_keys:
            raise UserError(f"{self.keys.nodes} has no public key (NAME.pub): no node could join")

    def _start_superlink(self, secret: Sequence[str]) -> None:
        superlink = [
            *("--ssl-certfile", str(self.keys.server)),
            *("--ssl-keyfile", str(self.keys.server_key)),
            *("--ssl-ca-certfile", str(self.keys.ca)),
            "--enable-supernode-auth",
            *("--host", self.host, "--port", str(self.port)),
            *("--database", str(self.state.root / "state.db")),
            *("--isolation", "process"),
            *secret,
        ]
        self._start_daemon("superlink", superlink)

    def _start_superexec(self, secret: Sequence[str]) -> None:
        superexec = [
            *("--runtime-api-address", self.address),
            *("--root-certificates", str(self.keys.ca)),
            *secret,
        ]
        if self.environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "0":
            superexec.append("--allow-runtime-dependency-installation")
        self._start_daemon("superexec", superexec)

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + _START_S
        while not answers(self.address, self.keys.ca):
            for daemon in self._daemons:
                daemon.require()
            if time.monotonic() > deadline:
                raise DaemonStopped(f"the link does not answer on {self.address} after {_START_S:.0f} s")
            time.sleep(LOOK_S)

    def _register_nodes(self) -> None:
        command = [sys.executable, "-m", "ser_fl.deployment.registration", self.address, str(self.keys.root)]
        done = subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode == 2:
            raise UserError(done.stderr)
        if done.returncode:
            raise DaemonStopped(f"the nodes' keys could not be registered:\n{done.stderr.strip()}")


def _reached_at(host: str) -> str:
    """The address by which a machine reaches itself where it listens on `host`."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return str(address)
