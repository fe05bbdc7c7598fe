"""Kill the link of a federation, or cut a node off it, wait, and measure how soon the node takes part again by itself.

python scripts/rejoin.py [--trials 40] [--part 0/1] [--seed 1] [--json FILE] [--work FOLDER] [--table]

A trial is a link killed with all its processes and started again after 10 to 180 s, or a TCP proxy between node and
link that for as long ends every connection, lets nothing through, or leads to a server with another's certificates. A
line of JSON a trial goes to the file, and trials that are in it are not made again. With `--part 1/3`, each third trial
from the second on: parts run side by side, each with a link and a node of its own. `--table` prints what is on record.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Literal

from kills.federation import descendants

from ser_fl.deployment.daemon import free_port
from ser_fl.deployment.flwr_patience import ANSWERED
from ser_fl.deployment.keys import KeyFolder, make_keys

Cut = Literal["ended", "silent", "another's"]
Kind = Literal["link killed"] | Cut
KINDS: tuple[Kind, ...] = ("link killed", "ended", "link killed", "silent", "link killed", "another's")
_SHORTEST_S, _LONGEST_S = 10.0, 180.0
_PATIENCE_S = 600.0
"""After which a node is said not to have come back."""
_LOOK_S = 0.1


class Proxy:
    """A TCP proxy on loopback before a link, which can be cut: `state` says how."""

    def __init__(self, link: tuple[str, int], another: tuple[str, int]) -> None:
        self._targets = {"open": link, "another's": another}
        self.state: Literal["open"] | Cut = "open"
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = int(server.sockets[0].getsockname()[1])
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def change(self, state: Literal["open"] | Cut) -> None:
        """Cut, or mend. Connections that were there end, but for those that nothing came through: they go on."""

        def now() -> None:
            if state != "silent" and self.state != "silent":
                for writer in self._writers:
                    writer.transport.abort()
            self.state = state
            (self._flows.clear if state == "silent" else self._flows.set)()

        self._loop.call_soon_threadsafe(now)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flows.wait()
        try:
            target_reader, target = await asyncio.open_connection(*self._targets[self.state])
        except (OSError, KeyError):
            return writer.transport.abort()
        self._writers |= {writer, target}
        await asyncio.gather(self._pump(reader, target), self._pump(target_reader, writer))
        self._writers -= {writer, target}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while content := await reader.read(1 << 16):
                await self._flows.wait()
                writer.write(content)
                await writer.drain()
        writer.close()


def serve_another(keys: KeyFolder) -> tuple[str, int]:
    """Address of a TLS server with another's certificates; it says nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.server, keys.server_key)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0, ssl=context))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    host, port = server.sockets[0].getsockname()[:2]
    return str(host), int(port)


class Federation:
    """A link and a node behind a proxy, as one types them."""

    def __init__(self, work: Path) -> None:
        self.work, self.port = work, free_port()
        shutil.rmtree(work, ignore_errors=True)
        make_keys(work / "keys", nodes=["site0"])
        make_keys(work / "others")
        self.proxy = Proxy(("127.0.0.1", self.port), serve_another(KeyFolder(work / "others")))
        self.sign = work / "node" / "flwr" / ANSWERED
        self.link: subprocess.Popen[bytes] | None = None

    def start_link(self) -> None:
        """Start it and wait until it is ready."""
        self.link = self.start("link", "link", self.work / "keys", "--port", self.port)

    def start_node(self, *settings: str) -> subprocess.Popen[bytes]:
        """Start it and wait until the link has accepted it."""
        called = ("site0", "--link", f"127.0.0.1:{self.proxy.port}", "--state", self.work / "node", *settings)
        return self.start("node", "node", self.work / "keys", *called)

    def start(self, name: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a command, and wait for its first line."""
        output = self.work / f"{name}.log"
        with output.open("wb") as log:
            command = [sys.executable, "-m", "ser_fl", "federation", *map(str, arguments)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + _PATIENCE_S
        while "ready: " not in output.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"not ready: see {output}")
            time.sleep(_LOOK_S)
        return process

    def kill_link(self) -> None:
        """End all processes of the link at once."""
        assert self.link is not None
        for pid in {self.link.pid, *descendants(self.link.pid)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.link.wait()

    @contextmanager
    def cut(self, kind: Kind) -> Iterator[None]:
        """The link is away inside, and there again afterwards."""
        if kind == "link killed":
            self.kill_link()
            yield
            self.start_link()
        else:
            self.proxy.change(kind)
            yield
            self.proxy.change("open")

    def seconds_until_accepted(self) -> float | None:
        """From now until the link has answered the node's own call; None if it does not."""
        began, before = time.monotonic(), self.sign.stat().st_mtime_ns
        while self.sign.stat().st_mtime_ns == before:
            if time.monotonic() - began > _PATIENCE_S:
                return None
            time.sleep(_LOOK_S)
        return time.monotonic() - began


def trial(federation: Federation, number: int, seed: int) -> dict[str, Any]:
    """One, of a kind and a length that follow from its number and the seed."""
    kind = KINDS[number % len(KINDS)]
    cut_s = Random(f"{seed}/{number}").uniform(_SHORTEST_S, _LONGEST_S)
    said = federation.work / "node.log"
    before = len(said.read_text())
    with federation.cut(kind):
        time.sleep(cut_s)
    accepted_s = federation.seconds_until_accepted()
    time.sleep(2 * _LOOK_S)
    lines = said.read_text()[before:].splitlines()
    return {
        "trial": number,
        "kind": kind,
        "cut_s": round(cut_s, 1),
        "accepted_s": None if accepted_s is None else round(accepted_s, 1),
        "starts": sum("is started again" in line for line in lines),
    }


def table(recorded: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown, one a kind of trial."""
    lines = [
        "| what happened | trials | away for | back by itself | seconds until then: median, longest | restarts |",
        "| :--- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in dict.fromkeys(KINDS):
        of_kind = [found for found in recorded if found["kind"] == kind]
        took = sorted(found["accepted_s"] for found in of_kind if found["accepted_s"] is not None)
        if took:
            away = [found["cut_s"] for found in of_kind]
            starts, seconds = sum(found["starts"] for found in of_kind), f"{median(took):.1f}, {took[-1]:.1f}"
            cells = (kind, len(of_kind), f"{min(away):.0f} to {max(away):.0f} s", len(took), seconds, starts)
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the trials that are not on record; 1 where a node did not come back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--part", default="0/1", metavar="K/N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("results", "rejoin", "trials.jsonl"))
    parser.add_argument("--work", type=Path, metavar="FOLDER", default=Path("runs", "rejoin"))
    parser.add_argument("--table", action="store_true", help="print the table of the file, and make no trial")
    chosen = parser.parse_args(arguments)
    part, parts = map(int, chosen.part.split("/"))
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.touch()
    recorded = [json.loads(line) for line in chosen.json.read_text().splitlines()]
    if chosen.table:
        print("\n".join(table(recorded)))
        return 0
    made = {found["trial"] for found in recorded}
    missing = [number for number in range(part, chosen.trials, parts) if number not in made]
    federation, lost = Federation(chosen.work.absolute() / str(part)), 0
    with ExitStack() as ended:
        federation.start_link()
        ended.callback(lambda: end(federation.link))
        ended.callback(end, federation.start_node())
        for number in missing:
            found = trial(federation, number, chosen.seed)
            line = json.dumps(found)
            print(line, flush=True)
            with chosen.json.open("a") as book:  # one write, so that parts can share the file
                book.write(line + "\n")
            lost += found["accepted_s"] is None
    return int(bool(lost))


def end(process: subprocess.Popen[bytes] | None) -> None:
    """Ask a command to stop, and wait until it has."""
    if process is not None and process.poll() is None:
        process.terminate()
        process.wait(_PATIENCE_S)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
