"""What is found out about an entry without an attack, from its model and the corpus: when it is made, and again when it
is verified.
"""

from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from ser_fl.config.compose import compose
from ser_fl.config.groups import groups
from ser_fl.config.schema import Config
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.features import OnFeatures
from ser_fl.data.joint import split_each
from ser_fl.data.utterance import Corpus, Utterance
from ser_fl.defences import build_defence
from ser_fl.devices import exact_arithmetic, threads_limited_to
from ser_fl.errors import UserError
from ser_fl.leaderboard.entry import TestPart
from ser_fl.robustness.attack_metrics import Bench
from ser_fl.robustness.evaluator import evaluating
from ser_fl.robustness.trained_run import load_run
from ser_fl.runs.records import NO_DEFENCE


def examine(
    folder: Path, defence: str = NO_DEFENCE, *, root: str | None = None, on_features: OnFeatures | None = None
) -> TestPart:
    """The test part of a model's own corpus and split, and the clean figures of the model with a defence.

    Args:
        folder: with the model's files.
        defence: by name.
        root: folder of the corpus, where it is not the one in ``config.yaml``.
        on_features: told how far the features are.

    Raises:
        UserError: a file or the corpus cannot be read, the model has a network of its own or several corpora, or only
            some of the test speakers were trained on.
    """
    trained = load_run(folder, root=root)
    if len(trained.config.data.corpora) > 1:
        raise UserError(f"an entry is of one corpus, got {', '.join(trained.config.data.corpora)}")
    corpus = open_configured_corpus(trained.config)
    with threads_limited_to(trained.config.executor.threads), exact_arithmetic():
        test_set = trained.test_set(on_features=on_features)
        with evaluating(test_set.model):
            defended = build_defence(defence)
            bench = Bench(test_set, [defended])
            (clean,) = bench.records_of(bench.clean)
    scored = set(test_set.ids)
    by_id = {utterance.utterance_id: utterance for utterance in corpus.utterances}
    known = _training_speakers(trained.config, corpus)
    theirs = {by_id[one].speaker for one in scored}
    if 0 < len(theirs & known) < len(theirs):
        raise UserError(
            f"{len(theirs & known)} of {len(theirs)} test speakers were trained on: an entry tests known speakers or "
            "strangers, not both"
        )
    return TestPart(
        num_examples=len(test_set),
        audio=_audio_digest(corpus, [by_id[one] for one in sorted(scored)]),
        track="known_speakers" if theirs & known else "strangers",
        clean_uar=clean.robust_uar,
        parameters=sum(parameter.numel() for parameter in trained.network.parameters()),
        forward_passes=defended.num_draws // len(defended.run_weights),
    )


def settings_of(config: Config) -> tuple[str, ...]:
    """The corpus, the split and the enrolment as settings of a command, the shortest that there are."""
    ways = list[tuple[str, ...]]()
    for split in groups()["split"]:
        names = (f"data={config.data.name}", f"split={split}")
        plain, given = compose([*names, *root_of(config)]), list[str]()
        for group in ("data", "split"):
            defaults, own = asdict(getattr(plain, group)), asdict(getattr(config, group))
            given += [f"{group}.{name}={_written(value)}" for name, value in own.items() if value != defaults[name]]
        given += [] if config.selection.needs_validation else ["selection=last"]
        if config.enrolment != plain.enrolment:
            given += ["normalisation=speaker", f"enrolment={config.enrolment}"]
        if plain.split.name == config.split.name:
            ways.append((*names, *(one for one in given if not one.startswith("data.cache_dir"))))
    return min(ways, key=lambda way: len(" ".join(way)))


def root_of(config: Config) -> list[str]:
    """Where a configuration has its corpus, as a setting; nothing of the built-in one."""
    return [] if config.data.root is None else [f"data.root={config.data.root}"]


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _training_speakers(config: Config, corpus: Corpus) -> set[str]:
    split = split_each(
        corpus.utterances, config.split, corpus=config.data.name, validated=config.selection.needs_validation
    )
    return {corpus.utterances[row].speaker for row in (*split.train, *split.validation)}


def _audio_digest(corpus: Corpus, utterances: Sequence[Utterance]) -> str:
    """Of names, emotions and samples as they are decoded, rounded to 16 bits, so that a lossless copy is the same."""
    whole = sha256()
    for utterance in utterances:
        waveform_T, sample_rate_hz = corpus.read(utterance)
        samples_T = (waveform_T * (1 << 15)).round().clamp(-(1 << 15), (1 << 15) - 1).to(torch.int16)
        whole.update(f"{utterance.utterance_id}\0{utterance.emotion}\0{sample_rate_hz}\0{len(samples_T)}\0".encode())
        whole.update(samples_T.numpy().tobytes())
    return whole.hexdigest()
