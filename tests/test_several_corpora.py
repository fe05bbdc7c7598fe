"""Several corpora in one federation: each keeps its speakers, its split and its emotions."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torch.nn import functional

import ser_fl
from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose
from ser_fl.config.data import SplitConfig
from ser_fl.config.schema import Config, parse
from ser_fl.cross_validation import crossval
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.features import Examples, load_examples
from ser_fl.data.joint import JointCorpus, split_each
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.data.splits import split_corpus
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.data.utterance import Utterance
from ser_fl.errors import UserError
from ser_fl.evaluation import evaluate
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.federation.own_objects import OwnObjects
from ser_fl.metrics import Bootstrap
from ser_fl.models.networks import build_network
from ser_fl.models.own_classes import OwnClasses
from ser_fl.report.page import write_report
from ser_fl.robustness.evaluator import confidences_of, predictions_of
from ser_fl.training.objectives import ClientRound

MINE = {"angry": "anger", "happy": "happiness", "sad": "sadness"}
ACTED = ("neutral", "calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise")
"""RAVDESS's eight."""


def sound(pitch_hz: float, stream: np.random.Generator) -> Any:
    time = np.arange(6000) / 16_000
    return 0.3 * np.sin(2 * np.pi * pitch_hz * time) + 0.02 * stream.standard_normal(len(time))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A manifest of three emotions and files named as RAVDESS's, six speakers each, some of one name."""
    folder, stream = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    (folder / "mine").mkdir()
    lines = ["path,emotion,speaker,text"]
    for actor in range(1, 7):
        place = folder / "ravdess" / f"Actor_{actor:02d}"
        place.mkdir(parents=True)
        for number in range(1, 9):
            for take in (1, 2):
                name = f"03-01-{number:02d}-01-01-{take:02d}-{actor:02d}.wav"
                soundfile.write(place / name, sound(200 + 90 * number + 9 * actor + 4 * take, stream), 16_000)
        for place_of, emotion in enumerate(MINE):
            for take in range(4):
                name = f"{actor}{emotion}{take}.wav"
                soundfile.write(
                    folder / "mine" / name, sound(330 + 170 * place_of + 13 * actor + 5 * take, stream), 16_000
                )
                lines.append(f"{name},{emotion},{actor:02d},t{take}")
    (folder / "mine" / "mine.csv").write_text("\n".join(lines))
    return [
        f"data.roots.manifest={folder / 'mine' / 'mine.csv'}",
        f"data.roots.ravdess={folder / 'ravdess'}",
        f"data.cache_dir={folder / 'cache'}",
    ]


LABELS = tuple(f"data.labels.{code}={word}" for code, word in MINE.items())
SMALL = (
    *("model=crnn_tiny", "frontend.num_mels=40", "frontend.duration_s=0.5", "tracking=none", "precision=32-true"),
    *("split=speaker_independent", "split.num_test_speakers=2", "federation.num_rounds=3", "federation.batch_size=8"),
)


def both(folders: list[str], *more: str, names: str = "[manifest,ravdess]") -> Config:
    return compose([f"data={names}", *folders, *LABELS, *SMALL, *more])


def alone(folders: list[str], name: str, *more: str) -> Config:
    root = next(line.partition("=")[2] for line in folders if line.startswith(f"data.roots.{name}="))
    labels = LABELS if name == "manifest" else ()
    return compose([f"data={name}", f"data.root={root}", folders[-1], *labels, *SMALL, *more])


class OneLayer(nn.Module):
    """Linear in the mean of each bin over time: what it does in training it does in tests."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.final = nn.Linear(40, num_classes)

    def forward(self, features_BFL: Tensor) -> Tensor:
        logits_BC: Tensor = self.final(features_BFL.mean(dim=2))
        return logits_BC


def update(config: Config, prepared: Prepared, client: str, state: dict[str, Tensor], rate: float = 0.1) -> Any:
    clients = Clients(config, prepared, OwnObjects(network=OneLayer))
    return clients.update(ClientTask(round=2, client_id=client, state=state, learning_rate=rate))


WHOLE = ("augmentation=none", "optimiser=sgd", "optimiser.momentum=0", "federation.batch_size=500")
"""A step is a gradient of all of a client's utterances."""


# What is written


def test_corpora_are_listed_in_any_order_and_each_has_a_root() -> None:
    roots = ["data.roots.nemo=/a", "data.roots.ravdess=/b"]
    first, second = compose(["data=[nemo,ravdess]", *roots]), compose(["data=[ravdess, nemo]", *roots])
    assert first == second
    assert first.data.folders == {"nemo": "/a", "ravdess": "/b"}
    assert compose(["data=nemo+ravdess", "data.roots={nemo: /a, ravdess: /b}"]) == first
    assert compose(["data=[nemo]", "data.root=/a"]) == compose(["data=nemo", "data.root=/a"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["data=[nemo,nemo]", "data.roots.nemo=/a"], "nemo twice"),
        (["data=[nemo,ravdes]"], "did you mean 'ravdess'"),
        (["data=[nemo,ravdess]", "data.roots.nemo=/a"], r"needs data.roots.ravdess=DIR"),
        (["data=[nemo,ravdess]", "data.root=/a"], "data.roots.NAME"),
        (["data=[builtin,nemo]", "data.roots.nemo=/a", "data.roots.tess=/b"], r"data.roots.tess is .* no corpus"),
        (["data=[builtin,nemo]", "data.roots.nemo=/a", "data.roots.builtin=/b"], "data.roots.builtin"),
        (["data=nemo", "data.root=/a", "data.roots.nemo=/a"], "give data.root"),
        (["data=[builtin,nemo]", "data.roots.nemo=/a", "data.labels.a=b"], "data.labels is of a manifest"),
        (["data=[builtin,nemo]", "data.roots.nemo=/a", "executor=flower"], "executor=flower goes with one corpus"),
        (["data=[builtin,nemo]", "data.roots.nemo=/a", "clients.num_clients=2"], "clients.num_clients=2 goes with one"),
    ],
)
def test_mistakes_are_told_in_a_line(wrong: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told) as found:
        compose(wrong)
    assert "\n" not in str(found.value)


def test_a_name_with_a_plus_is_one_name_unless_all_of_it_are_words() -> None:
    assert compose(["data=manifest", "data.root=a", "data.name=1e+3"]).data.corpora == ("1e+3",)


def test_corpora_without_a_common_emotion_are_refused_and_foreign_words_are_told(
    folders: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    without = ["data=[manifest,ravdess]", *folders, *SMALL]
    with pytest.raises(UserError, match=r"manifest shares no emotion with the other corpora.*angry, happy, sad"):
        open_configured_corpus(compose(without))
    open_configured_corpus(compose([*without, "data.labels.angry=anger"]))
    assert "manifest: happy, sad are no words of the common vocabulary" in caplog.text


@pytest.mark.parametrize("mixing", ["clients=iid", "clients=dirichlet", "federation=centralised"])
def test_clients_that_would_mix_corpora_of_other_emotions_are_refused(folders: list[str], mixing: str) -> None:
    with pytest.raises(UserError, match=r"emotions of one corpus, and those of .*take federation=federated"):
        prepare(both(folders, mixing))


# Splits, clients and scales


def table(corpus: str, speakers: int, emotions: tuple[str, ...], takes: int) -> list[Utterance]:
    return [
        Utterance(
            utterance_id=f"{speaker}/{emotion}/{take}",
            emotion=emotion,
            speaker=f"s{speaker}",
            sex="female" if speaker % 2 else "male",
            text=f"{take}",
            split=("train", "validation", "test")[take % 3],
            corpus=corpus,
        )
        for speaker in range(speakers)
        for emotion in emotions
        for take in range(takes)
    ]


SPLIT = compose(["split=within_speaker"]).split


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["within_speaker", "speaker_independent", "text_independent", "published"]),
    speakers=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    takes=st.tuples(st.integers(5, 7), st.integers(5, 7)),
    fold=st.integers(0, 1),
    seed=st.integers(0, 5),
)
def test_every_corpus_is_split_as_it_is_alone(
    kind: Any, speakers: tuple[int, int], takes: tuple[int, int], fold: int, seed: int
) -> None:
    folds: Any = {"fold": fold, "num_folds": 2} if kind.endswith("independent") else {}
    config = replace(SPLIT, name=kind, seed=seed, **folds)
    corpora = {
        "emo": table("emo", speakers[0], ("anger", "fear"), takes[0]),
        "emo2": table("emo2", speakers[1], ("anger", "joy", "sadness"), takes[1]),
    }
    together = sorted((each.among_others() for own in corpora.values() for each in own), key=lambda u: u.utterance_id)
    assert len({each.speaker for each in together}) == sum(speakers), "no two speakers are one"
    split = split_each(together, config)
    for name, own in corpora.items():
        expected = split_corpus(own, config)
        for part, of_alone in zip(split, expected, strict=True):
            found = [together[row].alone().utterance_id for row in part if together[row].corpus == name]
            assert sorted(found) == sorted(own[row].utterance_id for row in of_alone)


def test_test_speakers_are_named_with_their_corpus() -> None:
    together = [each.among_others() for name in ("a", "b") for each in table(name, 4, ("anger", "fear"), 2)]

    def named(*speakers: str) -> SplitConfig:
        return compose(["split=speaker_independent", f"split.test_speakers=[{','.join(speakers)}]"]).split

    split = split_each(together, named("a:s0", "b:s1", "b:s2"))
    assert {together[row].speaker for row in split.test} == {"a:s0", "b:s1", "b:s2"}
    with pytest.raises(UserError, match=r"must say whose each is.*'s1'"):
        split_each(together, named("a:s0", "b:s1", "s1"))
    with pytest.raises(UserError, match="some of every corpus, got none of b"):
        split_each(together, named("a:s0"))
    with pytest.raises(UserError, match="b: unknown speaker 's9'"):
        split_each(together, named("a:s0", "b:s9"))


def test_clients_keep_their_corpus_and_each_corpus_is_scaled_by_its_own_sums(folders: list[str]) -> None:
    prepared = prepare(both(folders))
    utterances = prepared.store.utterances
    for client, rows in prepared.clients.items():
        assert {utterances[row].speaker for row in rows} == {client}
        assert {utterances[row].corpus for row in rows} == {client.partition(":")[0]}
    names = {client.partition(":")[0] for client in prepared.clients}
    assert names == {"manifest", "ravdess"}
    for name in names:
        rows = tuple(row for row in prepared.split.train if utterances[row].corpus == name)
        features_NFL = load_examples(prepared.store, rows, prepared.standardisation).features_NFL.double()
        assert features_NFL.mean(dim=(0, 2)).abs().max() < 0.05, "up to what the box cuts off"
        raw_NFL = prepared.store.features_NFL[list(rows)].double()
        expected = (raw_NFL - raw_NFL.mean(dim=(0, 2))[:, None]) / raw_NFL.std(dim=(0, 2), correction=0)[:, None]
        torch.testing.assert_close(features_NFL, expected.clamp(-10, 10), rtol=1e-3, atol=1e-3)


# Masks


def test_a_clients_loss_is_the_cross_entropy_over_the_classes_of_its_corpus() -> None:
    """Worked: of the logits (1, 5, 3) the first and the last are asked for, log(1 + e^-2) = 0.126928."""
    network = nn.Linear(1, 3)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.copy_(torch.tensor([1.0, 5.0, 3.0]))
    asked = OwnClasses(network, (0, 2))
    config = compose(["augmentation=none"])
    at_hand = ClientRound(
        number=1,
        network=asked,
        examples=Examples(torch.zeros(1, 1), torch.tensor([1])),
        stream=torch.Generator(),
        augmentation=config.augmentation,
        box=Box.unbounded(),
    )
    loss = at_hand.cross_entropy(asked(torch.ones(1, 1)), torch.tensor([1]))
    assert loss.item() == pytest.approx(0.126928, abs=1e-6)
    loss.backward()
    assert network.bias.grad is not None
    assert network.bias.grad.tolist() == pytest.approx([0.119203, 0, -0.119203], abs=1e-6)
    assert network.bias.grad[1] == 0, "exactly"


@pytest.mark.parametrize("balance", ["none", "loss"])
def test_the_loss_that_a_client_tells_is_that_of_scikit_learn_over_its_classes(
    folders: list[str], balance: str
) -> None:
    config = both(folders, *WHOLE, f"class_balance={balance}", "normalisation=speaker", "enrolment=2")
    prepared = prepare(config)
    classes, own = prepared.store.classes, [ACTED_SORTED.index(word) for word in sorted(MINE.values())]
    assert classes == ACTED_SORTED
    state = OneLayer(8).state_dict()
    client = next(name for name in prepared.clients if name.startswith("manifest:"))
    examples = load_examples(prepared.store, prepared.clients[client], prepared.standardisation)
    network = OneLayer(8)
    network.load_state_dict(state)
    shares_NK = network(examples.features_NFL)[:, own].double().softmax(dim=1).detach()
    expected = log_loss([own.index(label) for label in examples.labels_N.tolist()], shares_NK, labels=[0, 1, 2])
    assert update(config, prepared, client, state).train_loss == pytest.approx(expected, rel=1e-4)


ACTED_SORTED = tuple(sorted(ACTED))


@pytest.mark.parametrize(
    "objective",
    [["clean"], ["pgd", "objective.recipe=per_step"], ["fgsm", "objective.recipe=per_round"], ["trades"], ["free"]],
    ids=lambda given: given[0],
)
def test_no_objective_moves_what_a_corpus_cannot_teach(folders: list[str], objective: list[str]) -> None:
    """Label smoothing neither: rows of the emotions that the corpus lacks come back to the last bit."""
    smoothed = ("augmentation=light", "optimiser=sgd", "augmentation.label_smoothing=0.2", "optimiser.weight_decay=0")
    config = both(folders, f"objective={objective[0]}", *objective[1:], *smoothed)
    prepared, state = prepare(config), OneLayer(8).state_dict()
    own = [ACTED_SORTED.index(word) for word in MINE.values()]
    others = [row for row in range(8) if row not in own]
    client = next(name for name in prepared.clients if name.startswith("manifest:"))
    trained = update(config, prepared, client, state).state
    for name in ("final.weight", "final.bias"):
        assert torch.equal(trained[name][others], state[name][others])
        assert not torch.equal(trained[name][own], state[name][own])
    other = next(name for name in prepared.clients if name.startswith("ravdess:"))
    trained = update(config, prepared, other, state).state
    assert (trained["final.bias"] != state["final.bias"]).all(), "RAVDESS has all eight"


def test_a_client_trains_as_in_a_federation_of_its_corpus_alone(folders: list[str]) -> None:
    more = (*WHOLE, "normalisation=speaker", "enrolment=2", "federation.local_epochs=3")
    config, own = both(folders, *more), alone(folders, "manifest", *more)
    together, single = prepare(config), prepare(own)
    rows = [ACTED_SORTED.index(emotion) for emotion in single.store.classes]
    state = OneLayer(8).state_dict()
    for client in single.clients:
        ours = update(config, together, f"manifest:{client}", state)
        theirs = update(own, single, client, {name: tensor[rows] for name, tensor in state.items()})
        assert (ours.num_examples, ours.train_loss) == (theirs.num_examples, pytest.approx(theirs.train_loss, rel=1e-5))
        for name, tensor in theirs.state.items():
            torch.testing.assert_close(ours.state[name][rows], tensor, rtol=1e-5, atol=1e-6)


class AlwaysCalm(nn.Module):
    """Sure of calm, which the manifest lacks; of the manifest's three of sadness."""

    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(
            torch.tensor([float({"calm": 3, "sadness": 2}.get(word, 0)) for word in ACTED_SORTED])
        )

    def forward(self, features_BFL: Tensor) -> Tensor:
        return self.order + 0 * features_BFL.mean(dim=(1, 2))[:, None]


def test_predictions_and_confidences_are_among_the_emotions_of_the_corpus(folders: list[str]) -> None:
    prepared = prepare(both(folders))
    store = pickle.loads(pickle.dumps(prepared.store))  # as a worker process has it
    parts = [tuple(range(5)), tuple(range(5, len(store.utterances)))]
    predicted = predictions_of(AlwaysCalm(), store, prepared.standardisation, parts)
    said = {(each.corpus, store.classes[k]) for each, k in zip(store.utterances, predicted, strict=True)}
    assert said == {("manifest", "sadness"), ("ravdess", "calm")}
    held = {each.corpus: (row,) for row, each in enumerate(store.utterances) if each.emotion == "anger"}
    sums = confidences_of(AlwaysCalm(), store, prepared.standardisation, held, 1.0)
    logits = {"manifest": torch.tensor([0.0, 0.0, 2.0]), "ravdess": AlwaysCalm().order.detach()}
    for name, logits_K in logits.items():
        expected = functional.cross_entropy(logits_K, torch.tensor(0))  # anger is the first of both
        assert sums[name][0][0] == pytest.approx(float(expected), rel=1e-6)


def test_the_selection_attack_knows_what_predictions_are_among(folders: list[str]) -> None:
    config = both(folders, "selection.robust_every=1", "selection.epsilon=0.5")
    prepared = prepare(config)
    network = build_network(config.model, 8, seed=1)
    models = {"": dict(network.state_dict())}
    clean, attacked = (Clients(config, prepared).score(models, "validation", attacked=it) for it in (False, True))
    for scored in (clean, attacked):
        for holder, confusion in scored.by_holder.items():
            own = sorted(MINE.values()) if holder.startswith("manifest:") else ACTED_SORTED
            lacking = [k for k, word in enumerate(ACTED_SORTED) if word not in own]
            assert confusion[:, lacking].sum() == 0
    assert np.trace(attacked.total) < np.trace(clean.total) or np.trace(clean.total) == 0


# Figures


@pytest.fixture(scope="module", params=["pooled", "speaker"])
def run(request: pytest.FixtureRequest, folders: list[str], tmp_path_factory: pytest.TempPathFactory) -> ser_fl.Run:
    folder = tmp_path_factory.mktemp("run") / "run"
    more = ["normalisation=speaker", "enrolment=2"] if request.param == "speaker" else []
    return ser_fl.train(both(folders, f"run_dir={folder}", "optimiser.learning_rate=0.01", *more))


def test_figures_of_each_corpus_are_those_of_the_corpus_alone(run: ser_fl.Run) -> None:
    summary = run.read_json(run.summary)
    together = evaluate(run)
    assert together.uar == pytest.approx(summary["test"]["uar"])
    assert together.uar == pytest.approx(np.mean([own["uar"] for own in summary["corpora"].values()]))
    assert [*summary["corpora"]] == ["manifest", "ravdess"] == [*together.corpora]
    for name, own in summary["corpora"].items():
        found = evaluate(run, [f"data={name}"])
        assert found.part == "test"
        assert found.shared is not None
        assert (found.shared.speakers, found.shared.recordings) == (0, 0)
        assert f"predictions are among the emotions of {name}" in found.words() or name == "ravdess"
        assert [*found.recall] == own["classes"]
        assert found.confusion == own["confusion"]
        assert (found.uar, found.accuracy) == (own["uar"], own["accuracy"])
        assert together.corpora[name].confusion == found.confusion
        assert together.corpora[name].uar_interval == found.uar_interval
        low, high = own["speaker_interval"]
        assert 0 <= low <= own["uar"] <= high <= 1
    assert len({one.predicted for one in together.utterances}) > 1, "else nothing was compared"


def test_of_training_utterances_all_speakers_and_texts_are_shared(run: ser_fl.Run) -> None:
    found = evaluate(run, ["data=manifest"], part="train", allow_seen=True).shared
    assert found is not None
    assert found.speakers == found.num_speakers > 0
    assert (found.texts, found.num_texts) == (4, 4)
    assert found.recordings == found.num_utterances
    with pytest.raises(UserError, match="were heard in training"):
        evaluate(run, ["data=manifest"], part="train")


def test_a_run_names_no_folder_and_is_read_again(run: ser_fl.Run, folders: list[str]) -> None:
    written = yaml.safe_load(run.config.read_text())
    assert written["data"]["name"] == "manifest+ravdess"
    assert all(value.startswith("place:") for value in written["data"]["roots"].values())
    again = compose(config_file=run.config).data.folders
    assert again == compose(["data=[manifest,ravdess]", *folders]).data.folders
    assert parse(ser_fl.config.schema.dump(both(folders))) == both(folders)


def test_corpora_are_attacked_one_by_one_and_reported(run: ser_fl.Run) -> None:
    attack: Any = {"attacks": ["fgsm"], "epsilons": [0.2], "curve_attacks": [], "checks": False, "defences": ["none"]}
    with pytest.raises(UserError, match="emotions of manifest, ravdess differ: attack one by one, data=manifest"):
        ser_fl.benchmark(run, **attack)
    records = ser_fl.benchmark(run, speech=["data=manifest"], **attack)
    alone = evaluate(run, ["data=manifest"])
    assert records[0].clean_uar == pytest.approx(alone.uar)
    assert all(len(record.confusion) == 3 for record in records)
    assert min(record.robust_uar for record in records) <= alone.uar
    page = write_report([run.root]).read_text()
    summary = json.loads(run.summary.read_text())
    assert "UAR of ravdess" in page
    assert f"{100 * summary['corpora']['ravdess']['uar']:.1f}" in page


def test_recordings_get_an_emotion_from_a_model_of_several_corpora(run: ser_fl.Run, folders: list[str]) -> None:
    file = Path(folders[0].partition("=")[2]).with_name("1angry0.wav")
    (found,) = ser_fl.predict([file], run, enrol=[file] if run.load().by_speaker else ())
    assert [*found.probabilities] == list(ACTED_SORTED)
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_all_folds_test_every_speaker_of_every_corpus_once(folders: list[str], tmp_path: Path) -> None:
    config = both(folders, f"run_dir={tmp_path}", "split.num_folds=3", "federation.num_rounds=1")
    with pytest.raises(UserError, match="attacked one by one"):
        crossval(config, benchmark=["attacks=[fgsm]"])
    found = crossval(config)
    assert len(found.speaker_uar) == 12
    assert found.uar == pytest.approx(np.mean([own["uar"] for own in found.corpora.values()]))
    total = np.sum([own["confusion"] for own in found.corpora.values() if len(own["classes"]) == 3], axis=0)
    assert total.sum(axis=1).tolist() == [24, 24, 24], "every utterance of the manifest, by emotion"
    uneven = replace(config, split=replace(config.split, num_folds=None, num_test_speakers=2))
    assert len(crossval(replace(uneven, resume=False, run_dir=str(tmp_path / "even"))).folds) == 3


def test_corpora_with_other_numbers_of_folds_are_told() -> None:
    from ser_fl.data.joint import num_folds_of_each

    together = [
        each.among_others() for name, n in (("a", 4), ("b", 6)) for each in table(name, n, ("anger", "fear"), 1)
    ]
    with pytest.raises(UserError, match=r"a has 2, b has 3: set split.num_folds"):
        num_folds_of_each(together, compose(["split=speaker_independent", "split.num_test_speakers=2"]).split)


def test_the_interval_of_a_mean_over_corpora_is_narrower_by_its_share() -> None:
    """Of a corpus that is all right nothing varies: the mean varies half as much as the other."""
    labels, recordings = [0, 1] * 40, [str(row) for row in range(80)]
    right_N = np.array([float(row % 5 > 0) for row in range(80)])
    low, high = Bootstrap.of(labels, recordings, 0).interval(right_N) or (0, 0)
    corpora = ["a"] * 80 + ["b"] * 20
    together = Bootstrap.over([*labels, *[0, 1] * 10], [*recordings, *(f"b{row}" for row in range(20))], corpora, 0)
    mean_low, mean_high = together.interval(np.concatenate([right_N, np.ones(20)])) or (0, 0)
    assert (mean_low, mean_high) == (pytest.approx((low + 1) / 2, abs=0.02), pytest.approx((high + 1) / 2, abs=0.02))


def test_audio_of_members_is_theirs() -> None:
    one, other = SyntheticCorpus(2, 1), SyntheticCorpus(2, 1, seed=3)
    other.name = "other"
    other.utterances = tuple(replace(each, corpus="other") for each in other.utterances)
    joint = JointCorpus([other, one])
    assert (joint.name, joint.synthetic, len(joint.utterances)) == ("builtin+other", True, 28)
    for member, row in ((one, 0), (other, 14)):
        ours, theirs = joint.utterances[row], member.utterances[0]
        assert ours.utterance_id == f"{member.name}:{theirs.utterance_id}"
        assert torch.equal(joint.read(ours)[0], member.read(theirs)[0])
        assert joint.content_digest(ours) == member.content_digest(theirs)
