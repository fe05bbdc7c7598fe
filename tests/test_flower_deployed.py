"""The same experiment on a real federation over TLS: equal to one machine's, and whole whatever a node does.

A link and three nodes are started once for all tests of this file, with keys of their own, on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from flower_grid import InProcessGrid, summary_of
from flwr.app import Message

from ser_fl.config.compose import compose
from ser_fl.deployment.daemon import free_port
from ser_fl.deployment.keys import KeyFolder, make_keys
from ser_fl.deployment.link import Link
from ser_fl.deployment.node import Node, node_config
from ser_fl.federation.flower.client_app import app
from ser_fl.federation.flower.serialisation import put_json, take_json
from ser_fl.federation.flower.server_app import serve
from ser_fl.federation.hooks import Hooks
from ser_fl.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.flower]

PACKAGE = Path(__file__).parent.parent
SPEAKERS = ("f01", "f02", "m01")
BASE = (
    "experiment=debug",
    "data.num_speakers=3",
    "data.utterances_per_emotion=4",
    "precision=32-true",
    "tracking=none",
    "optimiser.learning_rate=0.01",
)
_PATIENCE_S = 300.0


class Federation:
    """A link and three nodes, each with one speaker."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cache = home / "cache"
        make_keys(home / "keys", nodes=SPEAKERS)
        for name in SPEAKERS:  # whose corpora are small, and who take part in runs of all kinds
            policy = "least_utterances: 2\nleast_scored: 1\nmost_views: 99\nstatistics: once\n"
            KeyFolder(home / "keys").policy(name).write_text(policy)
        make_keys(home / "others", nodes=["nobody"])
        self.link = Link(home / "keys", port=free_port())
        self.nodes: dict[str, Node] = {}

    def begin(self, name: str, environment: dict[str, str] | None = None) -> None:
        config = node_config(speakers=[name], cache=self.cache)
        node = Node(self.home / "keys", name, link=self.link.address, config=config, environment=environment)
        node.begin()
        self.nodes[name] = node

    def start(self, *names: str, environment: dict[str, str] | None = None) -> None:
        for name in names:
            self.begin(name, environment)
        for name in names:
            self.nodes[name].wait_until_accepted(_PATIENCE_S)

    def stop(self, *names: str) -> None:
        for name in names:
            self.nodes.pop(name).stop()

    def kill(self, name: str) -> None:
        """`kill -9` for all processes of a node."""
        for daemon in self.nodes[name]._daemons:
            os.killpg(daemon.process.pid, signal.SIGKILL)
        self.stop(name)

    def settings(self, run: str, *changes: str) -> list[str]:
        return [
            *BASE,
            "executor=flower",
            f"executor.superlink={self.link.address}",
            f"executor.root_certificates={self.home / 'keys' / 'ca.crt'}",
            "executor.num_nodes=3",
            f"run_dir={self.home / run}",
            *changes,
        ]

    def train(self, run: str, *changes: str, under: tuple[str, ...] = ()) -> Command:
        """`ser-fl train` on this federation."""
        return Command(self.home / run, self.settings(run, *changes), under)


class Command:
    """`ser-fl train`, in a process of its own; what it prints goes to files."""

    def __init__(self, run: Path, settings: list[str], under: tuple[str, ...] = ()) -> None:
        self.run = RunFolder(run)
        self.files = [run.with_name(f"{run.name}.{name}") for name in ("out", "err")]
        environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
        with self.files[0].open("wb") as output, self.files[1].open("wb") as errors:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "ser_fl", "train", *settings],
                stdout=output,
                stderr=errors,
                env=environment,
            )

    @property
    def output(self) -> str:
        return self.files[0].read_text()

    @property
    def errors(self) -> str:
        return self.files[1].read_text()

    def wait(self) -> int:
        try:
            return self.process.wait(_PATIENCE_S)
        finally:
            self.process.kill()

    def wait_for(self, what: Callable[[], Any], name: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not what():
            ended = self.process.poll()
            assert ended is None, f"{name}: {self.output}{self.errors}"
            assert time.monotonic() < deadline, f"no {name} within {_PATIENCE_S} s"
            time.sleep(0.05)

    def require_success(self) -> RunFolder:
        assert self.wait() == 0, self.output + self.errors
        return self.run


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("deployed"))
    with made.link:
        try:
            made.start(*SPEAKERS)
            yield made
        finally:
            made.stop(*list(made.nodes))


def untimed(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def failures(run: RunFolder) -> list[list[dict[str, Any]]]:
    return [line["failures"] for line in untimed(run.rounds)] if run.rounds.exists() else []


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    assert untimed(one.rounds) == untimed(other.rounds)
    assert untimed(one.clients) == untimed(other.clients)
    assert one.weights.read_bytes() == other.weights.read_bytes()
    assert summary_of(one) == summary_of(other)
    assert one.read_json(one.model) == other.read_json(other.model)


def test_four_ways_to_run_one_experiment_give_the_same_bits(federation: Federation) -> None:
    """Serial, in two processes, simulated on Ray, and at three nodes over TLS."""
    changes = ["federation.num_rounds=3", "objective=pgd", "objective.steps=2", "federation.keep_optimiser=true"]
    local = [*BASE, *changes, f"data.cache_dir={federation.cache}"]
    ways = {
        "serial": ["executor=serial"],
        "processes": ["executor=processes", "executor.workers=2"],
        "simulated": ["executor=flower", "executor.workers=2"],
    }
    serial, processes, simulated = (
        Command(folder, [*local, *way, f"run_dir={folder}"]).require_success()
        for name, way in ways.items()
        for folder in [federation.home / name]
    )
    deployed = federation.train("deployed", *changes).require_success()
    assert len(untimed(serial.rounds)) == 3 and len(untimed(serial.clients)) == 9
    assert failures(serial) == [[], [], []]
    for other in (processes, simulated, deployed):
        assert_same_run(serial, other)


@pytest.mark.kill
def test_a_node_killed_in_a_round_is_left_out_of_it_and_takes_part_again(federation: Federation) -> None:
    """The run is interrupted once it does: how many rounds pass meanwhile is the machine's."""
    changes = ["federation.num_rounds=500", "federation.local_epochs=30", "executor.deadline_s=30"]
    command = federation.train("killed", *changes)
    command.wait_for(lambda: len(failures(command.run)) == 1, "first round")
    federation.kill("m01")
    command.wait_for(lambda: "client m01 failed" in command.output, "failure of the client")
    federation.start("m01")
    command.wait_for(lambda: len(failures(command.run)) > 2 and not failures(command.run)[-1], "round of all")
    command.process.send_signal(signal.SIGINT)
    assert command.wait() == 130
    of_rounds = failures(command.run)
    missed = [number for number, found in enumerate(of_rounds, 1) if any(f["stage"] == "training" for f in found)]
    assert of_rounds[0] == [] and missed[0] == 2 and missed == list(range(2, 2 + len(missed)))
    assert {failure["client_id"] for found in of_rounds for failure in found} == {"m01"}
    assert re.search(r"no answer within 30 s|Node Unavailable|its node is not connected", of_rounds[1][0]["error"])
    lines = untimed(command.run.clients)
    assert {line["round"] for line in lines if line["client_id"] == "m01"}.isdisjoint(missed)
    assert [line["client_id"] for line in lines if line["round"] == 2] == ["f01", "f02"]
    assert [line["client_id"] for line in lines if line["round"] == missed[-1] + 1] == [*SPEAKERS]


def test_a_node_that_sends_nan_is_refused_and_named_in_every_round(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' model is that of a run in which its update never came."""
    for name in ("ser_fl", "configs"):
        shutil.copytree(PACKAGE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "ser_fl" / "federation" / "flower" / "client_app.py"
    line, spoilt = (
        'f"update/{client_id}": outcome.state',
        "{key: t * float('nan') for key, t in outcome.state.items() if t.is_floating_point()}",
    )
    text = source.read_text()
    assert text.count(line) == 1
    source.write_text(text.replace(line, line.replace("outcome.state", f"outcome.state | {spoilt}")))

    federation.stop("m01")
    monkeypatch.chdir(tmp_path)
    federation.start("m01", environment={"PYTHONPATH": str(tmp_path)})
    monkeypatch.undo()
    try:
        run = federation.train("nan", "federation.num_rounds=2").require_success()
    finally:
        federation.stop("m01")
        federation.start("m01")
    for of_round in failures(run):
        (failure,) = of_round
        assert (failure["client_id"], failure["stage"]) == ("m01", "training")
        assert re.fullmatch(r"\S+ is not finite", failure["error"])

    def lost(question: Message, answer: Message) -> Message:
        if question.metadata.message_type == "train" and "m01" in json.dumps(take_json(answer.content)):
            put_json(answer.content, {"error": "lost"})
        return answer

    hosts = {number: {"speakers": name, "cache-dir": str(federation.cache)} for number, name in enumerate(SPEAKERS, 1)}
    config = compose(federation.settings("without", "federation.num_rounds=2"))
    without = serve(config, InProcessGrid(app, hosts, lost), Hooks())
    assert run.weights.read_bytes() == without.weights.read_bytes()
    assert summary_of(run) == summary_of(without)


def test_a_run_whose_clients_all_fail_is_no_success_and_harms_nobody(federation: Federation) -> None:
    command = federation.train("hopeless", "optimiser.learning_rate=1e30")
    assert command.wait() == 1
    client = r"client \S+: \S+ is not finite"
    assert re.fullmatch(rf"ser-fl: round 1 has 0 updates, needs 1: {client}; {client}; {client}\n", command.errors)
    assert "Traceback" not in command.output
    assert not command.run.summary.exists()
    assert failures(federation.train("hopeful").require_success()) == [[], []]


_NOT_TAKEN = r"127\.0\.0\.1:\d+ does not take the run \(.*\): .* executor\.root_certificates its ca\.crt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["executor.root_certificates={home}/others/ca.crt"], _NOT_TAKEN),
        (["executor.superlink=127.0.0.1:{closed}"], _NOT_TAKEN),
        (
            ["executor.num_nodes=9", "executor.wait_s=2"],
            r"executor\.num_nodes asks for 9 nodes, 3 are connected after 2 s",
        ),
    ],
    ids=["another root", "closed port", "too few nodes"],
)
def test_what_the_user_did_wrong_is_told_in_one_line(
    federation: Federation, changes: list[str], message: str, tmp_path: Path
) -> None:
    given = [change.format(home=federation.home, closed=free_port()) for change in changes]
    command = federation.train("mistaken", *given)
    assert command.wait() == 2, command.output + command.errors
    assert re.fullmatch(rf"ser-fl: {message}.*\n", command.errors), command.errors
    assert "Traceback" not in command.output
    assert not command.run.root.exists()


def processes_of(federation: Federation) -> list[int]:
    daemons = [*federation.link._daemons, *(daemon for node in federation.nodes.values() for daemon in node._daemons)]
    groups = {daemon.process.pid for daemon in daemons}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) in groups:
                found.append(int(process.name))
        except ProcessLookupError:
            continue
    return found


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_connection_leaves_the_machine(federation: Federation, tmp_path: Path) -> None:
    """Every connection and every message to an address, of all processes, while a run goes on."""
    traces = [tmp_path / "daemons", tmp_path / "submitter"]
    strace = ("strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o")
    attached = [argument for pid in processes_of(federation) for argument in ("-p", str(pid))]
    watcher = subprocess.Popen([*strace, str(traces[0]), *attached], stderr=subprocess.PIPE, text=True)
    try:
        command = federation.train("traced", "federation.num_rounds=1", under=(*strace, str(traces[1])))
        command.require_success()
    finally:
        watcher.send_signal(signal.SIGINT)
        watcher.wait(_PATIENCE_S)
    address = re.compile(r'(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')
    called = {trace.name: set(address.findall(trace.read_text())) for trace in traces}
    assert all(called.values()), "nothing was traced"
    assert {address for found in called.values() for address in found if not ip_address(address).is_loopback} == set()
