"""A node of a federation: Flower's SuperNode beside the recordings, and the SuperExec that runs the client's part."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ser_fl.config.policy import read_policy
from ser_fl.deployment.daemon import LOOK_S, Daemons, free_port, require_free
from ser_fl.deployment.flower_environment import answers, require_flower, split_address
from ser_fl.deployment.flwr_patience import ANSWERED
from ser_fl.deployment.keys import require_private
from ser_fl.deployment.watchdog import Watchdog
from ser_fl.errors import DaemonStopped, UserError
from ser_fl.files import write_bytes

_ACCEPTED = re.compile(r"SuperNode ID: (\d+)\n")
_REFUSED = "[code: 2004]"
"""The key is unknown, or its node counts as online already."""
_TRIES = 2
_TRIES_AT_START, _REGISTRATION_S = 20, 5.0
"""For a link that came up after the node. It answers before all nodes are registered with it."""
_STARTS, _LONGEST_PAUSE_S = 10, 60.0
"""How often a SuperNode that was accepted once is started again in a row without success."""
_LOOPBACK = "127.0.0.1"
_PROBE_S = 5.0


@dataclass(kw_only=True)
class Node(Daemons):
    """A SuperNode that names its corpus folder and speakers to its client, and to nobody else. It calls the link, never
    the other way round, also while that is away. Its own port is for its own parts on 127.0.0.1, in the clear there.
    Its private key is nodes/`name` in the folder of keys, and its policy is beside it.
    """

    kind = "node"
    link: str
    """host:port."""
    config: Mapping[str, str] = field(default_factory=dict)
    """What its client is told, from `node_config` (default: nothing, for the built-in corpus)."""
    port: int | None = None
    """Of its own on 127.0.0.1 (default: a free one)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._last_id = self.state.root / "node.id"
        self._link_came_later = self._was_accepted = False

    def start(self, *, timeout_s: float | None = None, tell: Callable[[str], None] = lambda line: None) -> None:
        """Start, and wait until the link has accepted it, ``timeout_s`` at most (default: for ever, as the link may
        come later); ``tell`` is called with a line where the link does not answer yet.

        Raises:
            UserError: it cannot be started as it stands, or the link is another's, or refuses its key.
            DaemonStopped: Flower ended by itself, or was not accepted in time.
        """
        self.begin()
        with self._stopped_if_it_fails():
            if not answers(self.link, self.keys.ca):
                self._link_came_later = True
                tell(f"{self.link} does not answer yet: waiting for the link")
            self.wait_until_accepted(timeout_s)

    def begin(self) -> None:
        """Start without waiting, as several nodes at once are; a `UserError` where it cannot start as it stands."""
        require_flower()
        from ser_fl.deployment.certificates import require_valid

        split_address(self.link)
        require_private(self.keys.node(self.name), made_by=f"`ser-fl federation keys DIR --nodes {self.name}` makes it")
        require_valid(self.keys.ca)
        if read_policy(self.keys.policy(self.name)).app == "installed" and self.outgoing.install_dependencies:
            raise UserError(
                f"--install-dependencies installs what an app names, and {self.keys.policy(self.name)} allows no code "
                "but what is installed (app: installed)"
            )
        self.state.claim()
        with self._stopped_if_it_fails():
            self._restart_daemons()

    def wait_until_accepted(self, timeout_s: float | None = None) -> None:
        """What can be raised is as for `start`."""
        began = probed = time.monotonic()
        tries_left = _TRIES_AT_START if self._link_came_later and not self._was_accepted else _TRIES
        while not (accepted := _ACCEPTED.search((supernode := self._daemons[0]).said)):
            if not supernode.runs:
                tries_left -= 1
                is_refused = _REFUSED in supernode.said
                if tries_left < 0 or not is_refused or not self._may_rejoin():
                    if is_refused:
                        raise UserError(
                            f"the link does not know this node's key: {self.keys.public(self.name)} must be in nodes/"
                            " of the link's folder, never withdrawn (or another SuperNode runs with the same key)"
                        )
                    self._require_right_link()
                    raise supernode.stopped()
                self._restart_daemons()
                continue
            self._require()
            now = time.monotonic()
            if timeout_s is not None and now - began > timeout_s:
                raise DaemonStopped(f"{self.link} has not accepted {self.name} after {timeout_s:.0f} s")
            if now - probed > _PROBE_S:
                self._require_right_link()  # that it is another's is not told by the SuperNode
                probed = now
            time.sleep(LOOK_S)
        write_bytes(self._last_id, accepted[1].encode())
        self._was_accepted = True

    def watch(self, tell: Callable[[str], None] = lambda line: None) -> None:
        """Stay, and start again what ends by itself, and a SuperNode that has lost a link that answers. ``tell`` is
        called with a line for that, and once the link has accepted it. A `UserError` says that the link refuses its key
        now, `DaemonStopped` that it ends by itself again and again before the link accepts it.
        """
        watchdog = Watchdog(self.state.home / ANSWERED, self.link, self.keys.ca, tell)
        while True:
            if ended := next((daemon for daemon in self._daemons if not daemon.runs), None):
                tell(str(ended.stopped()))
            elif not watchdog.is_needed():
                time.sleep(LOOK_S)
                continue
            tell(f"{self.name} is started again")
            self._start_again(tell)
            watchdog.start_anew()
            tell(f"ready again: {self.name} is accepted by {self.link}")

    def _start_again(self, tell: Callable[[str], None]) -> None:
        """Until the link has accepted it, with pauses that double."""
        for start in range(_STARTS):
            try:
                self._restart_daemons()
                return self.wait_until_accepted()
            except DaemonStopped as stopped:
                if start == _STARTS - 1:
                    raise
                pause_s = min(2.0**start, _LONGEST_PAUSE_S)
                tell(f"{stopped}\n{self.name} is started again in {pause_s:.0f} s")
                time.sleep(pause_s)

    def _require_right_link(self) -> None:
        """Once accepted, a node waits for the right link to come back: its address may be another's for a while."""
        with suppress(UserError) if self._was_accepted else nullcontext():
            answers(self.link, self.keys.ca)

    def _restart_daemons(self) -> None:
        self._stop_daemons()
        if self.port is not None:
            require_free(_LOOPBACK, self.port)
        port = str(self.port or free_port())
        secret = self.state.new_secret()
        self._start_daemon(
            "supernode",
            *("--root-certificates", str(self.keys.ca)),
            *("--superlink", self.link),
            *("--auth-supernode-private-key", str(self.keys.node(self.name))),
            *("--node-config", str(self._write_config())),
            *("--host", _LOOPBACK, "--port", port),
            *("--isolation", "process"),
            *secret,
        )
        self._start_daemon("superexec", "--insecure", "--runtime-api-address", f"{_LOOPBACK}:{port}", *secret)

    def _write_config(self) -> Path:
        """A file, since Flower's own quoting on the command line cannot hold every path."""
        import tomli_w

        file = self.state.root / "node.toml"
        own = {"policy": str(self.keys.policy(self.name)), "state": str(self.state.root)}
        write_bytes(file, tomli_w.dumps({**self.config, **own}).encode())
        return file

    def _may_rejoin(self) -> bool:
        """Whether a refused key may be taken at the next try: the link still counted it as online, and no longer does;
        or it has just come up, and was not told of the key yet.
        """
        if self._last_id.exists():
            key, last_id = str(self.keys.node(self.name)), self._last_id.read_text(encoding="ascii")
            if self._tell_link("rejoin", self.link, str(self.keys.ca), key, last_id).returncode == 0:
                return True
        is_new = self._link_came_later or self._was_accepted  # the link may have started again, without what it knew
        if is_new:
            time.sleep(_REGISTRATION_S)
        return is_new


def node_config(data: Path | None = None, speakers: Sequence[str] = (), cache: Path | None = None) -> dict[str, str]:
    """The settings that a node names to its client, as far as they are given: folder of the corpus, speakers that it
    hosts, folder for prepared features. A `UserError` where a folder is missing, or a name cannot be written down.
    """
    if data is not None and not data.expanduser().is_dir():
        raise UserError(f"--data is no folder: {data}")
    if any(not speaker or "," in speaker for speaker in speakers):
        raise UserError(f"--speakers takes names with commas between them, got {','.join(speakers)!r}")
    folders = {"data-root": data, "cache-dir": cache}
    config = {name: str(folder.expanduser().absolute()) for name, folder in folders.items() if folder is not None}
    if speakers:
        config["speakers"] = ",".join(speakers)
    for value in config.values():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{value!a} is not UTF-8: Flower cannot hand it on, choose another name") from None
    return config
