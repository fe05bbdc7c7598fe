"""Who is in a federation, and stays in it, whatever happens between: live, over TLS, with a proxy that can be cut.

A link and two nodes are started once for all tests of this file. The node m01 is behind the proxy.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ser_fl.deployment.flower_environment import flower_environment
from ser_fl.deployment.keys import KeyFolder, make_keys

pytestmark = [pytest.mark.slow, pytest.mark.flower]
_PATIENCE_S = 120.0
PACKAGE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of `scripts/rejoin.py`, with one speaker a node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PACKAGE / "scripts"))
        patch.setenv("PYTHONPATH", str(PACKAGE))
        patch.setenv("OMP_NUM_THREADS", "1")
        from rejoin import Federation, end

        made = Federation(tmp_path_factory.mktemp("connection") / "work")
        make_keys(made.work / "keys", nodes=["f01"])
        for name in ("site0", "f01"):  # whose corpora are small
            policy = "least_utterances: 2\nleast_scored: 1\nmost_views: 99\nstatistics: once\n"
            KeyFolder(made.work / "keys").policy(name).write_text(policy)
        made.start_link()
        try:
            with ThreadPoolExecutor() as at_once:
                f01 = at_once.submit(made.start, "f01", *node_of(made, "f01", made.port))
                made.m01 = made.start_node("--speakers", "m01")
                made.f01 = f01.result()
            yield made
        finally:
            for process in (getattr(made, "f01", None), getattr(made, "m01", None), made.link):
                end(process)


def node_of(federation: Any, name: str, port: int) -> tuple[object, ...]:
    return ("node", federation.work / "keys", name, "--link", f"127.0.0.1:{port}", "--speakers", name)


def wait_for(what: Callable[[], Any], name: str) -> Any:
    deadline = time.monotonic() + _PATIENCE_S
    while not (answer := what()):
        assert time.monotonic() < deadline, f"no {name} within {_PATIENCE_S} s"
        time.sleep(0.1)
    return answer


def call(federation: Any, credential: str | None) -> dict[str, int]:
    """The status of a few of Flower's own calls, from this machine, with what a caller has."""
    import httpx
    from flwr.proto import control_pb2, runtime_pb2
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    from ser_fl.deployment.registration import _Credential

    keys, found = KeyFolder(federation.work / "keys"), {}
    signed: list[Any] = [RuntimeVersionHttpInterceptor(component_name="flwr CLI")]
    signed += [] if credential is None else [_Credential(credential)]
    where = (f"127.0.0.1:{federation.port}", False, keys.ca.read_bytes(), signed)
    with ControlHttpClient.from_server_address(*where) as control, RuntimeHttpClient.from_server_address(*where) as own:
        calls: dict[str, Callable[[], Any]] = {
            "list runs": lambda: control.ListRuns(control_pb2.ListRunsRequest(limit=9)),
            "list nodes": lambda: control.ListNodes(control_pb2.ListNodesRequest()),
            "start a run": lambda: control.StartRun(control_pb2.StartRunRequest()),
            "register": lambda: control.RegisterNode(control_pb2.RegisterNodeRequest(public_key=b"mine", name="me")),
            "take a task": lambda: own.AcquireTask(runtime_pb2.AcquireTaskRequest()),
        }
        for name, ask in calls.items():
            try:
                ask()
                found[name] = 200
            except httpx.HTTPStatusError as error:
                found[name] = error.response.status_code
    return found


def test_a_local_caller_without_the_credential_is_refused(federation: Any) -> None:
    keys = KeyFolder(federation.work / "keys")
    for credential in (None, "guessed"):
        assert set(call(federation, credential).values()) == {401}
    answered = call(federation, keys.credential.read_text().strip())
    assert answered["list runs"] == answered["list nodes"] == 200
    assert answered["start a run"] not in (200, 401), "it has no app"
    assert answered["take a task"] == 401, "that is for the link's own SuperExec"


def test_a_node_is_back_within_seconds_of_its_link(federation: Any) -> None:
    """Another server was on the link's address, long enough that Flower would have given up, and was told so."""
    said = federation.work / "node.log"
    with federation.cut("another's"):
        wait_for(lambda: "disconnected: " in said.read_text(), "sign of the cut")
    accepted_s = federation.seconds_until_accepted()
    assert accepted_s is not None and accepted_s < 10
    wait_for(lambda: "connected again to " in said.read_text(), "sign of the end")
    ready, disconnected, again = said.read_text().splitlines()
    assert ready.startswith("ready: ") and " is not accepted with " in disconnected and again.endswith(" s")


def test_nodes_are_back_within_seconds_of_a_link_that_was_killed(federation: Any) -> None:
    with federation.cut("link killed"):
        time.sleep(1)
    accepted_s = federation.seconds_until_accepted()
    assert accepted_s is not None and accepted_s < 10
    assert federation.m01.poll() is None and federation.f01.poll() is None


def test_a_withdrawn_node_is_out_of_the_run_that_is_on(federation: Any) -> None:
    run = federation.work / "run"
    settings = ("experiment=debug", "data.num_speakers=2", "data.utterances_per_emotion=4", "tracking=none")
    flower = (f"executor.superlink=127.0.0.1:{federation.port}", "executor.num_nodes=2", "executor.deadline_s=60")
    keys = federation.work / "keys"
    command = [sys.executable, "-m", "ser_fl", "train", *settings, "executor=flower", *flower]
    command += [f"executor.root_certificates={keys / 'ca.crt'}", f"run_dir={run}", "federation.num_rounds=500"]
    with (federation.work / "train.log").open("wb") as output:
        training = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: len(rounds(run)) >= 1, "first round")
        KeyFolder(keys).public("site0").unlink()
        wait_for(lambda: "withdrawn: site0" in (federation.work / "link.log").read_text(), "withdrawal")
        at = len(rounds(run))
        assert statuses(federation) == ["online", "unregistered"]
        wait_for(lambda: len(rounds(run)) >= at + 1, "another round")
        assert federation.m01.wait(_PATIENCE_S) == 2
        assert "the link does not know this node's key" in (federation.work / "node.log").read_text()
    finally:
        training.send_signal(signal.SIGINT)
        training.wait(_PATIENCE_S)
    clients = [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]
    taken = {line["round"] for line in clients if line["client_id"] == "m01"}
    assert taken in (set(range(1, at + 1)), set(range(1, at + 2))), "it may have answered in the round that was on"
    assert {line["round"] for line in clients if line["client_id"] == "f01"} == set(range(1, len(rounds(run)) + 1))
    assert all(found["client_id"] == "m01" for line in rounds(run) for found in line["failures"])


def rounds(run: Path) -> list[dict[str, Any]]:
    file = run / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def statuses(federation: Any) -> list[str]:
    home = federation.work / "keys" / "state" / "link" / "flwr"
    command = ["flwr", "supernode", "list", "ser_fl", "--format", "json"]
    done = subprocess.run(command, env=flower_environment(home), capture_output=True, text=True, check=True)
    return sorted(node["status"] for node in json.loads(done.stdout)["nodes"])
