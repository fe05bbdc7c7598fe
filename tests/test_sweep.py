"""Sweeps: which runs a command line stands for, where they lie, where they go, and what W&B's sweep files ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ser_fl.cli.hydra_program import check_launcher, checked, planned
from ser_fl.cli.main import main
from ser_fl.cli.training_job import grace_s
from ser_fl.cli.training_job import placed as placed_run
from ser_fl.config.compose import compose, hydra_ready, told_in_a_line
from ser_fl.config.groups import configs_dir, groups
from ser_fl.config.schema import Config, dump
from ser_fl.errors import UserError

DEBUG = "experiment=debug"


def jobs_of(*settings: str, config_file: Path | None = None) -> list[tuple[str, Config]]:
    with told_in_a_line(), hydra_ready(settings, config_file=config_file, is_sweep=True) as (name, overrides):
        return planned(name, overrides)[0]


def swept(*settings: str) -> list[str]:
    return [varied for varied, _ in jobs_of(*settings)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "jobs"),
    [
        ((DEBUG,), [""]),
        ((DEBUG, "seed=1,2"), ["seed=1", "seed=2"]),
        ((DEBUG, "seed=range(1,4)"), ["seed=1", "seed=2", "seed=3"]),
        (
            ("objective=clean,pgd", DEBUG, "seed=1,2"),
            [f"objective={objective} seed={seed}" for objective, seed in product(("clean", "pgd"), (1, 2))],
        ),
        ((DEBUG, "optimiser.momentum=choice(0.1,1e-3)"), ["optimiser.momentum=0.1", "optimiser.momentum=0.001"]),
        ((DEBUG, "clients.num_clients=null,2"), ["clients.num_clients=null", "clients.num_clients=2"]),
        (
            (DEBUG, "split=speaker_independent", "split.test_speakers=[f01],[m01]"),
            ["split.test_speakers=['f01']", "split.test_speakers=['m01']"],
        ),
        # Lists and folders with commas are one value.
        ((DEBUG, "split=speaker_independent", "split.test_speakers=[f01,m01]", "data.root=/a,b"), [""]),
        (("experiment=debug,demo_fl",), ["experiment=debug", "experiment=demo_fl"]),
        (("experiment=glob(demo_fl*)",), ["experiment=demo_fl", "experiment=demo_fl_pgd"]),
    ],
)  # fmt: skip
def test_each_combination_is_a_run(settings: tuple[str, ...], jobs: list[str]) -> None:
    assert swept(*settings) == jobs


def test_texts_of_a_sweep_are_texts() -> None:
    """Between commas whatever it looks like; ``\\,`` is a comma of its own, and a path has no other."""
    odd = ["007", "1e3", "true", "null x", "a: b", "[x", "${seed}", "it's", "#2", "a\\,b"]
    jobs = jobs_of(DEBUG, f"tracking.project={','.join(odd)}", "run_dir=/a,b/007")
    assert [config.tracking.project for _, config in jobs] == [*odd[:-1], "a,b"]
    assert {config.run_dir for _, config in jobs} == {"/a,b/007"}
    lists = jobs_of(DEBUG, "split=speaker_independent", "split.test_speakers=choice([010,no],[12:30])")
    assert [config.split.test_speakers for _, config in lists] == [("010", "no"), ("12:30",)]


def test_a_job_is_what_a_run_of_its_own_would_be() -> None:
    """But for its folder and its group."""
    jobs = jobs_of(DEBUG, "objective=clean,pgd", "seed=7")
    alone, mine = dump(compose([DEBUG, "objective=pgd", "seed=7"])), dump(checked(jobs, "now")[1])
    assert (mine["run_dir"], alone["run_dir"]) == ("runs/debug/now-2-7", None)
    assert (mine["tracking"].pop("group"), alone["tracking"].pop("group")) == ("debug-now", None)
    assert {**mine, "run_dir": None} == alone


def placed(*settings: str) -> tuple[list[str], set[str | None]]:
    """Folders and groups of a sweep that starts now."""
    configs = checked(jobs_of(*settings), "now")
    return [str(config.run_dir) for config in configs], {config.tracking.group for config in configs}


def test_every_run_has_a_folder_of_its_own_and_all_share_a_group(tmp_path: Path) -> None:
    """Also those that have the same seed and start in the same second; numbers have the same width."""
    folders, groups_of_it = placed(DEBUG, "seed=1", "optimiser.learning_rate=range(1,11)")
    assert folders == [f"runs/debug/now-{number:02d}-1" for number in range(1, 11)] == sorted(folders)
    assert groups_of_it == {"debug-now"}
    folders, groups_of_it = placed(DEBUG, "seed=1,2", f"run_dir={tmp_path / 'a study'}")
    assert folders == [str(tmp_path / "a study" / name) for name in ("1-1", "2-2")]
    assert groups_of_it == {"a study"}
    folders, groups_of_it = placed("experiment=debug,demo_fl", "tracking.group=mine")
    assert folders == ["runs/debug/now-1-1", "runs/demo_fl/now-2-1"]
    assert groups_of_it == {"mine"}
    assert placed("experiment=debug,demo_fl")[1] == {"debug+demo_fl-now"}


def test_values_of_a_run_s_configuration_are_swept_too(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(dump(compose([DEBUG, "federation.num_rounds=7", "run_dir=a${b}"]))))
    jobs = jobs_of("seed=4,5", config_file=file)
    assert [(config.seed, config.federation.num_rounds) for _, config in jobs] == [(4, 7), (5, 7)]
    assert {config.run_dir for _, config in jobs} == {"a${b}"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=1,-1", "seed must be"),
        ("objective=clean,pdg", "unknown objective 'pdg', did you mean 'pgd'"),
        ("seed=interval(1,2)", "write seed=A,B or seed=range"),
        ("seed=[1,", "no viable alternative"),
        ("sed=1,2", "unknown setting 'sed', did you mean 'seed'"),
        ("sweep=seeds,robustness", "unknown setting 'sweep'"),
        ("1,2", "is not a setting: write key=value"),
    ],
)
def test_a_mistake_in_any_job_is_found_before_the_first(setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        jobs_of(DEBUG, setting)


def test_several_values_without_a_sweep_say_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"seed=1,2 has several values: write \[...\] around a list, or -m for a sweep"):
        compose([DEBUG, "seed=1,2"])


def test_a_run_that_a_sweeper_chose_lies_with_the_others() -> None:
    config = compose([DEBUG, "run_dir=study"])
    assert placed_run(config, "now", "007", "g").run_dir == "study/007-1"
    assert placed_run(compose([DEBUG]), "now", "007", "g").run_dir == "runs/debug/now-007-1"


def refused(capsys: pytest.CaptureFixture[str], *settings: str) -> str:
    assert main(["train", "-m", DEBUG, *settings]) == 2
    line = capsys.readouterr().err
    assert line.startswith("ser-fl: ") and line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["hydra/launcher=slurm"], "unknown hydra/launcher 'slurm'"),
        (["hydra.launcher.partition=gpu"], "Key 'partition' not in 'BasicLauncherConf'"),
        (["hydra/launcher=submitit_local", "hydra.launcher.partition=gpu"], "Key 'partition' not in 'LocalQueueConf'"),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=long"], "Value 'long' of type 'str' could not"),
        (["hydra/launcher=submitit_local", "hydra.launcher.nodes=2"], "hydra.launcher.nodes must be 1, got 2"),
        (["hydra/sweeper=x"], "unknown hydra/sweeper 'x'"),
    ],
)
def test_a_launcher_that_cannot_be_is_one_line(
    settings: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, *settings)


def test_slurm_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    hydra = OmegaConf.create({"launcher": {"_target_": "hydra_plugins.x.SlurmLauncher"}})
    with pytest.raises(UserError, match="needs SLURM's srun and sbatch"):
        check_launcher(hydra)


def test_a_plugin_that_is_not_installed_says_which_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules["ser_fl.cli.hydra_program"]._EXTRAS, "dask", "grid")
    line = refused(capsys, "hydra/launcher=dask")
    assert "hydra/launcher/dask needs the extra `grid`: pip install 'ser-fl[grid]'" in line


def test_a_job_of_a_cluster_has_most_of_the_delay_of_its_signal() -> None:
    assert grace_s(OmegaConf.create({"signal_delay_s": 200})) == 150
    assert grace_s(OmegaConf.create({})) == 22.5


SWEEPS = sorted((configs_dir() / "sweep").glob("*.yaml"))


def extremes(parameter: Mapping[str, Any]) -> list[Any]:
    """All values of a list, both ends of a range, the one value."""
    if "values" in parameter:
        return list(parameter["values"])
    return [parameter["value"]] if "value" in parameter else [parameter["min"], parameter["max"]]


def one_at_a_time(choices: list[list[Any]]) -> list[tuple[Any, ...]]:
    """The first of all, and each other one among the first of the rest."""
    first = tuple(choice[0] for choice in choices)
    others = [(*first[:i], value, *first[i + 1 :]) for i, choice in enumerate(choices) for value in choice[1:]]
    return [first, *others]


def commands(file: Path, combine: Callable[[list[list[Any]]], Iterable[tuple[Any, ...]]]) -> Iterator[list[str]]:
    """What W&B's agent would call for combinations of extremes, by its own functions."""
    from wandb.sdk.launch.sweeps import utils

    sweep = utils.load_sweep_config(str(file))
    assert sweep is not None
    names = list(sweep["parameters"])
    for values in combine([extremes(sweep["parameters"][name]) for name in names]):
        arguments = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        replaced = {"env": ["/usr/bin/env"], **utils.create_sweep_command_args({"args": arguments})}
        command: list[str] = []
        for chunk in utils.create_sweep_command(list(sweep["command"])):
            command += replaced[chunk[2:-1]] if chunk.startswith("${") else [chunk]
        yield command


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
@pytest.mark.parametrize(
    "combine",
    [one_at_a_time, pytest.param(lambda choices: product(*choices), marks=pytest.mark.slow)],
    ids=["one at a time", "all"],
)
def test_whatever_an_agent_of_a_sweep_asks_for_is_a_run(
    file: Path, combine: Callable[[list[list[Any]]], Iterable[tuple[Any, ...]]]
) -> None:
    seen = set()
    for command in commands(file, combine):
        assert command[:3] == ["/usr/bin/env", "ser-fl", "train"]
        seen.add(repr(dump(compose([*command[3:], "data.root=somewhere"]))))
    assert len(seen) > 1
    # `selection_score` is what the run's summary has in W&B; and a file of settings is no group of Hydra's.
    assert yaml.safe_load(file.read_text())["metric"] == {"name": "selection_score", "goal": "maximize"}
    assert "sweep" not in groups()


def test_there_are_sweeps() -> None:
    assert [file.stem for file in SWEEPS] == ["robustness", "seeds"]
