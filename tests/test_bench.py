"""`scripts/bench.py`: its arithmetic, the file it writes, and that the loops it measures against do the same work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield


def test_ratio_is_the_median_of_the_ratios_of_each_turn() -> None:
    """Not the ratio of the medians, which would be 3 / 2: 1/1, 3/1, 8/2, 2/2, 9/3 have the median 3."""
    from benchmarks.figures import ratio

    figure = ratio("x", [1, 3, 8, 2, 9], [1, 1, 2, 2, 3], bar=2.9, clients=16)
    assert figure.value == 3
    assert (figure.detail["lowest"], figure.detail["highest"], figure.detail["repeats"]) == (1, 4, 5)
    assert figure.detail["median_s"] == [3, 2] and figure.detail["clients"] == 16
    assert figure.holds is False
    assert ratio("x", [6], [2], bar=3, reach="at least").holds is True
    assert ratio("x", [6], [2]).holds is None


def test_slope_finds_the_exponent_of_a_power_law() -> None:
    from benchmarks.figures import slope

    assert slope([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx((2, 3))


def test_alternately_takes_turns_and_leaves_warm_ups_out() -> None:
    from benchmarks.figures import alternately

    calls: list[str] = []

    def told(name: str, seconds: list[float]) -> Any:
        def measure() -> float:
            calls.append(name)
            return seconds[calls.count(name) - 1]

        return measure

    taken = alternately({"a": told("a", [9.0, 1.0, 2.0]), "b": told("b", [8.0, 3.0, 4.0])}, repeats=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert taken == {"a": [1.0, 2.0], "b": [3.0, 4.0]}


def test_growth_is_an_exponent_with_its_curve() -> None:
    from benchmarks.scaling import growth

    figure = growth("x", {4: [4.0, 100.0, 1.0], 8: [8.0], 16: [32.0]})
    assert figure.value == pytest.approx(1.5) and figure.holds is False
    assert figure.detail["median_s"] == {4: 4.0, 8: 8.0, 16: 32.0}
    assert figure.detail["exponent_of_last_doubling"] == pytest.approx(2)


def test_command_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two suites of a figure each, the second of which misses its bar; the first is in the file by then."""
    import bench
    import benchmarks

    file = tmp_path / "measured" / "figures.json"
    (tmp_path / "suite_a.py").write_text(
        "from benchmarks.figures import Figure\n"
        "def figures():\n"
        "    yield Figure(name='sixteen', value=16.0, bar=20.0, detail={'clients': 4})\n"
    )
    (tmp_path / "suite_b.py").write_text(
        "import json, pathlib\n"
        "from benchmarks.figures import Figure\n"
        "def figures():\n"
        f"    assert len(json.loads(pathlib.Path({str(file)!r}).read_text())) == 1\n"
        "    yield Figure(name='two', value=2.0, bar=3.0, reach='at least')\n"
    )
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    monkeypatch.setattr(bench, "SUITES", ("suite_a", "suite_b"))
    assert bench.main(["suite_a"]) == 0
    assert bench.main(["suite_a", "suite_b", "--json", str(file)]) == 1
    written = json.loads(file.read_text())
    assert [(each["name"], each["value"], each["bar"], each["holds"], each["detail"]) for each in written] == [
        ("sixteen", 16.0, 20.0, True, {"clients": 4}),
        ("two", 2.0, 3.0, False, {}),
    ]
    assert all("torch" in each["on"] for each in written)
    missed = [line for line in capsys.readouterr().out.splitlines() if "missed" in line]
    assert len(missed) == 1 and missed[0].startswith("two")


@pytest.fixture(scope="module")
def small() -> Any:
    """Two clients of 20 clips of 64 x 40 frames."""
    from benchmarks.workload import Shape

    return Shape(num_clients=2, clips=20, num_frames=40, batch_size=8)


def trained(small: Any, written: Any, *settings: str) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Weights of a client after a client-round of ours and of a plain loop, and how far their losses are apart."""
    from benchmarks.rounds import plain_loop
    from benchmarks.workload import drawn, workload

    with drawn(small) as prepared:
        mine = workload(prepared, small, *settings)
        task = mine.tasks[1]
        update = mine.clients.update(task)
        loop = plain_loop(mine, written)
        loop.client_round(mine.tasks[0].state, "c00", 1)  # what an earlier client leaves must not matter
        state, loss = loop.client_round(task.state, task.client_id, task.round)
    assert any(not torch.equal(update.state[name], task.state[name]) for name in task.state)
    return update.state, state, abs(loss - update.train_loss)


@pytest.mark.parametrize("settings", [(), ("precision=bf16-mixed",), "pgd"], ids=["fp32", "bf16", "pgd"])
def test_loop_of_the_same_layout_gives_our_bits(small: Any, settings: Any) -> None:
    """Same batches, dropout, random starts and optimiser: what is faster is not faster for doing less."""
    from benchmarks.workload import PGD5

    ours, theirs, apart = trained(small, "same layout", *(PGD5 if settings == "pgd" else settings))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert apart < 1e-6


def test_contiguous_loop_trains_the_same_network(small: Any) -> None:
    """Up to rounding, without dropout, whose masks follow the memory layout.

    The bias of the attention scores is left out: softmax cancels it, so that its gradient is rounding and nothing
    else, which Adam makes a whole step of.
    """
    ours, theirs, apart = trained(small, "contiguous", "model.dropout=0")
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"attention.bias"}:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=1e-4, msg=name)
    assert apart < 1e-5


def test_contiguous_loop_computes_our_logits(small: Any) -> None:
    from benchmarks.rounds import check_logits
    from benchmarks.workload import drawn, workload

    with drawn(small) as prepared:
        check_logits(workload(prepared, small))


def test_rounds_of_the_workload_average_what_clients_trained(small: Any) -> None:
    """A round is FedAvg of the clients' updates: equally many clips each, so the plain mean."""
    from benchmarks.workload import drawn, workload

    with drawn(small) as prepared:
        mine = workload(prepared, small)
        updates = [mine.clients.update(task).state for task in mine.tasks]
        with mine.rounds() as rounds:
            model = rounds.server.algorithm.model_for("c00")
    for name in model:
        if model[name].is_floating_point():
            mean = torch.stack([state[name].double() for state in updates]).mean(0)
            torch.testing.assert_close(model[name].double(), mean, rtol=0, atol=1e-7)


def test_small_network_is_of_the_promised_size() -> None:
    from benchmarks.workload import SMALL

    from ser_fl.config.compose import compose
    from ser_fl.models.networks import build_network

    network = build_network(compose(SMALL).model, 6, seed=1)
    assert sum(parameter.numel() for parameter in network.parameters()) == 132_743


@pytest.mark.slow
def test_flower_trains_the_same_federation(small: Any, tmp_path: Path) -> None:
    """Two rounds of its simulation give our model, up to the rounding of the contiguous loop."""
    pytest.importorskip("flwr")
    pytest.importorskip("ray")
    from benchmarks import flower_peer
    from benchmarks.workload import drawn, workload

    with drawn(small) as prepared:
        mine = workload(prepared, small, "model.dropout=0")
        flower_peer.save(mine, tmp_path)
        simulated = flower_peer.play(tmp_path, 2)
        with mine.rounds() as rounds:
            rounds.play()
            model = rounds.server.algorithm.model_for("c00")
    assert len(simulated.later_s) == 1 and 0 < simulated.later_s[0] < simulated.first_s
    assert simulated.state.keys() == model.keys()
    for name in model.keys() - {"attention.bias"}:
        torch.testing.assert_close(simulated.state[name].float(), model[name].float(), rtol=0, atol=1e-3, msg=name)
