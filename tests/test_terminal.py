"""What commands say, where, and what they leave out."""

import logging
import re
import sys
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

from ser_fl.cli import terminal
from ser_fl.cli.examples import EXAMPLES, epilog
from ser_fl.cli.main import COMMANDS, main
from ser_fl.config.compose import compose, compose_benchmark, compose_transfer
from ser_fl.report.markup import Table, print_table
from ser_fl.runs.folder import RunFolder

SMALL = ["experiment=debug", "data.utterances_per_emotion=3"]


def train(folder: Path, *words: str) -> int:
    return main(["train", *SMALL, f"data.cache_dir={folder / 'cache'}", f"run_dir={folder / 'run'}", *words])


def test_a_training_says_what_it_is_before_its_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if "round   1" in line)
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in lines[:first])
    summary = RunFolder(tmp_path / "run").read_json(tmp_path / "run" / "summary.json")
    sizes = summary["split_sizes"]
    assert facts["corpus"] == f"builtin (SYNTHETIC speech): {sum(sizes.values())} utterances, 2 speakers, 7 emotions"
    assert facts["split"].endswith(f"train {sizes['train']}, validation {sizes['validation']}, test {sizes['test']}")
    assert (facts["clients"], facts["device"]) == ("2, 2 a round", "cpu, precision 32-true")
    assert facts["run folder"] == str(tmp_path / "run")
    assert facts["tracking"].startswith("none")
    from ser_fl.models.emotion_model import load_model

    parameters = sum(one.numel() for one in load_model(tmp_path / "run").network.parameters())
    assert facts["model"] == f"crnn, {parameters:,} parameters"


def test_quiet_prints_the_result_alone_and_the_log_has_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.console, "width", 10_000)  # as where output is piped and no COLUMNS is set
    assert train(tmp_path, "--quiet") == 0
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines()] == [
        ["test", "UAR"],
        ["test", "part"],
        ["run", "folder:"],
    ]
    log = (tmp_path / "run" / "log.txt").read_text()
    for said in ("corpus      builtin", "round   1", "round   2", "test UAR"):
        assert said in log
    assert str(tmp_path) not in log
    assert main(["benchmark", f"run={tmp_path / 'run'}", "attacks=[fgsm]", "curve_attacks=[]", "checks=false"]) == 0
    assert "records: run/attacks.json" in (tmp_path / "run" / "log.txt").read_text()


def test_the_log_says_how_a_training_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "optimiser=sgd", "optimiser.learning_rate=1e30") == 1
    last = (tmp_path / "run" / "log.txt").read_text().splitlines()[-1]
    assert "too large" in last


def test_warnings_go_to_the_log_and_on_to_the_screen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = logging.getLogger("ser_fl.data")
    before = ours.parent.level if ours.parent else None
    with terminal.journal(["/data/with blank"]) as opened:
        ours.warning("before: /data/with blank/a.wav")
        opened(tmp_path)
        ours.warning("after")
    ours.warning("outside")
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.partition(" WARNING ")[2] for line in log] == ["before: with blank/a.wav", "after"]
    assert [record.getMessage() for record in caplog.records][1:] == ["after", "outside"]
    assert ours.parent is not None and ours.parent.level == before and not ours.parent.handlers


def test_a_folder_that_takes_no_log_ends_nothing(tmp_path: Path) -> None:
    with terminal.journal() as opened:
        opened(tmp_path / "none")
        logging.getLogger("ser_fl").warning("said")


def test_every_help_has_examples_that_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert {*EXAMPLES} >= {"", *COMMANDS}
    for command, examples in EXAMPLES.items():
        assert len(examples) == 2
        for example in examples:
            program, name, *words = example.split()
            assert program == "ser-fl" and name == (command or name) and example in epilog(command)
            settings = [word for word in words if "=" in word]
            parser = ArgumentParser(prog=example, exit_on_error=False)
            import_module(f"ser_fl.cli.{name}").add_arguments(parser)
            in_order = name in ("corpus", "federation")
            (parser.parse_args if in_order else parser.parse_intermixed_args)(words)  # ends the test if it refuses
            if command == "benchmark":
                compose_benchmark(settings)
            elif command == "transfer":
                compose_transfer([word for word in words if not word.startswith("-")])
            elif command == "train" and "-m" not in words:
                compose(settings)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    told = capsys.readouterr().out
    assert "  objective=bim | clean" in told and "nemo_fl_pgd" in told
    assert max(map(len, epilog("train").splitlines())) <= 80


@pytest.mark.parametrize("words", [["train", "executor.accelerator=gpu"], ["benchmark", "run=x", "accelerator=gpu"]])
def test_a_gpu_is_no_misspelt_cpu(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "did you mean" not in told and "none is visible" in told
    assert all(name in told for name in ("cpu", "auto", "cuda"))


def test_a_table_of_many_figures_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Two figures of a cell go one below the other, but where there is room."""
    header = ("model", *(f"attack{number}" for number in range(7)))
    table = Table(title="t", header=header, rows=(("federated", *["70.2 / 69.1"] * 7),), caption="")

    def printed(width: int) -> str:
        console = Console(file=sys.stdout, width=width)
        print_table(table, console)
        return capsys.readouterr().out

    assert max(map(len, printed(80).splitlines())) <= 80
    assert printed(80).count("70.2/") == 7 and "70.2/69.1" not in printed(80)
    assert printed(120).count("70.2/69.1") == 7
