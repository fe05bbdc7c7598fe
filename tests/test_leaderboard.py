"""The leaderboard: entries made of real runs, sorted, and refused where anything is not as they say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ser_fl
from ser_fl.cli.main import main
from ser_fl.cli.terminal import console
from ser_fl.config.compose import compose
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.corpora import CORPORA
from ser_fl.data.splits import split_corpus
from ser_fl.data.utterance import Utterance
from ser_fl.errors import UserError
from ser_fl.leaderboard import examination, submission, suite, table
from ser_fl.leaderboard.entry import FILE, Entry, TestPart, WorstCase, read_entry
from ser_fl.leaderboard.suite import Stage, SuiteAttack
from ser_fl.leaderboard.verification import tolerance
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import WORST_CASE, AttackRecord

TINY = ("experiment=debug", "data.num_speakers=4", "data.utterances_per_emotion=4")
TRAINED = ("federation=centralised", "federation.num_rounds=20")
PGD = SuiteAttack(attack="pgd", steps=2, restarts=1)
SMALL = (
    Stage(
        domain="logmel",
        budgets=(1.0,),
        attacks=(PGD, SuiteAttack(attack="cw_linf", steps=2)),
        num_examples=18,
        adaptive=PGD,
        num_adaptive=8,
        eot_samples=2,
    ),
    Stage(
        domain="waveform", budgets=(10.0,), attacks=(PGD,), num_examples=6, adaptive=PGD, num_adaptive=4, eot_samples=2
    ),
)
"""A suite that takes a second."""


@pytest.fixture(autouse=True)
def small_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "STAGES", SMALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained, and attacked as the small suite asks, without a defence and with one."""
    folder = tmp_path_factory.mktemp("run") / "debug"
    ser_fl.train(compose([*TINY, *TRAINED, "tracking=none", f"run_dir={folder}"]))
    for stage in reversed(SMALL):  # the last one's checks are those on record
        for defence in ("none", "randomisation"):
            checks = "checks_subset=4" if stage.domain == "logmel" else "checks=false"
            assert main(["benchmark", f"run={folder}", *stage.settings(defence), checks]) == 0
    return folder


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its entry; of a module, since it is copied before anything is done to it."""
    folder = tmp_path_factory.mktemp("entries") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "STAGES", SMALL)
        assert main(["leaderboard", "add", str(run), str(folder), "authors=A and B", "remarks=tiny"]) == 0
    return folder


@pytest.fixture
def entry(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "entries" / "tiny"))


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def changed(entry: Path, **said: Any) -> None:
    """What an entry says, sealed again, as by somebody who lies with care."""
    stated = read_entry(entry)
    (entry / FILE).unlink()
    replace(stated, **said).write(entry)


def test_what_is_added_is_listed_and_stands(run: Path, entry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated, records = read_entry(entry), RunFolder(run).read_attacks()
    assert stated.test.clean_uar == pytest.approx(ser_fl.evaluate(run).uar)
    worst = {
        (one.domain, one.epsilon or one.snr_db): one.robust_uar
        for one in records
        if one.attack == (WORST_CASE if one.domain == "logmel" else "pgd") and one.defence == "none"
    }
    assert {(one.domain, one.budget): one.uar for one in stated.worst_cases} == worst
    assert stated.authors == "A and B" and stated.synthetic and stated.test.track == "known_speakers"
    capsys.readouterr()
    assert main(["leaderboard", str(entry)]) == 0
    printed = capsys.readouterr().out
    assert f"{100 * worst['logmel', 1.0]:.1f}" in printed and "SYNTHETIC" in printed


def test_the_same_count_gives_the_same_figures_and_fewer_are_within_the_draw(
    entry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = read_entry(entry)
    capsys.readouterr()
    assert main(["verify", str(entry)]) == 0
    said = capsys.readouterr().out
    for one in stated.worst_cases:
        assert f"{one.uar:.3f} on {one.num_examples} utterances, stated {one.uar:.3f}" in said
    assert f"{entry} is what it says" in said
    assert main(["verify", str(entry), "max_examples=5"]) == 0
    assert "on 5 utterances" in capsys.readouterr().out
    assert tolerance(0.4, 120, 120) == 2 / 120
    deviation = (0.4 * 0.6 * (1 / 30 - 1 / 120)) ** 0.5  # of a mean of 30 of 120, drawn without replacement
    assert tolerance(0.4, 120, 30) == pytest.approx(2 / 30 + 2.58 * deviation, abs=0.005)


def test_a_changed_swapped_missing_or_unlisted_file_is_named(entry: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, card = entry / "model.safetensors", entry / "model.json"
    kept = {file: file.read_bytes() for file in entry.iterdir()}

    def restored() -> None:
        for file, content in kept.items():
            file.write_bytes(content)

    for file in (weights, card, entry / "config.yaml"):
        content = bytearray(kept[file])
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
        for command in (["verify", str(entry)], ["leaderboard", str(entry)]):
            assert str(file) in refusal(command, capsys)
        file.unlink()
        assert file.name in refusal(["verify", str(entry)], capsys)
        restored()
    weights.write_bytes(kept[card])
    card.write_bytes(kept[weights])
    assert "model.json" in refusal(["verify", str(entry)], capsys)
    restored()
    (entry / "model.pkl").write_bytes(b"x")
    assert "model.pkl" in refusal(["verify", str(entry)], capsys)
    (entry / "model.pkl").unlink()
    (entry / FILE).write_text((entry / FILE).read_text().replace('"A and B"', '"C"'))
    assert FILE in refusal(["leaderboard", str(entry)], capsys)
    (entry / FILE).write_text("{")
    assert FILE in refusal(["verify", str(entry)], capsys)
    (entry / FILE).unlink()
    assert "no entry" in refusal(["verify", str(entry)], capsys)


def test_a_figure_that_is_not_scored_again_is_refused_with_both(
    entry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = read_entry(entry)
    first, *others = stated.worst_cases
    changed(entry, worst_cases=(replace(first, uar=first.uar + 0.3), *others))
    line = refusal(["verify", str(entry)], capsys)
    assert f"{first.uar:.3f}" in line and f"{first.uar + 0.3:.3f}" in line and "stronger attack" in line
    clean = stated.test.clean_uar
    changed(entry, worst_cases=stated.worst_cases, test=replace(stated.test, clean_uar=clean - 0.3))
    line = refusal(["verify", str(entry)], capsys)
    assert f"{clean:.3f}" in line and f"{clean - 0.3:.3f}" in line and "stronger" not in line
    changed(entry, test=replace(stated.test, audio="0" * 64))
    assert "audio" in refusal(["verify", str(entry)], capsys)
    changed(entry, test=replace(stated.test, track="strangers"))
    assert "strangers" in refusal(["verify", str(entry)], capsys)
    changed(entry, test=replace(stated.test, parameters=1))
    assert "parameters" in refusal(["verify", str(entry)], capsys)
    changed(entry, test=stated.test, settings=("data=builtin", "split=published"))
    assert "split=published" in refusal(["verify", str(entry)], capsys)
    for more in ("data.channel=mean", "normalisation=speaker enrolment=3"):
        changed(entry, settings=(*stated.settings, *more.split()))
        assert f"{more} of builtin, but its config.yaml has" in refusal(["verify", str(entry)], capsys)
    changed(entry, settings=stated.settings, corpus="nemo")
    assert "of nemo, but its config.yaml has" in refusal(["verify", str(entry)], capsys)
    changed(entry, corpus="builtin")
    changed(entry, settings=stated.settings, worst_cases=stated.worst_cases[:1])
    assert "at 10 dB on 6 utterances at least, got none" in refusal(["verify", str(entry)], capsys)
    changed(entry, worst_cases=(replace(first, num_examples=5), *others))
    assert "on 18 utterances at least, got one of 5" in refusal(["verify", str(entry)], capsys)
    changed(entry, worst_cases=stated.worst_cases, suite=0)
    assert "version 0" in refusal(["verify", str(entry)], capsys)


def test_a_stronger_attack_lowers_the_figure(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Judged by an attack that does next to nothing, it seems to keep what the strong one takes."""
    weak = replace(SMALL[0], attacks=(SuiteAttack(attack="noise_uniform", steps=1),))
    copy = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("attacks*")))
    monkeypatch.setattr(suite, "STAGES", (weak,))
    assert main(["benchmark", f"run={copy}", *weak.settings("none"), "checks_subset=4"]) == 0
    assert main(["leaderboard", "add", str(copy), str(tmp_path / "e" / "weak"), "authors=A", "remarks=weak"]) == 0
    assert main(["verify", str(tmp_path / "e" / "weak")]) == 0
    line = refusal(["verify", str(tmp_path / "e" / "weak"), "attacks=[bim]"], capsys)
    assert "a stronger attack lowers the figure" in line


def test_a_run_that_was_not_attacked_as_the_suite_asks_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = ["leaderboard", "add", str(run), str(tmp_path / "e"), "authors=A", "remarks=tiny"]
    for missing in (
        replace(SMALL[0], attacks=(*SMALL[0].attacks, SuiteAttack(attack="square", steps=10))),
        replace(SMALL[0], attacks=(SuiteAttack(attack="pgd", steps=3, restarts=1),)),
        replace(SMALL[0], num_examples=19),
        replace(SMALL[0], budgets=(0.1,)),
    ):
        monkeypatch.setattr(suite, "STAGES", (missing,))
        line = refusal(add, capsys)
        assert "ser-fl benchmark run=" in line and "an entry needs" in line
    monkeypatch.setattr(suite, "STAGES", SMALL)
    bare = Path(shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("attacks*")))
    assert "never attacked" in refusal(["leaderboard", "add", str(bare), *add[3:]], capsys)
    assert not (tmp_path / "e").exists()


def attacked(attack: str = "pgd", **changes: Any) -> AttackRecord:
    """A record that is as `SMALL` asks, without a defence."""
    values: dict[str, Any] = {
        **{"attack": attack, "library": "l", "knowledge": "undefended", "domain": "logmel", "norm": "inf"},
        **{"epsilon": 1.0, "snr_db": None, "steps": 2, "step_size": 0.1, "restarts": 1, "eot_samples": 0},
        **{"defence": "none", "clean_uar": 0.7, "robust_uar": 0.3, "attack_success_rate": 0.5, "mean_l2": 1.0},
        **{"max_linf": 1.0, "median_snr_db": None, "num_examples": 18, "forward_passes": 1, "backward_passes": 1},
        **{"seconds": 1.0, "seed": 0},
    }
    return AttackRecord(**(values | changes))


def test_every_attack_must_be_there_with_its_effort_its_budget_and_its_knowledge() -> None:
    grey = (attacked(defence="d"), attacked("cw_linf", defence="d", restarts=None))
    aware = attacked(defence="d", knowledge="adaptive", eot_samples=2, num_examples=8)
    stage = SMALL[0]
    assert stage.required([*grey, aware], 1.0, "d", 100) == [*grey, aware]
    few = replace(grey[0], num_examples=5)
    assert stage.required([few, *grey, aware], 1.0, "d", 100)[0] == grey[0], "that of most utterances"
    for less in (
        {"steps": 1},
        {"restarts": 0},
        {"epsilon": 0.5},
        {"num_examples": 17},
        {"defence": "none"},
        {"domain": "waveform"},
        {"knowledge": "adaptive", "eot_samples": 2},
    ):
        with pytest.raises(UserError, match=r"an entry needs pgd of 2 steps, at epsilon 1 on 18"):
            stage.required([replace(grey[0], **less), grey[1], aware], 1.0, "d", 100)
    with pytest.raises(UserError, match="adaptive to d"):
        stage.required([*grey, replace(aware, eot_samples=1)], 1.0, "d", 100)
    ten = [replace(one, num_examples=min(10, one.num_examples)) for one in (*grey, aware)]
    assert stage.required(ten, 1.0, "d", 10) == ten, "all of a smaller test part"
    assert "subsets.adaptive=8" in stage.settings("d") and "subsets.adaptive=12" in stage.settings("d", 12)
    poisoned = attacked("pgd_with_enrolment")
    assert stage.records([attacked(), poisoned], 1.0, "none") == [attacked()]


def test_the_worst_case_is_of_the_suites_attacks_and_of_as_many_utterances(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small benchmark, or one of other attacks, that ran in the same folder counts for nothing."""
    attacks, folder = RunFolder(run).attacks, tmp_path / "e" / "tiny"
    add = ["leaderboard", "add", str(run), str(folder), "authors=A", "remarks=tiny"]
    whole = json.loads(attacks.read_text())
    (true,) = (one for one in whole["records"] if (one["attack"], one["defence"]) == (WORST_CASE, "none"))
    others = [one for one in whole["records"] if one != true]
    try:
        attacks.write_text(
            json.dumps({**whole, "records": [{**true, "num_examples": 5, "robust_uar": 1}, *whole["records"]]})
        )
        assert main(add) == 0
        first = read_entry(folder).worst_cases[0]
        assert (first.num_examples, first.uar) == (18, true["robust_uar"])
        attacks.write_text(json.dumps({**whole, "records": [{**true, "robust_uar": 1}, *others]}))
        assert "without all attacks of the suite" in refusal(add, capsys)
    finally:
        attacks.write_text(json.dumps(whole))


def test_the_test_part_is_known_by_its_sound_and_its_speakers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["split=speaker_independent", "data.num_speakers=8", "data.utterances_per_emotion=1"])
    corpus = open_configured_corpus(config)
    one = corpus.utterances[0]
    wave_T, rate_hz = corpus.read(one)
    wave_T = (wave_T * 2**15).round() / 2**15

    def digest(moved_T: torch.Tensor, utterance: Utterance = one, hz: int = rate_hz) -> str:
        monkeypatch.setattr(type(corpus), "read", lambda self, utterance: (moved_T, hz))
        return examination._audio_digest(corpus, [utterance])

    moved_T = wave_T.clone()
    moved_T[7] += 2**-15
    told = {digest(wave_T), digest(moved_T), digest(wave_T[:-1]), digest(wave_T, hz=rate_hz + 1)}
    told |= {digest(wave_T, replace(one, emotion="other")), digest(wave_T, replace(one, utterance_id="other"))}
    assert len(told) == 6 and digest(wave_T + 0.4 * 2**-15) in told, "a lossless copy is the same"
    monkeypatch.undo()
    split = split_corpus(corpus.utterances, config.split)
    heard = {corpus.utterances[row].speaker for row in (*split.train, *split.validation)}
    assert examination._training_speakers(config, corpus) == heard, "those that select a round were heard too"
    monkeypatch.setattr(examination, "_training_speakers", lambda config, corpus: {one.speaker})
    with pytest.raises(UserError, match="not both"):
        examination.examine(run)
    two = compose(["data=[nemo,ravdess]", "data.roots.nemo=A", "data.roots.ravdess=B", "split=speaker_independent"])
    monkeypatch.setattr(examination, "load_run", lambda folder, root: SimpleNamespace(config=two))
    with pytest.raises(UserError, match="of one corpus, got nemo, ravdess"):
        examination.examine(run)


def test_settings_of_an_entry_say_the_corpus_the_split_and_the_enrolment() -> None:
    own = compose([*TINY, "split=speaker_independent", "split.fold=1", "normalisation=speaker", "enrolment=3"])
    said = compose(examination.settings_of(own))
    assert (said.data, said.split, said.enrolment) == (own.data, own.split, own.enrolment)


def test_a_defence_is_judged_by_who_knows_of_it(run: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, another = made.parent / "randomised", Path(shutil.copytree(made, made.parent / "another"))
    (another / "model.safetensors").write_bytes(b"other weights")
    digests = read_entry(made).digests | {"model.safetensors": sha256(b"other weights").hexdigest()}
    replace(read_entry(made), digests=digests).write(another)
    add = ["leaderboard", "add", str(run), str(folder), "authors=A", "defence=randomisation", "remarks=tiny"]
    attacks = RunFolder(run).attacks
    whole = json.loads(attacks.read_text())
    grey = [one for one in whole["records"] if one["knowledge"] != "adaptive"]
    try:
        attacks.write_text(json.dumps({**whole, "records": grey}))
        assert "adaptive to randomisation" in refusal(add, capsys)
    finally:
        attacks.write_text(json.dumps(whole))
    assert main(add) == 0
    stated = read_entry(folder)
    assert stated.test.forward_passes == 1, "a randomised one draws once for each prediction"
    assert {one.adaptive for one in stated.attacks if one.eot_samples} == {True}
    assert {one.adaptive for one in stated.attacks if not one.eot_samples} == {False}
    assert stated.model == "tiny" and not (folder / "model.safetensors").exists(), "the same weights lie beside it"
    assert {one.num_examples for one in stated.worst_cases} == {8, 4}
    assert main(["verify", str(folder)]) == 0
    shutil.rmtree(folder)
    shutil.rmtree(another)


def test_failed_checks_need_a_remark(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attacks = RunFolder(run).attacks
    whole = json.loads(attacks.read_text())
    doubt = {"check": "more steps break no more", "words": "they do", "severity": "fails"}
    add = ["leaderboard", "add", str(run), str(tmp_path / "e"), "authors=A"]
    try:
        attacks.write_text(json.dumps({**whole, "checks": {**whole["checks"], "doubts": [doubt]}}))
        assert "more steps break no more" in refusal(add, capsys)
        attacks.write_text(json.dumps({name: value for name, value in whole.items() if name != "checks"}))
        assert "checks=false" in refusal(add, capsys)
    finally:
        attacks.write_text(json.dumps(whole))


def test_no_entry_has_objects_of_its_own_or_a_freer_licence_than_its_recordings(
    run: Path, entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add = ["leaderboard", "add", str(run), str(tmp_path / "e"), "authors=A", "remarks=tiny"]
    monkeypatch.setitem(submission.CORPORA, "builtin", CORPORA["nemo"])
    assert "CC BY-NC-SA" in refusal([*add, "licence=MIT"], capsys)
    own = (run / "config.yaml").read_text()
    foreign = own.replace("objects: {}", "objects: {network: mine.Network}")
    try:
        (run / "config.yaml").write_text(foreign)
        assert "objects of its own (network)" in refusal(add, capsys)
    finally:
        (run / "config.yaml").write_text(own)
    digests = {**read_entry(entry).digests, "config.yaml": sha256(foreign.encode()).hexdigest()}
    changed(entry, digests=digests)
    (entry / "config.yaml").write_text(foreign)
    assert "objects of its own (network)" in refusal(["verify", str(entry)], capsys)


def test_other_settings_and_folders_are_told_in_a_line(
    run: Path, entry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (["verify", str(entry), "max_exampels=3"], "did you mean 'max_examples'"),
        (["verify", str(entry), "max_examples=0"], "from 1 up, got 0"),
        (["verify", str(entry), "attacks=[pgdd]"], "did you mean 'pgd'"),
        (["verify", str(tmp_path)], "no entry"),
        (["leaderboard", str(tmp_path)], "no entry"),
        (["leaderboard", "add"], "say which run"),
        (["leaderboard", "add", str(run), "autors=A"], "did you mean 'authors'"),
        (["leaderboard", "add", str(run), "e"], "say whose entry it is: authors=NAME"),
        (["leaderboard", "add", str(tmp_path), "e", "authors=A"], "not a run folder"),
        (["leaderboard", "add", str(run), "e", "authors=A", "defence=smoothing"], "an entry needs"),
    ):
        assert said in refusal(words, capsys), words
    changed(entry, model="../tiny")
    assert "beside it" in refusal(["leaderboard", str(entry)], capsys)


def stated(name: str, track: str, worst: float, clean: float, corpus: str = "nemo", defence: str = "none") -> Entry:
    return Entry(
        name=name,
        authors="A",
        licence="CC0",
        corpus=corpus,
        synthetic=False,
        settings=(),
        trained_by="",
        defence=defence,
        model=None,
        suite=1,
        test=TestPart(
            num_examples=120,
            audio="",
            track="strangers" if track == "strangers" else "known_speakers",
            clean_uar=clean,
            parameters=10,
            forward_passes=1,
        ),
        attacks=(),
        worst_cases=(WorstCase(domain="logmel", budget=0.05, uar=worst, interval=None, num_examples=120),),
        training_seed=1,
        checks="",
        remarks="",
        digests={},
    )


def test_tracks_and_corpora_stand_apart_and_the_best_worst_case_is_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suite, "STAGES", (replace(SMALL[0], budgets=(0.05,)), SMALL[1]))
    entries = [
        stated("b", "known_speakers", 0.3, 0.9),
        stated("a", "strangers", 0.1, 0.5),
        stated("c", "known_speakers", 0.5, 0.6),
        stated("d", "known_speakers", 0.3, 0.95, defence="randomisation"),
        stated("e", "known_speakers", 0.9, 0.95, corpus="ravdess"),
    ]
    louder = WorstCase(domain="waveform", budget=10.0, uar=0.9, interval=None, num_examples=60)
    found = table.tables(sorted(entries, key=table._order))
    names = [[row[0].partition(" ")[0] for row in one.rows] for one in found]
    assert names == [["a"], ["c", "d", "b"], ["e"]]
    assert [one.title.partition(":")[0] for one in found] == ["Strangers", "Known speakers", "Known speakers"]
    assert found[1].rows[1][0] == "d (randomisation, adaptive)"
    assert found[1].rows[0][1:3] == ("50.0", "–") and found[1].rows[0][3] == "60.0"
    tied = [
        replace(entries[0], name=name, worst_cases=(*entries[0].worst_cases, replace(louder, uar=uar)))
        for name, uar in (("z", 0.2), ("y", 0.1), ("x", 0.1))
    ]
    unknown = replace(entries[0], name="w", worst_cases=(louder,), test=replace(entries[0].test, clean_uar=1.0))
    assert [one.name for one in sorted([*tied, unknown], key=table._order)] == ["z", "x", "y", "w"]
    assert tied[0].worst("waveform", 0.05) is None, "a budget is of its domain"


def test_the_table_fits_into_eighty_columns(
    entry: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "width", 80)
    capsys.readouterr()
    assert main(["leaderboard", str(entry), str(entry.parent)]) == 0, "an entry that is named twice is there once"
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80 and printed.count("tiny") == 1
    assert main(["leaderboard", str(entry), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found == {key: value for key, value in json.loads((entry / FILE).read_text()).items() if key != "schema"}


def test_the_page_is_what_the_entries_say_and_all_of_them_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    place = table.default_folder()
    entries = table.read_entries([place])
    assert (place.parent / "index.md").read_text(encoding="utf-8") == table.page(entries)
    assert sum(file.stat().st_size for file in place.rglob("*")) < 4_000_000
    assert all("NC" in one.licence and one.suite == suite.VERSION for one in entries if one.corpus == "nemo")
    for one in entries:
        assert len(one.worst_cases) == 4 and all(worst.num_examples >= 24 for worst in one.worst_cases)
        assert not any(
            f"/{private}/" in " ".join((one.trained_by, *one.settings)) for private in ("work", "tmp", "root")
        )
