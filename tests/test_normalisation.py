"""Each speaker scaled by own clips: at training by those trained on, at test by enrolment."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ser_fl
from ser_fl.attacks.clips import Clips
from ser_fl.attacks.waveform_domain import WaveformToFeatures
from ser_fl.config.compose import compose_transfer
from ser_fl.config.resumable import differing, fixed_settings
from ser_fl.config.schema import Config, dump
from ser_fl.data.audio import write_wav
from ser_fl.data.enrolment import enrolled, scale_of, training_mean
from ser_fl.data.features import load_examples
from ser_fl.data.normalisation import Scale
from ser_fl.data.prepared import Prepared, prepare
from ser_fl.data.splits import Indices, Split
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import EmotionModel
from ser_fl.robustness.recordings import Recordings
from ser_fl.robustness.trained_run import load_run
from ser_fl.robustness.transfer import transfer_runs

SETTINGS = (
    "experiment=debug",
    "tracking=none",
    "data.num_speakers=8",
    "split=speaker_independent",
    "normalisation=speaker",
)


def config(*more: str) -> Config:
    return ser_fl.compose([*SETTINGS, *more])


@pytest.fixture(scope="module")
def pooled() -> Prepared:
    return prepare(config("normalisation=pooled"))


def of_speaker(prepared: Prepared, rows: Indices, speaker: str) -> list[int]:
    return [row for row in rows if prepared.store.utterances[row].speaker == speaker]


def z_scores(prepared: Prepared, rows: list[int], by: list[int]) -> Tensor:
    """Plain z-scores of some utterances by others, in NumPy."""
    clips, others = (prepared.store.features_NFL[own].numpy().astype(np.float64) for own in (rows, by))
    return torch.tensor((clips - others.mean((0, 2))[:, None]) / others.std((0, 2))[:, None])


def test_speakers_are_scaled_by_their_own_clips(pooled: Prepared) -> None:
    """Oracle: z-scores in NumPy. Training speakers by their training clips, validation and test speakers by all of
    theirs; nothing is left out."""
    store, split = enrolled(pooled.store, pooled.split, "all", seed=0)
    assert split == pooled.split
    for rows in pooled.split:
        for speaker in {pooled.store.utterances[row].speaker for row in rows}:
            own = of_speaker(pooled, rows, speaker)
            found = load_examples(store, tuple(own), torch.nn.Identity()).features_NFL  # type: ignore[arg-type]
            torch.testing.assert_close(found.double(), z_scores(pooled, own, own), atol=1e-4, rtol=1e-4)


def test_a_known_speaker_keeps_the_scale_of_training(pooled: Prepared) -> None:
    speaker = pooled.store.utterances[pooled.split.train[0]].speaker
    rows = of_speaker(pooled, pooled.split.train, speaker)
    store, split = enrolled(pooled.store, Split(tuple(rows[:20]), (), tuple(rows[20:])), 10, seed=0)
    assert split.test == tuple(rows[20:]), "nobody enrols whom training knows"
    found = load_examples(store, split.test, torch.nn.Identity()).features_NFL  # type: ignore[arg-type]
    torch.testing.assert_close(found.double(), z_scores(pooled, rows[20:], rows[:20]), atol=1e-4, rtol=1e-4)


def test_enrolment_is_drawn_by_seed_and_clip_and_never_scored(pooled: Prepared) -> None:
    def left_out(count: int, seed: int = 0, parts: Prepared = pooled) -> set[str]:
        store, split = enrolled(parts.store, parts.split, count, seed=seed)
        scored, utterances = {*split.test}, parts.store.utterances
        names = {utterances[row].utterance_id for row in parts.split.test if row not in scored}
        for speaker in {utterances[row].speaker for row in parts.split.test}:
            clips = of_speaker(parts, parts.split.test, speaker)
            by = [row for row in clips if utterances[row].utterance_id in names]
            kept = [row for row in clips if row in scored]
            assert len(by) == count
            found = load_examples(store, tuple(kept), torch.nn.Identity()).features_NFL  # type: ignore[arg-type]
            torch.testing.assert_close(found.double(), z_scores(parts, kept, by), atol=1e-4, rtol=1e-4)
        return names

    assert left_out(1) < left_out(3) < left_out(10)
    assert left_out(3) != left_out(3, seed=1)
    backwards = tuple(reversed(range(len(pooled.store.utterances))))
    place = {row: new for new, row in enumerate(backwards)}
    turned = replace(
        pooled,
        store=replace(
            pooled.store,
            features_NFL=pooled.store.features_NFL[list(backwards)],
            labels_N=pooled.store.labels_N[list(backwards)],
            utterances=tuple(pooled.store.utterances[row] for row in backwards),
        ),
        split=Split(*(tuple(sorted(place[row] for row in rows)) for rows in pooled.split)),
    )
    assert left_out(3) == left_out(3, parts=turned), "the order of the corpus"


def test_what_cannot_enrol_is_told(pooled: Prepared) -> None:
    for count in (35, 500):
        with pytest.raises(UserError, match=f"enrolment={count} must leave a clip .* has 35"):
            enrolled(pooled.store, pooled.split, count, seed=0)
    with pytest.raises(UserError, match="needs a run with normalisation"):
        enrolled(pooled.store, pooled.split, "none", seed=0)
    with pytest.raises(UserError, match="enrolment goes with normalisation=speaker, got 3 with pooled"):
        config("normalisation=pooled", "enrolment=3")
    for wrong in ("0", "-3", "some", "2.5", "true"):
        with pytest.raises(UserError, match="enrolment must be a number of clips from 1 up, all or none"):
            config(f"enrolment={wrong}")
    with pytest.raises(UserError, match="share_mean goes with"):
        config("normalisation=pooled", "normalisation.share_mean=true")


def test_without_clips_a_speaker_has_the_mean_of_training_speakers(pooled: Prepared) -> None:
    """Oracle: the mean of means and of deviations, in NumPy."""
    rows = pooled.split.train
    speakers = sorted({pooled.store.utterances[row].speaker for row in rows})
    clips = [pooled.store.features_NFL[of_speaker(pooled, rows, name)].numpy().astype(np.float64) for name in speakers]
    expected = [np.mean([column((0, 2)) for column in columns], axis=0) for columns in (
        [own.mean for own in clips], [own.std for own in clips]
    )]  # fmt: skip
    mean = training_mean(pooled.store, pooled.split)
    np.testing.assert_allclose(mean.mean.flatten(), expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mean.deviation.flatten(), expected[1], rtol=1e-4, atol=1e-4)
    store, split = enrolled(pooled.store, pooled.split, "none", seed=0, fallback=mean)
    assert split == pooled.split
    found = load_examples(store, split.test[:3], torch.nn.Identity()).features_NFL  # type: ignore[arg-type]
    torch.testing.assert_close(found, mean(pooled.store.features_NFL[list(split.test[:3])]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speaker") / "run"
    ser_fl.train(config("enrolment=3", "normalisation.share_mean=true", f"run_dir={folder}"))
    return folder


def test_a_run_says_how_strangers_are_scaled(run: Path) -> None:
    summary = ser_fl.Run(run).read_json(run / "summary.json")
    words = "3 unseen speakers scaled by 3 unlabelled clips each, which are not scored"
    assert summary["normalisation"] == words and summary["split_sizes"]["test"] == 3 * (35 - 3)
    found = ser_fl.evaluate(run)
    assert found.uar == pytest.approx(summary["test"]["uar"]) and words in found.words()
    for enrolment, scored, said in (("all", 35, "transductive"), ("5", 30, "5 unlabelled"), ("none", 35, "the mean")):
        other = ser_fl.evaluate(run, [f"enrolment={enrolment}"])
        assert other.num_utterances == 3 * scored and said in other.words()[-1]


def test_executors_give_the_same_bits(run: Path, tmp_path: Path) -> None:
    more = ("enrolment=3", "normalisation.share_mean=true", f"run_dir={tmp_path}/run")
    other = ser_fl.train(config(*more, "executor=processes", "executor.workers=2"))
    assert other.weights.read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_loaded_model_asks_for_clips_of_the_speaker(run: Path, tmp_path: Path) -> None:
    """From audio by enrolment is what training's own way gives of the same clips."""
    trained = load_run(run)
    test_set = trained.test_set()
    model = trained.model
    assert model.by_speaker and model.fallback is not None
    model.fallback = None
    waveform_BT = torch.rand(2, model.frontend.num_samples) - 0.5
    with pytest.raises(UserError, match="enrol some first"):
        model.from_waveform(waveform_BT)
    speaker = model.enrolled(waveform_BT)
    raw_BFL = model.frontend(waveform_BT)
    mean, deviation = raw_BFL.mean((0, 2))[:, None], raw_BFL.std((0, 2), correction=0)[:, None]
    expected = model(((raw_BFL - mean) / deviation).clamp(-10, 10))
    torch.testing.assert_close(speaker.from_waveform(waveform_BT), expected, atol=1e-4, rtol=1e-4)
    assert model.scale is None, "the model itself knows nobody"
    assert test_set.scale is not None and len(test_set.scale.mean) == len(test_set)
    with pytest.raises(UserError, match="scales all speakers alike"):
        EmotionModel(
            model.network, model.standardisation, classes=model.classes, model=model.model_config,
            frontend=model.frontend_config,
        ).enrolled(waveform_BT)  # fmt: skip


def test_predict_enrols_the_speaker(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ser_fl.load(run)
    rate, length = model.frontend.sample_rate_hz, model.frontend.num_samples
    noise = torch.Generator().manual_seed(0)
    clips = [0.1 * torch.randn(length, generator=noise) * (1 + place) for place in range(3)]
    for place, clip_T in enumerate(clips):
        write_wav(tmp_path / f"{place}.wav", clip_T.clamp(-1, 1), rate)
    files = [tmp_path / f"{place}.wav" for place in range(3)]
    ser_fl.predict(files, model)
    assert any("nobody is enrolled: all are scaled by the mean" in record.getMessage() for record in caplog.records)
    model.fallback = None
    with pytest.raises(UserError, match="say which, with enrol"):
        ser_fl.predict(files, model)
    found = ser_fl.predict(files[:1], model, enrol=files[1:])
    heard = [torch.from_numpy(np.round(clip.clamp(-1, 1).numpy() * 32767) / 32768).float() for clip in clips]
    logits_1C = model.enrolled(torch.stack(heard[1:])).from_waveform(heard[0][None])
    expected = (logits_1C / model.temperature).softmax(1)[0]
    assert list(found[0].probabilities.values()) == pytest.approx(expected.tolist(), abs=2e-3)
    alone = ser_fl.predict(files[:1], model, enrol=files[:1])
    assert alone[0].probabilities != found[0].probabilities


def test_recordings_are_scaled_by_their_speakers(run: Path) -> None:
    """Features of a recording are those of the feature file, and a gradient reaches the samples: finite differences."""
    trained = load_run(run)
    store = trained.store()
    test_set = trained.test_set().take([0, 40, 80])
    scale = test_set.scale
    assert scale is not None and not torch.equal(scale.mean[0], scale.mean[1])
    by_id = {utterance.utterance_id: utterance for utterance in store.utterances}
    from ser_fl.data.configured_corpus import open_configured_corpus

    corpus = open_configured_corpus(trained.config)
    domain = Recordings(
        frontend=trained.model.frontend,
        standardisation=trained.model.standardisation,
        read=lambda key: corpus.read(by_id[key]),
        scale_of=lambda ids: scale.rows([test_set.ids.index(key) for key in ids]),
    )
    torch.testing.assert_close(domain.clean(test_set.ids), test_set.features_NFL, atol=2e-3, rtol=1e-3)
    waveform_T, rate = domain.read(test_set.ids[1])
    clips = Clips.of([waveform_T], rate, domain.frontend)
    way = WaveformToFeatures(clips, domain.frontend, domain.standardisation, scale.mean[1:2], scale.deviation[1:2])
    torch.testing.assert_close(way(clips.waveform_BT), test_set.features_NFL[1:2], atol=2e-3, rtol=1e-3)
    inputs = clips.waveform_BT.clone().requires_grad_()
    loss = way(inputs).mean()
    (gradient,) = torch.autograd.grad(loss, inputs)
    direction = gradient / gradient.norm()
    step = 1e-3
    difference = (way(inputs + step * direction).mean() - way(inputs - step * direction).mean()) / (2 * step)
    assert float(difference.detach()) == pytest.approx(float(gradient.norm()), rel=0.1)


def test_benchmarks_attack_speakers_as_they_are_scaled(run: Path) -> None:
    records = ser_fl.benchmark(run, attacks=["fgsm"], epsilons=[0.3], curve_attacks=[], checks=False)
    clean = next(record for record in records if record.attack == "clean")
    assert clean.clean_uar == pytest.approx(ser_fl.evaluate(run).uar)


def test_few_clips_of_one_frame_are_helped_out_by_others() -> None:
    """Worked: values 1 and 5 have deviation 2 and others 4: (2 x 4 + 5 x 16) / 7 is the variance."""
    others = Scale(torch.tensor([[0.0]]), torch.tensor([[4.0]]))
    two = torch.tensor([1.0, 5.0])[:, None, None]
    assert float(Scale.enrolled(two, others).deviation) == pytest.approx((88 / 7) ** 0.5)
    assert float(Scale.enrolled(two, others).mean) == 3.0
    assert float(Scale.enrolled(two, None).deviation) == 2.0
    assert float(Scale.enrolled(two.expand(-1, -1, 2), others).deviation) == 2.0, "frames tell more than clips"
    assert float(Scale.enrolled(two[:1], others).deviation) == pytest.approx((80 / 6) ** 0.5, rel=1e-4)
    with pytest.raises(UserError, match="enrolled by 1 clip, and features of one frame"):
        Scale.enrolled(two[:1], None)


def test_scale_of_many_is_each_ones() -> None:
    features = torch.rand(6, 4, 5)
    scale = scale_of(features, (0, 1))
    assert Scale.average([scale, scale]).plain() == scale.plain()


def test_a_run_from_before_there_was_a_choice_goes_on() -> None:
    now = fixed_settings(Config, dump(config()))
    before = {name: value for name, value in now.items() if name not in ("normalisation", "enrolment")}
    assert differing(Config, before, now) == ["normalisation"]
    now["normalisation"]["name"] = "pooled"
    assert differing(Config, before, now) == []


def test_an_example_is_shown_in_plain_log_mel(run: Path) -> None:
    ser_fl.benchmark(run, attacks=["pgd"], steps=2, restarts=1, epsilons=[0.2], curve_attacks=[], checks=False)
    example = json.loads((run / "adversarial" / "example.json").read_text(encoding="utf-8"))
    store = load_run(run).store()
    (row,) = (row for row, each in enumerate(store.utterances) if each.utterance_id == example["utterance_id"])
    torch.testing.assert_close(torch.tensor(example["clean"]), store.features_NFL[row], atol=2e-3, rtol=1e-3)


def test_attacks_carry_over_between_models_that_scale_alike(run: Path, tmp_path: Path) -> None:
    """To itself nothing changes, and steps are told in decibels of raw log-mel; what is scaled otherwise is refused."""
    pooled = tmp_path / "pooled"
    ser_fl.train(config("normalisation=pooled", f"run_dir={pooled}"))
    settings = ["attack=fgsm", "epsilon=0.5"]
    with pytest.raises(UserError, match="differ in normalisation: pooled against speaker"):
        transfer_runs(compose_transfer([str(run), str(pooled), *settings, f"out={tmp_path}"]))
    again = tmp_path / "again"
    ser_fl.train(config("enrolment=3", "normalisation.share_mean=true", "seed=2", f"run_dir={again}"))
    _, matrix = transfer_runs(compose_transfer([str(run), str(again), *settings, f"out={tmp_path}"]))
    own = next(record for record in matrix.records if record.source == record.target)
    assert own.carried_uar == own.clean_uar
    trained = load_run(run)
    scale = trained.test_set().scale
    assert scale is not None
    most = 0.5 * float(scale.deviation.max()) * 20 / math.log(10)
    assert own.max_db == pytest.approx(most, rel=1e-3), "a step of FGSM in the bin that varies most"


def test_fine_tuning_keeps_the_normalisation(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has normalisation='speaker', this run 'pooled'"):
        ser_fl.train(config("normalisation=pooled", f"init_from={run}", f"run_dir={tmp_path / 'run'}"))


def test_nobody_looks_at_the_emotions_of_clips_that_enrol(run: Path, tmp_path: Path) -> None:
    """Four clips of an emotion that the model knows, six of one that it does not: four of the ten enrol."""
    model, noise = ser_fl.load(run), torch.Generator().manual_seed(0)
    emotions = [model.classes[0]] * 4 + ["boredom"] * 6
    for place in range(10):
        write_wav(tmp_path / f"{place}.wav", 0.1 * torch.randn(9600, generator=noise), 16000)
    rows = "".join(f"{place}.wav,{emotion},stranger\n" for place, emotion in enumerate(emotions))
    (tmp_path / "manifest.csv").write_text("path,emotion,speaker\n" + rows)
    speech = ["data=manifest", f"data.root={tmp_path / 'manifest.csv'}", "enrolment=4"]
    found = ser_fl.evaluate(run, speech)
    assert found.num_utterances + sum(found.left_out.values()) == 6 and found.left_out["boredom"] < 6
