"""Copies of training utterances: each change against a measurement of its own, and who draws what."""

import math
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor
from torchaudio.functional import add_noise as torchaudio_add_noise

import ser_fl
from ser_fl.config.data import WaveformConfig
from ser_fl.config.schema import Config
from ser_fl.data import copies as ours
from ser_fl.data.copies import (
    CODECS,
    CopiedCorpus,
    add_noise,
    change_pitch,
    change_speed,
    changed,
    draw_noise,
    impulse_response,
    in_room,
    transmit,
)
from ser_fl.data.features import FeatureStore, compute_features, load_examples
from ser_fl.data.prepared import Host, Prepared, open_partition, prepare
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.data.utterance import Utterance
from ser_fl.errors import UserError
from ser_fl.federation.client import Clients, ClientTask
from ser_fl.models.networks import build_network
from ser_fl.randomness import generator

RATE_HZ = 16000
NOTHING = WaveformConfig(max_speed=0, max_pitch=0, rooms=0, noise=0, max_gain_db=0, transmitted=0)


def config(*more: str) -> Config:
    return ser_fl.compose(["experiment=debug", "tracking=none", "data.utterances_per_emotion=2", *more])


def tone(frequency_hz: float, seconds: float = 2.0) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * frequency_hz * torch.arange(round(seconds * RATE_HZ)) / RATE_HZ)


def speech(number: int = 0) -> Tensor:
    corpus = SyntheticCorpus(2, 2)
    return corpus.read(corpus.utterances[number])[0]


def loudest_hz(waveform_T: Tensor) -> float:
    """Where the spectrum of a Hann window has its peak, zeros appended for a finer grid."""
    size = 1 << 19
    magnitude_Q = np.abs(np.fft.rfft(waveform_T.numpy() * np.hanning(len(waveform_T)), size))
    return float(magnitude_Q.argmax() * RATE_HZ / size)


def power(waveform_T: Tensor) -> float:
    return float(waveform_T.double().square().mean())


@pytest.mark.parametrize("factor", [0.9, 1.13])
def test_faster_speech_is_shorter_and_higher(factor: float) -> None:
    fast = change_speed(tone(300), factor)
    assert loudest_hz(fast) == pytest.approx(300 * factor, rel=1e-3)
    assert len(fast) == pytest.approx(2 * RATE_HZ / factor, abs=1)


@pytest.mark.parametrize("factor", [0.9, 1.13])
def test_higher_pitch_keeps_the_tempo(factor: float) -> None:
    """A tone that comes and goes 5 times a second does so afterwards, as long as before."""
    swell = (1 + torch.cos(2 * math.pi * 5 * torch.arange(2 * RATE_HZ) / RATE_HZ)) / 2
    high = change_pitch(tone(300) * swell, factor, RATE_HZ)
    assert len(high) == 2 * RATE_HZ and loudest_hz(high) == pytest.approx(300 * factor, rel=5e-3)
    envelope = torch.from_numpy(np.abs(signal.hilbert(high.numpy())))
    assert loudest_hz(envelope - envelope.mean()) == pytest.approx(5, abs=0.3)


@pytest.mark.parametrize("snr_db", [0.0, 17.0])
@pytest.mark.parametrize("is_pink", [False, True])
def test_noise_has_the_power_that_was_asked_for(snr_db: float, is_pink: bool) -> None:
    clean = speech()
    noise = draw_noise(len(clean), generator("noise"), is_pink=is_pink)
    noisy = add_noise(clean, noise, snr_db)
    assert 10 * math.log10(power(clean) / power(noisy - clean)) == pytest.approx(snr_db, abs=0.1)
    torch.testing.assert_close(noisy, torchaudio_add_noise(clean, noise, torch.tensor(snr_db)), atol=1e-5, rtol=1e-4)
    assert not add_noise(torch.zeros(100), noise[:100], snr_db).any()


@pytest.mark.parametrize(("is_pink", "slope_db"), [(False, 0.0), (True, -3.01)])
def test_pink_noise_falls_by_3_db_an_octave(is_pink: bool, slope_db: float) -> None:
    """Welch's estimate: power of the octave from 4 kHz against that two octaves below, by hertz."""
    noise = draw_noise(60 * RATE_HZ, generator(1), is_pink=is_pink).numpy()
    frequencies, density = signal.welch(noise, RATE_HZ, nperseg=1024)
    low, high = (density[(frequencies >= edge) & (frequencies < 2 * edge)].mean() for edge in (1000, 4000))
    assert 10 * math.log10(high / low) / 2 == pytest.approx(slope_db, abs=0.2)


@pytest.mark.parametrize("rt60_s", [0.2, 0.5])
def test_a_rooms_energy_decays_by_60_db_in_its_time(rt60_s: float) -> None:
    """Schroeder's backward integral between -5 and -25 dB, averaged over rooms; the tail has 0 to 10 dB less energy
    than the direct sound, which comes first."""
    found, tails = [], []
    for number in range(8):
        response = impulse_response(rt60_s, RATE_HZ, generator(number)).double()
        assert response[0] == 1
        tails.append(float(response[1:].square().sum()))
        left = response[1:].square().flip(0).cumsum(0).flip(0)
        level_db = 10 * torch.log10(left / left[0])
        start, end = (int((level_db < level).int().argmax()) for level in (-5, -25))
        found.append(3 * (end - start) / RATE_HZ)
    assert np.mean(found) == pytest.approx(rt60_s, rel=0.05)
    assert 0.1 <= min(tails) < 0.5 < max(tails) <= 1


def test_a_room_is_a_convolution_as_loud_as_before() -> None:
    clean, response = speech(), impulse_response(0.4, RATE_HZ, generator(0))
    heard = in_room(clean, response)
    expected = signal.fftconvolve(clean.double().numpy(), response.double().numpy())[: len(clean)]
    expected *= math.sqrt(power(clean) / np.mean(expected**2))
    torch.testing.assert_close(heard, torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-4)
    assert not in_room(torch.zeros(100), response).any()


def test_g711_quantises_as_its_law_says() -> None:
    """ITU-T G.711: sign, 3 bits of exponent e, 4 of mantissa m; values (33 + 2 m) 2^e - 33 of 8192, each of what is
    within 2^e of it."""
    exponents, mantissas = torch.arange(128) // 16, torch.arange(128) % 16
    table = ((33 + 2 * mantissas) * 2**exponents - 33) / 8192
    given = torch.linspace(-0.97, 0.97, 20001)
    sent = transmit(given, 8000, "g711")
    misfit, code = (sent.abs()[:, None] - table).abs().min(1)
    assert misfit.max() < 1e-4 and len({*code.tolist()}) == 128, "nothing else is ever heard"
    assert ((sent - given).abs() <= 2 ** exponents[code] / 8192 + 2e-4).all()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rate_hz", [16000, 11025])
def test_what_is_transmitted_is_the_same_speech(codec: ours.Codec, rate_hz: int) -> None:
    """As long, in step with what was sent below the phone's 3.4 kHz, changed, and the same each time; what is too loud
    is not cut off."""
    given = 3 * speech()
    sent = transmit(given, rate_hz, codec)
    assert len(sent) == len(given) and torch.equal(transmit(given, rate_hz, codec), sent)
    band = partial(signal.sosfiltfilt, signal.butter(4, [300, 3000], "bandpass", fs=rate_hz, output="sos"))
    before, after = band(given.double().numpy()), band(sent.double().numpy())
    assert 0.9 < np.corrcoef(before, after)[0, 1] < 0.99999
    assert power(sent) == pytest.approx(power(given), rel=0.2)


def test_a_codec_that_libsndfile_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ours.CODECS, "mp3", ("MP3", None, 12345))
    with pytest.raises(UserError, match=r"^libsndfile [\d.]+ cannot write mp3 .* augmentation\.waveform\.codecs$"):
        transmit(speech(), RATE_HZ, "mp3")


def test_nothing_asked_for_is_nothing_done() -> None:
    assert torch.equal(changed(speech(), RATE_HZ, NOTHING, partial(generator, 0)), speech())


def test_each_change_draws_by_itself() -> None:
    """The gain, in decibels, is uniform within its limits, and the same whatever else is on."""
    only = replace(NOTHING, max_gain_db=6)
    gains = []
    for number in range(300):
        louder = changed(tone(200, 0.1), RATE_HZ, only, partial(generator, number))
        gains.append(10 * math.log10(power(louder) / power(tone(200, 0.1))))
    assert -6 <= min(gains) < -5.5 and 5.5 < max(gains) <= 6 and np.mean(gains) == pytest.approx(0, abs=0.8)
    with_room = changed(tone(200, 0.1), RATE_HZ, replace(only, rooms=1), partial(generator, 7))
    assert 10 * math.log10(power(with_room) / power(tone(200, 0.1))) == pytest.approx(gains[7], abs=1e-3)


@pytest.mark.parametrize("name", ["rooms", "noise", "transmitted"])
def test_a_share_of_copies_is_changed(name: str) -> None:
    given, some = tone(200, 0.1), replace(NOTHING, **{name: 0.3})
    count = sum(not torch.equal(changed(given, RATE_HZ, some, partial(generator, n)), given) for n in range(200))
    assert 35 < count < 85


def features_of_copies(corpus: SyntheticCorpus, settings: Config, cache: Path) -> dict[str, Tensor]:
    copied = CopiedCorpus(corpus, tuple(range(len(corpus.utterances))), settings)
    store = compute_features(copied, settings.frontend, cache_dir=cache)
    return {one.utterance_id: row for one, row in zip(store.utterances, store.features_NFL, strict=True)}


def test_a_copy_depends_on_seed_utterance_and_number_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from a corpus of fewer speakers, in another order, by one core or five, and from the cache."""
    settings, whole = config("augmentation=copies", "augmentation.copies=2"), SyntheticCorpus(2, 2)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    all_of_them = features_of_copies(whole, settings, tmp_path)
    assert len(all_of_them) == 2 * len(whole.utterances)
    some = SyntheticCorpus(2, 2)
    some.utterances = tuple(one for one in reversed(whole.utterances) if one.speaker == "m01")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    found = features_of_copies(some, settings, tmp_path / "elsewhere")
    assert found and all(torch.equal(all_of_them[name], row) for name, row in found.items())
    first, second = (all_of_them[f"m01/anger/01, copy {number}"] for number in (1, 2))
    assert not torch.equal(first, second)
    others = features_of_copies(some, replace(settings, split=replace(settings.split, seed=1)), tmp_path / "elsewhere")
    assert not any(torch.equal(found[name], row) for name, row in others.items())
    monkeypatch.setattr(SyntheticCorpus, "read", None)
    kept = features_of_copies(some, settings, tmp_path / "elsewhere")
    assert all(torch.equal(kept[name], row) for name, row in found.items())


@pytest.fixture(scope="module")
def with_two() -> Prepared:
    return prepare(config("augmentation=copies", "augmentation.copies=2", "normalisation=speaker"))


def test_training_alone_has_copies_and_nothing_is_measured_on_them(with_two: Prepared) -> None:
    without, store = prepare(config("normalisation=speaker")), with_two.store
    assert store.copies is not None and without.store.copies is None
    has_copies = (store.copies.first_N >= 0).nonzero().flatten().tolist()
    assert tuple(has_copies) == with_two.split.train
    assert store.scales is not None and without.store.scales is not None
    assert torch.equal(store.scales.of_speakers.mean, without.store.scales.of_speakers.mean)
    pooled = [prepare(config(*more)).standardisation for more in ((), ("augmentation=copies",))]
    for one, other in zip(*(each.state_dict().values() for each in pooled), strict=True):
        assert torch.equal(one, other)
    tested = [load_examples(each.store, each.split.test, each.standardisation) for each in (with_two, without)]
    assert torch.equal(tested[0].features_NFL, tested[1].features_NFL)
    with pytest.raises(AssertionError, match="without copies"):
        load_examples(store, with_two.split.test * 9, with_two.standardisation, stream=generator(0))


def test_clients_draw_each_version_equally_often(with_two: Prepared) -> None:
    """An utterance or one of its copies, scaled as its speaker is; also where the store came to a worker process."""
    store, row = with_two.store, with_two.split.train[3]
    assert store.copies is not None and store.scales is not None
    first = int(store.copies.first_N[row])
    raw = torch.stack([store.features_NFL[row], *store.copies.store.features_NFL[first : first + 2]])
    versions = with_two.standardisation(store.scales.of(torch.tensor([row] * 3))(raw))
    drawn = load_examples(store, (row,) * 900, with_two.standardisation, stream=generator(0)).features_NFL
    counts = [sum(torch.equal(one, version) for one in drawn) for version in versions]
    assert sum(counts) == 900 and all(250 < count < 350 for count in counts)
    sent: FeatureStore = pickle.loads(pickle.dumps(store))
    again = load_examples(sent, (row,) * 900, with_two.standardisation, stream=generator(0)).features_NFL
    assert torch.equal(again, drawn)
    itself = load_examples(store, (row,), with_two.standardisation).features_NFL
    assert torch.equal(itself[0], versions[0])


def test_a_node_makes_the_copies_of_its_own(with_two: Prepared) -> None:
    settings = config("augmentation=copies", "augmentation.copies=2")
    here = open_partition(settings, Host(speakers=("m01",)), with_two.store.classes).store
    assert here.copies is not None and with_two.store.copies is not None
    row = next(row for row, one in enumerate(here.utterances) if here.copies.first_N[row] >= 0)
    of_all = [one.utterance_id for one in with_two.store.utterances].index(here.utterances[row].utterance_id)
    assert torch.equal(
        here.copies.store.features_NFL[here.copies.first_N[row]],
        with_two.store.copies.store.features_NFL[with_two.store.copies.first_N[of_all]],
    )


def test_clients_train_on_copies(with_two: Prepared) -> None:
    """In one round a client learns from other utterances than without, of as many, and in the next from others yet."""
    settings = config("normalisation=speaker")
    state = build_network(settings.model, len(with_two.store.classes), seed=1).state_dict()
    task = ClientTask(round=1, client_id="m01", state=state, learning_rate=0.01)
    without = replace(with_two, store=replace(with_two.store, copies=None))
    plain, once, again = (Clients(settings, held).update(task) for held in (without, with_two, with_two))
    later = Clients(settings, with_two).update(replace(task, round=2))
    assert plain.num_examples == once.num_examples == later.num_examples
    assert plain.train_loss != once.train_loss == again.train_loss != later.train_loss
    assert once.state.keys() == plain.state.keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["augmentation.waveform.noise=1"], r"augmentation\.copies=0 makes none"),
        (["augmentation=copies", "augmentation.waveform.snr_db=[20,10]"], r"snr_db must be \[LEAST,MOST\], got \[20"),
        (["augmentation=copies", "augmentation.waveform.codecs=[]"], "codecs must name one at least"),
        (["augmentation=copies", "augmentation.waveform.codecs=[amr]"], r"codecs.*amr.*mp3"),
        (["augmentation=copies", "augmentation.waveform.rt60_s=[0,1]"], r"rt60_s\.0 must be"),
    ],
)
def test_settings_that_do_not_fit_are_told_in_a_line(more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config(*more)
    assert "\n" not in str(caught.value)


def test_a_copy_is_no_longer_than_can_be_heard() -> None:
    """Of a minute only what the front end hears is changed, of the same speech as the beginning alone."""

    class Long(SyntheticCorpus):
        def read(self, utterance: Utterance) -> tuple[Tensor, int]:
            waveform_T, rate_hz = super().read(utterance)
            return waveform_T.repeat(20), rate_hz

    settings = config("augmentation=copies")
    copied = CopiedCorpus(Long(2, 2), (0,), settings)
    waveform_T, rate_hz = copied.read(copied.utterances[0])
    assert settings.frontend.num_samples <= len(waveform_T) < 2 * settings.frontend.num_samples
    assert rate_hz == settings.frontend.sample_rate_hz
