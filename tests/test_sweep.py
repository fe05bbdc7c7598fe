"""Sweeps: which runs a command line stands for, where they lie, where they go, and what W&B's sweep files ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from ser_fl.cli.launcher import MAX_NUM_TIMEOUT, Cluster, read_cluster, split_settings
from ser_fl.cli.sweep import plan
from ser_fl.config.compose import compose, configs_dir, groups
from ser_fl.config.schema import dump
from ser_fl.errors import UserError

DEBUG = "experiment=debug"


def swept(*settings: str, config_file: Path | None = None) -> list[tuple[str, ...]]:
    return [job.swept for job in plan(settings, config_file=config_file, name="now")]


@pytest.mark.parametrize(
    ("settings", "jobs"),
    [
        ((DEBUG,), [()]),
        ((DEBUG, "seed=1,2"), [("seed=1",), ("seed=2",)]),
        ((DEBUG, "seed=range(1,4)"), [("seed=1",), ("seed=2",), ("seed=3",)]),
        (
            ("objective=clean,pgd", DEBUG, "seed=1,2"),
            [(f"objective={objective}", f"seed={seed}") for objective, seed in product(("clean", "pgd"), (1, 2))],
        ),
        ((DEBUG, "optimiser.momentum=choice(0.1,1e-3)"), [("optimiser.momentum=0.1",), ("optimiser.momentum=0.001",)]),
        ((DEBUG, "clients.num_clients=null,2"), [("clients.num_clients=null",), ("clients.num_clients=2",)]),
        (
            (DEBUG, "split=speaker_independent", "split.test_speakers=[f01],[m01]"),
            [("split.test_speakers=[f01]",), ("split.test_speakers=[m01]",)],
        ),
        # Lists and folders with commas are one value.
        ((DEBUG, "split=speaker_independent", "split.test_speakers=[f01,m01]", "data.root=/a,b"), [()]),
        (("experiment=debug,demo_fl",), [("experiment=debug",), ("experiment=demo_fl",)]),
    ],
)  # fmt: skip
def test_each_combination_is_a_run(settings: tuple[str, ...], jobs: list[tuple[str, ...]]) -> None:
    assert swept(*settings) == jobs


def test_a_job_is_what_a_run_of_its_own_would_be() -> None:
    """But for its folder and its group."""
    (_, job) = plan([DEBUG, "objective=clean,pgd", "seed=7"], config_file=None, name="now")
    alone = dump(compose([DEBUG, "objective=pgd", "seed=7"]))
    mine = dump(job.config)
    assert (mine["run_dir"], alone["run_dir"]) == ("runs/debug/now-2-7", None)
    assert (mine["tracking"].pop("group"), alone["tracking"].pop("group")) == ("debug-now", None)
    assert {**mine, "run_dir": None} == alone


def test_every_run_has_a_folder_of_its_own_and_all_share_a_group(tmp_path: Path) -> None:
    """Also those that have the same seed and start in the same second; numbers have the same width."""
    jobs = plan([DEBUG, "seed=1", "optimiser.learning_rate=range(1,11)"], config_file=None, name="now")
    folders = [str(job.config.run_dir) for job in jobs]
    assert folders == [f"runs/debug/now-{number:02d}-1" for number in range(1, 11)] == sorted(folders)
    assert {job.config.tracking.group for job in jobs} == {"debug-now"}
    jobs = plan([DEBUG, "seed=1,2", f"run_dir={tmp_path / 'a study'}"], config_file=None, name="now")
    assert [job.config.run_dir for job in jobs] == [str(tmp_path / "a study" / name) for name in ("1-1", "2-2")]
    assert {job.config.tracking.group for job in jobs} == {"a study"}
    jobs = plan(["experiment=debug,demo_fl", "tracking.group=mine"], config_file=None, name="now")
    assert [job.config.run_dir for job in jobs] == ["runs/debug/now-1-1", "runs/demo_fl/now-2-1"]
    assert {job.config.tracking.group for job in jobs} == {"mine"}
    (first, _) = plan(["experiment=debug,demo_fl"], config_file=None, name="now")
    assert first.config.tracking.group == "debug+demo_fl-now"


def test_values_of_a_run_s_configuration_are_swept_too(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(dump(compose([DEBUG, "federation.num_rounds=7"]))))
    jobs = plan(["run_dir=null", "seed=4,5"], config_file=file, name="now")
    assert [(job.config.seed, job.config.federation.num_rounds) for job in jobs] == [(4, 7), (5, 7)]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=1,-1", "seed must be"),
        ("objective=clean,pdg", "unknown objective 'pdg', did you mean 'pgd'"),
        ("seed=interval(1,2)", "write seed=A,B or seed=range"),
        ("seed=[1,", "'seed=.*' cannot be read"),
        ("sed=1,2", "unknown setting 'sed', did you mean 'seed'"),
        ("sweep=seeds,robustness", "unknown setting 'sweep'"),
        ("1,2", "is not a setting: write key=value"),
    ],
)
def test_a_mistake_in_any_job_is_found_before_the_first(setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan([DEBUG, setting], config_file=None, name="now")


def test_several_values_without_a_sweep_say_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"seed=1,2 has several values: write \[...\] around a list, or -m for a sweep"):
        compose([DEBUG, "seed=1,2"])


def test_settings_of_the_launcher_are_told_apart() -> None:
    launcher, runs = split_settings(["seed=1", "hydra/launcher=basic", "hydra.launcher.qos=x", "run_dir=hydra"])
    assert launcher == ["hydra/launcher=basic", "hydra.launcher.qos=x"]
    assert runs == ["seed=1", "run_dir=hydra"]


def test_names_and_defaults_are_those_of_hydras_launcher() -> None:
    config = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    from dataclasses import asdict

    for name, theirs in (("slurm", config.SlurmQueueConf), ("local", config.LocalQueueConf)):
        cluster = read_cluster([f"hydra/launcher=submitit_{name}"])
        assert cluster is not None and cluster.name == name
        expected = {**asdict(theirs()), "name": "ser-fl", "submitit_folder": ""}
        del expected["_target_"]
        if name == "slurm":
            expected["max_num_timeout"] = MAX_NUM_TIMEOUT
        assert cluster.parameters == expected
    assert read_cluster([]) is None
    assert read_cluster(["hydra/launcher=basic"]) is None


def test_sbatch_is_asked_for_what_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that submitit would submit; an empty srun stands in for a cluster's."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    slurm = "hydra/launcher=submitit_slurm"
    prefix = "hydra.launcher."
    settings = ["partition=gpu", "timeout_min=90", "gpus_per_node=2", "array_parallelism=3", "mem_gb=16"]
    settings += ["additional_parameters.mail-type=END", "setup=[module load cuda]", "signal_delay_s=200"]
    cluster = read_cluster([slurm, *(prefix + setting for setting in settings)])
    assert cluster is not None and cluster.grace_s == 150
    monkeypatch.setenv("PATH", str(srun.parent))
    executor = cluster.executor(tmp_path / "files")
    text = executor._executor._make_submission_file_text("COMMAND", "uid")
    wanted = ("partition=gpu", "time=90", "gpus-per-node=2", "mem=16GB", "mail-type=END", "signal=USR2@200", "nodes=1")
    assert [flag for flag in wanted if f"#SBATCH --{flag}\n" not in text] == []
    assert "module load cuda\n" in text and "job-name=ser-fl" in text
    assert executor._executor.max_num_timeout == MAX_NUM_TIMEOUT
    assert executor._executor.parameters["array_parallelism"] == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["hydra/launcher=slurm"], "unknown hydra/launcher 'slurm'.*basic, submitit_local, submitit_slurm"),
        (["hydra.launcher.partition=gpu"], "hydra.launcher.partition goes with hydra/launcher=submitit_slurm"),
        (["hydra/launcher=submitit_local", "hydra.launcher.partition=gpu"], "unknown setting .*partition"),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.partitoin=gpu"], "did you mean 'hydra.launcher.partition'"),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=long"], "hydra.launcher.timeout_min cannot be"),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.nodes=2"], "hydra.launcher.nodes must be 1, got 2"),
        (["hydra.sweep.dir=x"], "unknown setting 'hydra.sweep.dir'"),
        (["hydra/sweeper=x"], "unknown setting 'hydra/sweeper'"),
    ],
)  # fmt: skip
def test_a_launcher_that_cannot_be_is_one_line(settings: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_cluster(settings)
    assert "\n" not in str(caught.value)


def test_slurm_that_is_not_here_and_an_extra_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = read_cluster(["hydra/launcher=submitit_slurm"])
    assert isinstance(cluster, Cluster)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs SLURM's srun and sbatch"):
        cluster.executor(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "hydra_plugins.hydra_submitit_launcher.config", None)
    with pytest.raises(UserError, match=r"needs the extra `slurm`: pip install 'ser-fl\[slurm\]'"):
        read_cluster(["hydra/launcher=submitit_slurm"])


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
