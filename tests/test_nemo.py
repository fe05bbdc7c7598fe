"""nEMO as its authors publish it; skipped where the corpus is absent (SERFL_NEMO says where it is)."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import pytest
import soundfile

import ser_fl
from ser_fl.config.compose import compose
from ser_fl.data.corpora import CORPORA, FileCorpus, open_corpus
from ser_fl.data.inspection import check
from ser_fl.data.partitioning import assign_clients
from ser_fl.data.splits import split_corpus
from ser_fl.data.utterance import Utterance

NEMO = Path(os.environ.get("SERFL_NEMO") or Path(__file__).parents[2] / "shared" / "data" / "nemo")

pytestmark = pytest.mark.skipif(not NEMO.is_dir(), reason=f"no nEMO at {NEMO}: set SERFL_NEMO to its folder")


@pytest.fixture(scope="module")
def nemo() -> FileCorpus:
    return open_corpus("nemo", NEMO)


def table() -> list[dict[str, str]]:
    """The rows of data.tsv, read without the reader that is tested."""
    with (NEMO / "data.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_every_row_of_the_table_is_an_utterance(nemo: FileCorpus) -> None:
    rows = table()
    assert len(nemo.utterances) == len(rows) == 2006
    assert {u.speaker for u in nemo.utterances} == {row["speaker_id"].strip() for row in rows}
    assert len({u.speaker for u in nemo.utterances}) == 9
    words = {"surprised": "surprise"}
    counts = Counter((row["speaker_id"].strip(), words.get(row["emotion"], row["emotion"])) for row in rows)
    assert Counter((u.speaker, u.emotion) for u in nemo.utterances) == counts
    assert any(row["speaker_id"] != row["speaker_id"].strip() for row in rows)  # the blanks are why it is worth a test


def test_uneven_speakers(nemo: FileCorpus) -> None:
    emotions = {u.emotion for u in nemo.utterances if u.speaker == "MK0"}
    assert emotions == {"anger", "fear", "happiness", "neutral", "sadness"}
    assert len({u.emotion for u in nemo.utterances}) == 6
    sizes = Counter(u.speaker for u in nemo.utterances)
    assert min(sizes, key=lambda speaker: sizes[speaker]) == "MP0"


def test_audio_is_what_the_files_hold(nemo: FileCorpus) -> None:
    for utterance in nemo.utterances[::401]:
        waveform_T, sample_rate_hz = nemo.read(utterance)
        header = soundfile.info(str(utterance.path))
        assert waveform_T.shape == (header.frames,)
        assert sample_rate_hz == header.samplerate
        assert 0 < float(waveform_T.abs().max()) <= 1


def test_within_speaker_split_holds_its_promises(nemo: FileCorpus) -> None:
    config = compose(["experiment=nemo_fl", f"data.root={NEMO}"])
    split = split_corpus(nemo.utterances, config.split)
    parts = (split.train, split.validation, split.test)
    assert sorted(index for part in parts for index in part) == list(range(2006))
    of_speaker = Counter(u.speaker for u in nemo.utterances)
    tested = Counter(nemo.utterances[index].speaker for index in split.test)
    assert all(abs(tested[speaker] - 0.2 * of_speaker[speaker]) <= 0.5 for speaker in of_speaker)
    clients = assign_clients(nemo.utterances, split.train, config.clients, seed=config.split.seed)
    assert len(clients) == 9
    assert sorted(index for indices in clients.values() for index in indices) == sorted(split.train)
    for client_id, indices in clients.items():
        assert {nemo.utterances[index].speaker for index in indices} == {client_id}


def test_speaker_independent_split_holds_its_promises(nemo: FileCorpus) -> None:
    tested: list[str] = []
    for fold in range(3):
        config = compose(["experiment=nemo_fl", f"data.root={NEMO}", "split=speaker_independent", f"split.fold={fold}"])
        split = split_corpus(nemo.utterances, config.split)
        speakers = [{nemo.utterances[i].speaker for i in part} for part in (split.train, split.validation, split.test)]
        assert [len(part) for part in speakers] == [4, 2, 3]
        assert len(set().union(*speakers)) == 9  # 4 + 2 + 3 = 9: no speaker is in two parts
        assert len(split.train) + len(split.validation) + len(split.test) == 2006
        tested += speakers[2]
    assert len(tested) == len(set(tested)) == 9


@pytest.mark.slow
def test_check_names_what_the_excerpt_lacks(nemo: FileCorpus) -> None:
    """This copy holds 2,006 of the 4,481 published utterances: the check must not call it complete."""
    findings = check(nemo, CORPORA["nemo"])
    assert any("2006 of 4481" in finding.text for finding in findings)
    assert not [finding for finding in findings if finding.kind == "unreadable"]


@pytest.mark.slow
def test_one_federated_round_on_some_of_it(nemo: FileCorpus, tmp_path: Path) -> None:
    """Three speakers, one of whom lacks an emotion, through a manifest that names files by links."""
    (tmp_path / "samples").symlink_to(NEMO / "samples", target_is_directory=True)
    chosen = [
        utterance
        for speaker in ("EB0", "KS0", "MK0")
        for emotion in ("anger", "sadness", "surprise")
        for utterance in _some(nemo.utterances, speaker, emotion)
    ]
    with (tmp_path / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "emotion", "speaker"])
        for utterance in chosen:
            assert utterance.path is not None
            writer.writerow([f"samples/{utterance.path.name}", utterance.emotion, utterance.speaker])
    config = compose(
        [
            "experiment=debug",
            "data=manifest",
            f"data.root={tmp_path}",
            f"data.cache_dir={tmp_path / 'cache'}",
            "federation.num_rounds=1",
            f"run_dir={tmp_path / 'run'}",
        ]
    )
    run = ser_fl.train(config)
    summary = run.read_json(run.summary)
    assert summary["synthetic"] is False
    assert summary["classes"] == ["anger", "sadness", "surprise"]
    assert sum(summary["split_sizes"].values()) == len(chosen) == 64
    assert [line["client_id"] for line in run.read_jsonl(run.clients)] == ["EB0", "KS0", "MK0"]
    (record,) = run.read_jsonl(run.rounds)
    assert record["failures"] == []
    assert record["train_loss"] > 0
    assert set(summary["test"]["per_speaker_uar"]) == {"EB0", "KS0", "MK0"}


def _some(utterances: tuple[Utterance, ...], speaker: str, emotion: str) -> list[Utterance]:
    return [u for u in utterances if (u.speaker, u.emotion) == (speaker, emotion)][:8]
