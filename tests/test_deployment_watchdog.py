"""What the watchdog of a connection says and does, second by second, by a clock of the test's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from ser_fl.deployment import watchdog
from ser_fl.errors import UserError


class Days:
    """A SuperNode that hears of its link or does not, a link that answers or does not, and what is said."""

    def __init__(self, sign: Path) -> None:
        self.now, self.sign, self.lines = 1000.0, sign, list[str]()
        self.hears, self.link = True, "right"
        self.starts: list[float] = []
        self.dog = watchdog.Watchdog(sign, "link:1", Path("ca.crt"), self.lines.append)

    def answers(self, address: str, ca: Path) -> bool:
        if self.link == "another's":
            raise UserError("the certificate of link:1 is not accepted")
        return self.link == "right"

    def pass_s(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            if self.hears and self.link == "right":
                self.sign.touch()
                os.utime(self.sign, (self.now, self.now))
            if self.dog.is_needed():
                self.starts.append(self.now - 1000)
                self.dog.start_anew()


@pytest.fixture
def days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    clock: list[Callable[[], float]] = [lambda: 1000.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0]())
    made = Days(tmp_path / "sign")
    clock[0] = lambda: made.now
    monkeypatch.setattr(watchdog, "answers", made.answers)
    return made


def test_a_link_that_is_away_or_anothers_is_waited_for_in_one_line_each(days: Days) -> None:
    days.pass_s(30)
    assert days.lines == []
    for link, said in (("away", "link:1 does not answer"), ("another's", "the certificate of link:1 is not accepted")):
        days.link = link
        days.pass_s(600)
        days.link = "right"
        days.pass_s(30)
        assert days.lines == [f"disconnected: {said}: waiting for the link", "connected again to link:1, after 601 s"]
        days.lines.clear()
    assert days.starts == []


def test_a_supernode_that_stays_deaf_is_started_again_ever_more_rarely(days: Days) -> None:
    days.pass_s(10)
    days.hears = False
    days.pass_s(3600)
    pauses = [later - earlier for earlier, later in pairwise(days.starts)]
    assert days.starts[0] - 10 <= 32
    assert all(later >= earlier for earlier, later in pairwise(pauses))
    assert pauses[0] < 50 and 240 <= pauses[-1] < 260 and 14 <= len(days.starts) <= 20
    assert days.lines[0] == "link:1 answers, but the SuperNode has not heard of it for 31 s"
    assert len(days.lines) == len(days.starts)
    days.hears = True
    days.pass_s(60)
    assert days.lines[-1].startswith("connected again to link:1")
    days.hears, before = False, len(days.starts)
    days.pass_s(40)
    assert len(days.starts) == before + 1, "what was in vain is forgotten once it is connected"


def test_a_supernode_that_a_link_has_only_just_come_back_to_gets_time(days: Days) -> None:
    days.pass_s(10)
    days.link, days.hears = "away", False
    days.pass_s(300)
    for link, seconds in (("right", 10), ("away", 10), ("right", 10)):
        days.link = link
        days.pass_s(seconds)
    days.hears = True
    days.pass_s(30)
    assert days.starts == []
