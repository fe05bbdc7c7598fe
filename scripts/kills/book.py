"""The kills on record: one JSON file, written whole after each."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kills.moments import NUM_ROUNDS, Kill, median
from kills.subject import EPOCHS, SETTINGS
from ser_fl.files import write_json
from ser_fl.runs.environment import describe_environment


class Book:
    """What was tried, how often, and what was lost."""

    def __init__(self, file: Path, where: str, seed: int) -> None:
        self.file = file
        self.head: dict[str, Any] = {
            "where": where,
            "seed": seed,
            "settings": [*SETTINGS, EPOCHS[where]],
            "rounds": NUM_ROUNDS,
        }
        self.kills: list[dict[str, Any]] = []
        if file.exists():
            content = json.loads(file.read_text(encoding="utf-8"))
            if {key: content[key] for key in self.head} != self.head:
                raise SystemExit(f"{file} is of another seed or other settings: choose another --json")
            self.kills = content["kills"]

    @property
    def made(self) -> set[int]:
        """Numbers of the moments on record."""
        return {kill["number"] for kill in self.kills}

    @property
    def num_spoilt(self) -> int:
        """Kills after which anything was not as it should be."""
        return sum(bool(kill["problems"]) for kill in self.kills)

    @property
    def last_line(self) -> str:
        """What it comes to."""
        return f"{len(self.kills)} kills, {self.num_spoilt} with a loss; median cost {self._cost:.1f} s"

    def add(self, kill: Kill) -> None:
        """Write a kill down."""
        self.kills.append(asdict(kill) | {"problems": kill.problems})
        self.kills.sort(key=lambda entry: entry["number"])
        environment = describe_environment(seed=self.head["seed"], threads=1)
        write_json(self.file, {**self.head, "environment": environment, "result": self._result, "kills": self.kills})

    @property
    def _cost(self) -> float:
        return median([kill["cost_s"] for kill in self.kills])

    @property
    def _result(self) -> dict[str, Any]:
        return {
            "kills": len(self.kills),
            "lost": sum(bool(kill["lost"]) for kill in self.kills),
            "with_problems": self.num_spoilt,
            "median_cost_s": round(self._cost, 1),
        }
