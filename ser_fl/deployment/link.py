"""The link of a federation: Flower's SuperLink, which nodes call, and the SuperExec that runs the server's part."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

from ser_fl.deployment.daemon import LOOK_S, Daemons, require_free
from ser_fl.deployment.flower_environment import answers, join_address, require_flower
from ser_fl.deployment.flwr_gate import CREDENTIAL
from ser_fl.deployment.keys import require_private
from ser_fl.errors import DaemonStopped, UserError
from ser_fl.flower_home import write_home

_START_S = 180.0
_SETTLE_S, _RETRY_S = 0.5, 10.0
"""Seconds between two looks at the folder of public keys."""


@dataclass(kw_only=True)
class Link(Daemons):
    """A SuperLink with TLS that knows the nodes whose public keys are in the folder, and nobody else. It has its own
    SuperExec, and a state folder with Flower's data base, so that after a crash it goes on with the same nodes. Runs
    are submitted, and keys registered, from its own machine with its credential only (`ser_fl.deployment.flwr_gate`).
    Its ``environment`` is also that of a ``flwr`` command that is to find it, and has the credential.
    """

    kind = "link"
    name: str = field(default="link", init=False)
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine's."""
    port: int = 9092

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reached_at = self.host
        """The address by which its own machine reaches it."""
        with suppress(ValueError):
            address = ip_address(self.host)
            loopback = "127.0.0.1" if address.version == 4 else "::1"
            self.reached_at = loopback if address.is_unspecified else str(address)
        self.address = join_address(self.reached_at, self.port)

    def start(self) -> None:
        """Start, wait until it answers, and let it know the nodes. A `UserError` says that it cannot be started as it
        stands, `DaemonStopped` that Flower ended by itself.
        """
        require_flower()
        from ser_fl.deployment.certificates import certified_hosts, require_valid

        require_private(self.keys.server_key, made_by="`ser-fl federation keys` makes it for the link's machine")
        require_private(self.keys.credential, made_by=f"`ser-fl federation keys {self.keys.root}` makes it")
        for certificate in (self.keys.ca, self.keys.server):
            require_valid(certificate)
        if self.reached_at not in (hosts := certified_hosts(self.keys.server)):
            raise UserError(
                f"the certificate of the link is for {', '.join(hosts)}, not {self.reached_at}:"
                f" `ser-fl federation keys {self.keys.root} --host {self.reached_at}` adds it"
            )
        if not self.keys.public_keys:
            raise UserError(f"{self.keys.nodes} has no public key (NAME.pub): no node could join")
        self.state.claim()
        with self._stopped_if_it_fails():
            require_free(self.host, self.port)
            write_home(self.state.home, self.address, self.keys.ca, self.keys.credential)
            secret = self.state.new_secret()
            self._start_daemon(
                "superlink",
                *("--ssl-certfile", str(self.keys.server)),
                *("--ssl-keyfile", str(self.keys.server_key)),
                *("--ssl-ca-certfile", str(self.keys.ca)),
                "--enable-supernode-auth",
                *("--host", self.host, "--port", str(self.port)),
                *("--database", str(self.state.root / "state.db")),
                *("--isolation", "process"),
                *secret,
                more={CREDENTIAL: str(self.keys.credential)},
            )
            deadline = time.monotonic() + _START_S
            while not answers(self.address, self.keys.ca):
                self._require()
                if time.monotonic() > deadline:
                    raise DaemonStopped(f"the link does not answer on {self.address} after {_START_S:.0f} s")
                time.sleep(LOOK_S)
            self._told = self._publics()
            done = self._tell_link("start", self.address, str(self.keys.root))
            if done.returncode == 2:
                raise UserError(done.stderr)
            if done.returncode:
                raise DaemonStopped(f"the nodes' keys could not be registered:\n{done.stderr.strip()}")
            # last: it would take up what the link was killed in
            reached = ("--runtime-api-address", self.address, "--root-certificates", str(self.keys.ca))
            self._start_daemon("superexec", *reached, *secret)

    def watch(self, tell: Callable[[str], None] = lambda line: None) -> None:
        """Stay, and admit or withdraw nodes as public keys come to the folder and go; ``tell`` is called with a line
        for each. Until a part ends by itself: `DaemonStopped`, with the end of its log.
        """
        before = self._told
        while True:
            self._require()
            time.sleep(_SETTLE_S)
            # twice the same: nobody is copying just now; and a folder that is gone, as a disk may be, withdraws nobody
            if (now := self._publics()) == before != self._told and self.keys.nodes.is_dir():
                done = self._tell_link("keys", self.address, str(self.keys.root))
                if done.returncode in (0, 2):
                    self._told = now
                    text = done.stdout + done.stderr
                else:
                    text = f"the link could not be told of a change in {self.keys.nodes}: it is tried again"
                    time.sleep(_RETRY_S)
                for line in text.splitlines():
                    tell(line)
            before = now

    def _publics(self) -> dict[str, tuple[int, int, int]]:
        """A sign of what each public key holds."""
        found = {}
        for name, file in self.keys.public_keys.items():
            with suppress(FileNotFoundError):
                status = file.stat()
                found[name] = (status.st_ino, status.st_mtime_ns, status.st_size)
        return found
