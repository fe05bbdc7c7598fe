"""The benchmark in the waveform domain: what its records say, what a WAV file keeps, and where files go.

Legend: N utterances, T samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from attacking import benchmark_attacks
from test_attacks_waveform import LINES, MeanAbove, Plain, unstandardised, wave
from torch import Tensor, nn

from ser_fl.attacks.attack import Attack, AttackSettings
from ser_fl.attacks.threat_model import Box
from ser_fl.cli.main import main
from ser_fl.config.compose import compose, compose_benchmark
from ser_fl.config.schema import CONFIG_SCHEMA, dump
from ser_fl.data.audio import read_audio
from ser_fl.data.frontend import LogMel
from ser_fl.data.prepared import prepare
from ser_fl.defences import Defence, NoDefence, Randomisation
from ser_fl.errors import UserError
from ser_fl.models.emotion_model import EmotionModel, save_model
from ser_fl.models.networks import build_network
from ser_fl.robustness import recordings
from ser_fl.robustness.attack_metrics import median_over_successes
from ser_fl.robustness.benchmark import benchmark_run
from ser_fl.robustness.plan import Request
from ser_fl.robustness.recordings import Recordings, WavPairs, pesq_of, stoi_of
from ser_fl.robustness.result_cache import ResultCache
from ser_fl.robustness.sanity_checks import probes
from ser_fl.robustness.sanity_checks.probes import probe
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord

STEP = 2.0**-15
"""One step of a 16-bit file."""


def settings(*given: str) -> Any:
    return compose_benchmark(["run=RUN", "domain=waveform", *given])


def asked(*given: str, which: str = "attacks") -> list[Attack]:
    config = settings(*given)
    request = Request(num_classes=3, steps=config.steps, restarts=config.restarts)
    return request.on_recordings(getattr(config, which), config.snr_dbs, config.amplitudes)


def recorded(
    recordings: Mapping[str, Tensor],
    labels: Sequence[int],
    *,
    level: float = 0.0,
    rates: Mapping[str, int] | None = None,
    pairs: WavPairs | None = None,
    network: nn.Module | None = None,
) -> TestSet:
    """Recordings behind a linear front end, and a classifier that asks whether the mean is above a level."""
    frontend: LogMel = Plain()  # type: ignore[assignment]
    domain = Recordings(
        frontend=frontend,
        standardisation=unstandardised(LINES),
        read=lambda key: (recordings[key], (rates or {}).get(key, 16000)),
        pairs=pairs,
    )
    return TestSet(
        model=network or MeanAbove(level),
        features_NFL=domain.clean(list(recordings)),
        labels_N=torch.tensor(labels),
        ids=tuple(recordings),
        num_classes=3,
        box=Box.unbounded(),
        seed=0,
        batch_size=2,
        domain=domain,
    )


def heard(
    recordings: Mapping[str, Tensor],
    labels: Sequence[int],
    *given: str,
    level: float = 0.0,
    pairs: WavPairs | None = None,
    defences: Sequence[Defence] = (NoDefence(),),
    **named: Any,
) -> list[AttackRecord]:
    """The benchmark of recordings."""
    test_set = recorded(recordings, labels, level=level, pairs=pairs)
    adaptive = asked(*given, which="adaptive")
    return benchmark_attacks(test_set, asked(*given), defences, adaptive=adaptive, **named)


def of(records: Sequence[AttackRecord], attack: str, budget: float | None = None) -> AttackRecord:
    (found,) = [
        record for record in records if record.attack == attack and budget in (None, record.snr_db, record.epsilon)
    ]
    return found


THREE = {"near": wave(800, 0.3 / math.sqrt(999)), "far": wave(400), "wrong": -wave(800)}
"""Boundaries at 30 and 10 dB; the third is of the other class."""


def test_curve_over_snr_is_where_the_boundaries_are() -> None:
    records = heard(THREE, [1, 1, 1], "attacks=[pgd,cw_l2]", "snr_dbs=[35,25,5]")
    clean = of(records, "clean")
    assert (clean.domain, clean.norm, clean.clean_uar, clean.snr_db) == ("waveform", "none", pytest.approx(2 / 3), None)
    for level_db, successes in ((35.0, 0), (25.0, 1), (5.0, 2)):
        for attack in ("pgd", "cw_l2"):
            record = of(records, attack, level_db)
            assert (record.domain, record.norm, record.epsilon) == ("waveform", "2", None)
            assert record.attack_success_rate == successes / 2
            assert record.robust_uar == pytest.approx((2 - successes) / 3)
        worst = of(records, "worst_case", level_db)
        assert (worst.attack_success_rate, worst.robust_uar) == (successes / 2, pytest.approx((2 - successes) / 3))
    assert of(records, "pgd", 35.0).median_snr_db is None
    assert of(records, "pgd", 25.0).median_snr_db == pytest.approx(25.0, abs=0.01)
    assert of(records, "cw_l2", 25.0).median_snr_db == pytest.approx(30.0, abs=0.2)
    assert of(records, "cw_l2", 5.0).median_snr_db == pytest.approx(10.0, abs=0.2)  # the smaller of the two
    assert of(records, "cw_l2", 5.0).seconds == of(records, "cw_l2", 35.0).seconds  # crafted once
    assert of(records, "pgd", 25.0).lost_to_quantisation == 0


def test_amplitudes_are_epsilons() -> None:
    records = heard(THREE, [1, 1, 1], "attacks=[pgd]", "amplitudes=[0.05,0.2]")
    small, large = of(records, "pgd", 0.05), of(records, "pgd", 0.2)
    assert (small.norm, small.epsilon, small.snr_db) == ("inf", 0.05, None)
    assert (small.attack_success_rate, large.attack_success_rate) == (0.5, 1.0)
    assert large.max_linf == pytest.approx(0.2, abs=1e-6)
    assert small.mean_l2 == pytest.approx(0.05 * math.sqrt(800), rel=1e-3)


@pytest.mark.parametrize(("amplitude", "lost"), [(0.4 * STEP, 1.0), (2 * STEP, 0.0)])
def test_what_16_bits_do_not_hold_is_lost(amplitude: float, lost: float) -> None:
    """Samples on 16-bit steps, a quarter of a step above the boundary: less than half a step is rounded away."""
    on_steps_T = 8192 * STEP + STEP * torch.randint(-9, 9, (800,), generator=torch.Generator().manual_seed(1))
    level = float(on_steps_T.double().mean()) - STEP / 4
    record = of(heard({"u": on_steps_T}, [1], "attacks=[pgd]", f"amplitudes=[{amplitude}]", level=level), "pgd")
    assert (record.attack_success_rate, record.lost_to_quantisation) == (1.0, lost)


def test_batches_and_order_do_not_matter() -> None:
    forth = heard(THREE, [1, 1, 1], "attacks=[apgd_ce]", "snr_dbs=[25]", "steps=3")
    back = heard(dict(reversed(THREE.items())), [1, 1, 1], "attacks=[apgd_ce]", "snr_dbs=[25]", "steps=3")
    for one, other in zip(forth, back, strict=True):
        assert (one.confusion, one.attack) == (other.confusion, other.attack)
        assert one.mean_l2 == pytest.approx(other.mean_l2, rel=1e-4)


def test_recordings_of_several_rates_go_in_their_own_groups() -> None:
    rates = {"a": 16000, "b": 8000, "c": 16000}
    recordings = {key: torch.full((400,), -0.2 if key == "b" else 0.2) for key in rates}
    test_set = recorded(recordings, [1, 0, 1], rates=rates)
    record = of(benchmark_attacks(test_set, asked("attacks=[pgd]", "amplitudes=[0.3]"), [NoDefence()]), "pgd")
    assert record.confusion == ((0.0, 1.0, 0.0), (2.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    *_, (last, _) = test_set.domain.problems(test_set.problem(AttackSettings(name="pgd", epsilon=0.3)))
    assert last == [1]


def test_median_counts_successes_by_the_weight_of_their_run() -> None:
    value_N = torch.tensor([10.0, 20.0, 30.0, math.nan])
    success_RN = torch.tensor([[True, True, False, True], [False, True, True, True]])
    assert median_over_successes(value_N, success_RN, (0.9, 0.1)) == 20.0  # weights 0.9, 1 and 0.1
    assert median_over_successes(value_N[3:], success_RN[:, 3:], (0.9, 0.1)) is None
    assert median_over_successes(value_N, torch.zeros(1, 4, dtype=torch.bool), (1.0,)) is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", "a\\b", "C:x", "ü/ö", "x" * 900])
def test_no_id_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "adversarial"
    pairs = WavPairs(folder, [name])
    pairs.keep(name, wave(100), wave(100), 16000, ["pgd", "snr_db_30"], {"snr_db": 30.0})
    files = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file())
    assert len(files) == 3 and all(file.startswith("run/adversarial/") for file in files)
    assert all(file.isascii() for file in files)


def test_ids_that_read_alike_have_files_of_their_own(tmp_path: Path) -> None:
    pairs = WavPairs(tmp_path, [])
    assert len({pairs.path(name, "clean").name.lower() for name in ("a/b", "a_b", "A/b", "a b", "a/b/")}) == 5


def test_a_later_benchmark_lists_the_pairs_of_earlier_ones_too(tmp_path: Path) -> None:
    for level_db in (25, 5, 25):
        heard(THREE, [1, 1, 1], "attacks=[pgd]", f"snr_dbs=[{level_db}]", pairs=WavPairs(tmp_path, ["far"]))
    listed = json.loads((tmp_path / "waveforms.json").read_text())["pairs"]
    assert sorted(round(pair["snr_db"]) for pair in listed) == [5, 25]


def test_pairs_are_what_was_evaluated(tmp_path: Path) -> None:
    pairs = WavPairs(tmp_path, ["far"])
    heard(THREE, [1, 1, 1], "attacks=[pgd]", "snr_dbs=[25,5]", pairs=pairs)
    listed = json.loads((tmp_path / "waveforms.json").read_text())["pairs"]
    assert [pair["utterance_id"] for pair in listed] == ["far", "far"]
    assert len(list(tmp_path.glob("*.wav"))) == 3
    for pair, level_db in zip(listed, (25.0, 5.0), strict=True):
        clean_T, rate = read_audio(tmp_path / pair["clean"])
        adversarial_T, _ = read_audio(tmp_path / pair["adversarial"])
        assert rate == 16000
        assert torch.allclose(clean_T, THREE["far"], atol=STEP / 2)
        found = 20 * math.log10(float(clean_T.norm() / (adversarial_T - clean_T).norm()))
        assert found == pytest.approx(level_db, abs=0.05) and pair["snr_db"] == pytest.approx(level_db, abs=0.01)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["snr_dbs=[30]"], ["snr_dbs", "[30.0]", "domain=logmel", "epsilons"]),
        (["amplitudes=[0.1]"], ["amplitudes", "domain=waveform"]),
        (["write_audio=3"], ["write_audio", "domain=waveform"]),
        (["domain=waveform", "epsilons=[0.1]"], ["epsilons", "[0.1]", "domain=logmel", "snr_dbs"]),
        (["domain=waveform", "curve_epsilons=[0.1]"], ["curve_epsilons", "snr_dbs"]),
        (["domain=waveform", "amplitudes=[-0.1]"], ["amplitudes", "-0.1"]),
        (["domain=waveform", "snr_dbs=[.inf]"], ["snr_dbs"]),
        (["domain=waveform", "drop_broken=true"], ["drop_broken", "true", "leave drop_broken out"]),
        (["domain=waveform", "keep_adversarials=true"], ["keep_adversarials", "domain=logmel"]),
        (["domain=speech"], ["domain", "speech"]),
    ],
)
def test_a_budget_in_the_wrong_domain_is_told(
    given: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "run=RUN", *given]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and all(word in told for word in words), told


def test_attacks_that_do_not_go_on_waveforms_are_told() -> None:
    with pytest.raises(UserError, match=r"'square'.*apgd_ce"):
        asked("attacks=[square]")
    with pytest.raises(UserError, match="cw_l2 keeps to budgets of snr_db only"):
        asked("attacks=[cw_l2]", "amplitudes=[0.1]")


def test_a_suite_stands_for_something_here_too() -> None:
    """The default of a benchmark is one, so that ``domain=waveform`` alone must run."""
    assert list(dict.fromkeys(attack.name for attack in asked())) == ["pgd", "apgd_ce", "cw_l2"]


def test_an_attacker_who_knows_of_the_defence_is_shown_to_it_alone() -> None:
    """And both attackers have a worst case together, with an interval, as in the other domain."""
    given = ["attacks=[pgd]", "adaptive=[pgd]", "snr_dbs=[25]", "steps=8"]
    records = heard(
        THREE,
        [1, 1, 1],
        *given,
        defences=[NoDefence(), Randomisation(num_draws=2)],
        eot_samples=4,
        subsets={"adaptive": 2},
    )
    told = [(one.attack, one.defence, one.knowledge, one.eot_samples, one.num_examples) for one in records]
    assert told == [
        *(("clean", name, "undefended", 0, 3) for name in ("none", "randomisation")),
        *(("pgd", name, "undefended", 0, 3) for name in ("none", "randomisation")),
        ("pgd", "randomisation", "adaptive", 4, 2),
        *(("worst_case", "randomisation", "adaptive+undefended", 0, size) for size in (3, 2)),
    ]
    assert all(one.uar_interval is not None for one in records)
    steps = {one.knowledge: one.backward_passes for one in records if one.attack == "pgd"}
    assert steps == {"undefended": 8 * 3, "adaptive": 8 * 2 * 4}  # each step asks for every draw
    with pytest.raises(UserError, match="adaptive pgd needs a defence to know of, got none"):
        heard(THREE, [1, 1, 1], *given)


class Counting(MeanAbove):
    """Counts the utterances that it was asked about where a gradient was wanted."""

    asked = 0

    def forward(self, features_BFL: Tensor) -> Tensor:
        self.asked += len(features_BFL) * features_BFL.requires_grad
        return super().forward(features_BFL)


def test_what_is_done_is_not_done_again_and_the_worst_case_is_over_all() -> None:
    """A weak attack that comes later must not raise it."""
    cache, network = ResultCache(), Counting()

    def run(*given: str) -> list[AttackRecord]:
        network.asked = 0
        test_set = recorded(THREE, [1, 1, 1], network=network)
        return benchmark_attacks(test_set, asked("snr_dbs=[25,5]", *given), [NoDefence()], cache=cache)

    strong = run("attacks=[pgd,apgd_ce]", "steps=9")
    assert network.asked > 0
    assert run("attacks=[pgd,apgd_ce]", "steps=9") == strong and not network.asked
    both = run("attacks=[cw_l2]", "steps=1")
    once = network.asked
    assert once == of(both, "cw_l2", 25.0).backward_passes == of(both, "cw_l2", 5.0).backward_passes
    for level_db in (25.0, 5.0):
        assert of(both, "worst_case", level_db).robust_uar <= of(strong, "worst_case", level_db).robust_uar


@pytest.mark.parametrize(("name", "calls"), [("pgd", 2), ("pgd", 5), ("cw_l2", 2), ("cw_l2", 5)])
def test_a_killed_benchmark_goes_on_at_the_batch_it_was_at(name: str, calls: int, tmp_path: Path) -> None:
    """Two batches an attack and budget; what lies on disk is read again, figures included."""
    network, told = Counting(), []

    def run(folder: Path, **named: Any) -> list[AttackRecord]:
        network.asked = 0
        test_set = recorded(THREE, [1, 1, 1], network=network)
        shape_FL = tuple(test_set.features_NFL.shape[1:])
        return benchmark_attacks(
            test_set,
            asked(f"attacks=[{name}]", "snr_dbs=[25,5]", "steps=4"),
            [NoDefence()],
            cache=ResultCache(folder, torch.device("cpu"), shape_FL),
            **named,
        )

    def kill(*given: Any) -> None:
        told.append(given)
        if len(told) > calls:
            raise KeyboardInterrupt

    expected = run(tmp_path / "whole")
    whole = network.asked
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", on_attack=kill)
    before = network.asked
    again = run(tmp_path / "parts")
    assert [replace(one, seconds=0.0) for one in again] == [replace(one, seconds=0.0) for one in expected]
    assert before > 0 and before + network.asked == whole  # nothing twice


def test_each_budget_that_an_attack_keeps_to_is_taken() -> None:
    attacks = asked("attacks=[pgd,cw_l2,psychoacoustic]", "snr_dbs=[30,20]", "amplitudes=[0.1]", "steps=9")
    assert [(attack.name, attack.settings.budget) for attack in attacks] == [
        *(("pgd", "30 dB"), ("pgd", "20 dB"), ("pgd", "0.1")),
        *(("cw_l2", "30 dB"), ("cw_l2", "20 dB"), ("psychoacoustic", "the masking threshold")),
    ]
    assert {attack.settings.steps for attack in attacks} == {9}
    default = [attack.settings.budget for attack in asked("attacks=[pgd]")]
    assert default == [f"{level} dB" for level in (60, 50, 40, 30, 20, 10, 0)]


@pytest.mark.parametrize("given", ["snr_dbs=[25]", "amplitudes=[0.05]"])
def test_the_probes_look_at_recordings_too(given: str) -> None:
    """A sound model passes all eight; one whose gradient is hidden is found out, by what needs none as well."""
    attacks = asked("attacks=[pgd]", given, "steps=8")
    sound = probe(recorded(THREE, [1, 1, 1]), attacks)
    assert (sound.doubts, sound.not_checked) == ((), {})
    assert set(sound.passed) == set(probes.PROBES)

    class Hidden(MeanAbove):
        def forward(self, features_BFL: Tensor) -> Tensor:
            return super().forward(features_BFL).detach() + 0 * features_BFL.sum()

    from_clean = asked("attacks=[pgd]", given, "steps=8", "restarts=0")
    hidden = probe(recorded(THREE, [1, 1, 1], network=Hidden()), from_clean)
    assert {"gradients reach the input", "a huge epsilon reaches chance"} <= set(hidden.failed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the built-in corpus whose model was not trained: what it knows is of no matter here."""
    folder = tmp_path_factory.mktemp("waveform")
    config = compose(["experiment=debug", f"data.cache_dir={folder}/cache", "data.utterances_per_emotion=3"])
    prepared = prepare(config)
    bundle = EmotionModel(
        build_network(config.model, len(prepared.store.classes), seed=3),
        prepared.standardisation,
        classes=prepared.store.classes,
        model=config.model,
        frontend=config.frontend,
        synthetic=True,
    )
    save_model(folder / "run", bundle)
    run = RunFolder(folder / "run")
    run.config.write_text(yaml.safe_dump({"schema": CONFIG_SCHEMA, **dump(config)}))
    return run


def benchmarked(run: RunFolder, *given: str) -> list[AttackRecord]:
    return benchmark_run(compose_benchmark([f"run={run.root}", "max_examples=4", "steps=2", *given]))


@pytest.mark.slow
def test_a_run_is_attacked_on_its_own_recordings(run: RunFolder) -> None:
    logmel = benchmarked(run, "attacks=[fgsm]", "epsilons=[0.1]", "curve_attacks=[]", "defences=[none]")
    everything = benchmarked(
        run, "domain=waveform", "attacks=[pgd,psychoacoustic]", "snr_dbs=[30]", "write_audio=1",
        "defences=[none,randomisation]",
    )  # fmt: skip
    records = [record for record in everything if record.domain == "waveform"]
    assert [(record.attack, record.defence) for record in records] == [
        (attack, defence) for attack in ("clean", "pgd", "psychoacoustic") for defence in ("none", "randomisation")
    ]
    kept = RunFolder(run.root).read_attacks()
    assert kept == everything
    assert [record for record in kept if record.domain == "logmel"] == logmel  # those of the other domain stay
    clean = {record.domain: record for record in kept if record.attack == "clean" and record.defence == "none"}
    assert clean["waveform"].confusion == clean["logmel"].confusion  # by way of the recordings or of the store
    masked = of([record for record in records if record.defence == "none"], "psychoacoustic")
    assert (masked.norm, masked.snr_db, masked.epsilon) == ("masking", None, None)
    if masked.masked_share is not None:  # None where nothing succeeded
        assert masked.masked_share >= 0.99
    assert len(list(run.adversarial.glob("*.wav"))) == 3
    again = benchmarked(run, "domain=waveform", "attacks=[pgd]", "snr_dbs=[30]", "defences=[none]")
    still = {"seconds": 0.0, "masked_share": None}  # which is measured where a psychoacoustic attack asks for it
    assert [replace(record, **still) for record in again] == [replace(record, **still) for record in everything]
    assert RunFolder(run.root).read_attacks() == again


def speechlike(num_samples: int = 32000) -> Tensor:
    from ser_fl.data.synthetic import SyntheticCorpus

    corpus = SyntheticCorpus(2, 1)
    return corpus.read(corpus.utterances[0])[0][:num_samples]


def test_without_the_packages_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "find_spec", lambda name: None)
    assert math.isnan(pesq_of(wave(8000), wave(8000), 16000)) and math.isnan(stoi_of(wave(8000), wave(8000), 16000))


def test_pesq_of_the_same_is_its_maximum() -> None:
    pytest.importorskip("pesq")
    clean_T = speechlike()
    noise_T = torch.randn(clean_T.shape, generator=torch.Generator().manual_seed(0))
    assert pesq_of(clean_T, clean_T, 16000) == pytest.approx(4.64, abs=0.01)
    assert pesq_of(clean_T, clean_T + 0.02 * noise_T, 16000) < 4
    assert math.isnan(pesq_of(torch.zeros(8000), torch.zeros(8000), 16000))


def test_stoi_of_the_same_is_1() -> None:
    pytest.importorskip("pystoi")
    clean_T = speechlike()
    noise_T = torch.randn(clean_T.shape, generator=torch.Generator().manual_seed(0))
    assert stoi_of(clean_T, clean_T, 16000) == pytest.approx(1.0, abs=1e-6)
    assert stoi_of(clean_T, clean_T + 0.1 * noise_T, 16000) < 0.95
    assert math.isnan(stoi_of(clean_T[:2000], clean_T[:2000], 16000))
