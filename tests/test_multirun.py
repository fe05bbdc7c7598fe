"""`ser-fl train -m` for real: in this process, and by Hydra's launchers and sweepers, which need no cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml

from ser_fl.cli.main import TRY_AGAIN, main
from ser_fl.config.compose import compose
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import RoundRecord

SMALL = ("experiment=debug", "data.utterances_per_emotion=2", "federation.batch_size=4")
LOCAL = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs go to a folder of the test's own, in this process and in submitit's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    return tmp_path


def assert_same_results(run: RunFolder, other: RunFolder) -> None:
    assert run.weights.read_bytes() == other.weights.read_bytes()
    mine, theirs = (each.read_jsonl(each.rounds) for each in (run, other))
    assert [{**record, "seconds": 0} for record in mine] == [{**record, "seconds": 0} for record in theirs]


@pytest.mark.slow
def test_three_seeds_one_after_the_other_and_their_report(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each as a run of its own would be; the report that is proposed puts them together."""
    assert main(["train", *SMALL, cache, "-m", "seed=1,2,3"]) == 0
    printed = capsys.readouterr().out
    folders = re.findall(r"^job \d of 3: seed=\d, in (\S+)$", printed, re.MULTILINE)
    assert [Path(folder).name[-4:] for folder in folders] == ["-1-1", "-2-2", "-3-3"]
    assert len({Path(folder).name[:-4] for folder in folders}) == 1, "they are told from one start"
    assert main(["train", *SMALL, cache, "seed=2", "run_dir=alone"]) == 0
    assert_same_results(RunFolder(Path(folders[1])), RunFolder(Path("alone")))

    (proposed,) = re.findall(r"^all together: ser-fl (.*)$", printed, re.MULTILINE)
    assert proposed.split() == ["report", *folders]
    capsys.readouterr()
    assert main([*proposed.split(), "--markdown"]) == 0
    uars = [100 * json.loads((Path(folder) / "summary.json").read_text())["test"]["uar"] for folder in folders]
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "3 seeds" in line and "| UAR |" in line]
    assert f"{sum(uars) / 3:.1f}" in row and ", ".join(f"{uar:.1f}" for uar in uars) in row


def test_a_failed_job_leaves_the_others_alone(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    rates = "optimiser.learning_rate=1e30,0.01"
    assert main(["train", "-m", *SMALL, cache, "optimiser=sgd", rates, "run_dir=study"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("ser-fl: 1 of 2 jobs failed:\nstudy/1-1: round 1 has 0 updates")
    assert not (Path("study") / "1-1" / "summary.json").exists()
    assert (Path("study") / "2-1" / "summary.json").exists()
    assert "all together: ser-fl report study/2-1\n" in captured.out


def test_nothing_starts_before_all_can(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the last job, and a folder that holds a run."""
    assert main(["train", "-m", *SMALL, cache, "objective=clean,free", "objective.replays=2"]) == 2
    assert "objective.replays goes with objective=free" in capsys.readouterr().err
    (Path("study") / "2-2").mkdir(parents=True)
    (Path("study") / "2-2" / "config.yaml").write_text("experiment: debug\n")
    assert main(["train", "-m", *SMALL, cache, "seed=1,2", "run_dir=study"]) == 2
    assert "study/2-2 holds a run already" in capsys.readouterr().err
    assert not Path("runs").exists() and not (Path("study") / "1-1").exists()


@pytest.mark.slow
def test_a_sweep_that_was_stopped_goes_on(
    cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal in the second of three jobs: with resume=true the command does what is left, in the same folders."""
    told = 0
    line = RoundRecord.line

    def signalling(record: RoundRecord, name: str) -> str:
        nonlocal told
        told += 1
        if told == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return line(record, name)

    monkeypatch.setattr(RoundRecord, "line", signalling)
    arguments = ["train", "-m", *SMALL, cache, "seed=1,2,3"]
    assert main(arguments) == TRY_AGAIN
    assert "stopped by SIGUSR1; the same command with resume=true goes on" in capsys.readouterr().err
    before = sorted(path.name for path in Path("runs/debug").iterdir())
    assert [name[-4:] for name in before] == ["-1-1", "-2-2"]
    assert told == 3
    assert main([*arguments, "resume=true"]) == 0
    after = sorted(path.name for path in Path("runs/debug").iterdir())
    assert after[:2] == before and len(after) == 3
    assert told == 6, "two rounds each, none twice"
    groups = {compose(config_file=Path("runs/debug") / name / "config.yaml").tracking.group for name in after}
    assert len(groups) == 1
    capsys.readouterr()
    assert main([*arguments, "resume=true", "executor=serial,processes"]) == 2
    assert "would both go on in runs/debug/" in capsys.readouterr().err


def test_a_single_run_leaves_nothing_of_hydras(cache: str, elsewhere: Path) -> None:
    """And a sweep a hidden folder below ``runs/``; who asks for Hydra's own files gets them."""
    assert main(["train", *SMALL, cache, "run_dir=run"]) == 0
    assert [path.name for path in elsewhere.iterdir()] == ["run"]
    asked = ["hydra.run.dir=hydras", "hydra.output_subdir=.hydra"]
    assert main(["train", *SMALL, cache, "run_dir=other", *asked]) == 0
    assert (elsewhere / "hydras" / ".hydra" / "overrides.yaml").exists()
    assert main(["train", "-m", *SMALL, cache, "run_dir=study"]) == 0
    assert sorted(path.name for path in elsewhere.iterdir()) == ["hydras", "other", "run", "runs", "study"]
    assert [path.name for path in (elsewhere / "runs").iterdir()] == [".multirun"]


@pytest.mark.slow
def test_a_sweep_through_joblib(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Side by side, each as a run of its own would be; one that fails leaves the others alone."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert main(["train", "-m", *SMALL, cache, "seed=1,2", *joblib, "run_dir=study"]) == 0
    assert capsys.readouterr().out.count("test UAR") == 2
    assert main(["train", *SMALL, cache, "seed=2", "run_dir=alone"]) == 0
    assert_same_results(RunFolder(Path("study/2-2")), RunFolder(Path("alone")))
    rates = "optimiser.learning_rate=1e30,0.01"
    assert main(["train", "-m", *SMALL, cache, "optimiser=sgd", rates, *joblib, "run_dir=failing"]) == 1
    assert capsys.readouterr().err.startswith("ser-fl: 1 of 2 jobs failed:\nfailing/1-1: round 1 has 0 updates")
    assert (Path("failing/2-1") / "summary.json").exists()


@pytest.mark.slow
def test_optuna_searches_for_the_best_validation_score(cache: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "hydra.sweep.dir=search"]
    rate = "optimiser.learning_rate=interval(0.001,0.1)"
    assert main(["train", "-m", *SMALL, cache, rate, *search, "run_dir=study"]) == 0
    runs = sorted(Path("study").iterdir())
    assert [run.name for run in runs] == ["001-1", "002-1", "003-1"]
    scores = [json.loads((run / "summary.json").read_text())["selection_score"] for run in runs]
    found = yaml.safe_load((Path("search") / "optimization_results.yaml").read_text())
    assert found["best_value"] == max(scores)
    best = compose(config_file=runs[scores.index(max(scores))] / "config.yaml")
    assert found["best_params"]["optimiser.learning_rate"] == best.optimiser.learning_rate


@pytest.mark.slow
def test_a_sweep_through_submitit_local(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two jobs in processes of their own; one fails, which is told with where to look."""
    assert main(["train", "-m", *SMALL, cache, "seed=1,2", *LOCAL, "run_dir=study"]) == 0
    assert capsys.readouterr().out.count("test UAR") == 2
    assert main(["train", *SMALL, cache, "seed=2", "run_dir=alone"]) == 0
    assert_same_results(RunFolder(Path("study/2-2")), RunFolder(Path("alone")))
    rates = "optimiser.learning_rate=1e30,0.01"
    assert main(["train", "-m", *SMALL, cache, "optimiser=sgd", rates, *LOCAL, "run_dir=failing"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ser-fl: 1 of 2 jobs failed:\nfailing/1-1: round 1 has 0 updates")
    assert (Path("failing/2-1") / "summary.json").exists()


def tasks() -> list[int]:
    """Processes that submitit started for its jobs, found by what they were called with."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
            place = (process / "cwd").resolve()
        except OSError:
            continue
        if "submitit.core._submit" in command and place == Path.cwd():
            found.append(int(process.name))
    return found


@pytest.mark.kill
@pytest.mark.slow
def test_a_job_whose_time_is_up_is_queued_again_and_goes_on(cache: str) -> None:
    """submitit's own signal to the job in its second round: it commits, comes back as another process, and ends with
    the bits of a run that nobody stopped."""
    settings = (*SMALL, cache, "federation.num_rounds=25", "executor.engine=trainer")
    run, signalled = RunFolder(Path("study/1-1")), []

    def send() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not signalled:
            if (run.checkpoint / "latest.json").exists():
                for pid in tasks():
                    os.kill(pid, signal.SIGUSR2)
                    signalled.append(pid)
            time.sleep(0.01)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        code = main(["train", "-m", *settings, *LOCAL, "run_dir=study"])
    finally:
        signalled.append(0)
        sender.join()
    assert code == 0
    assert len(signalled) == 2
    (log,) = Path("runs/.multirun").rglob("*_log.err")
    (printed,) = Path("runs/.multirun").rglob("*_log.out")
    assert log.read_text().count("SIGUSR2: the round is finished if it ends within 22.5 s") == 1
    assert len(re.findall(r"^\S+ INFO .*Starting with|Starting with", printed.read_text() + log.read_text())) == 2
    rounds = [int(number) for number in re.findall(r"round +(\d+)  validation", printed.read_text())]
    assert rounds == list(range(1, 26)), "none is lost, none is done twice"
    assert main(["train", *settings, "run_dir=alone"]) == 0
    assert_same_results(run, RunFolder(Path("alone")))
