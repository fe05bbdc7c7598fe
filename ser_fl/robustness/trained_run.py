"""A trained run, and the speech that its model is to be shown: its own test part, or any other.

Legend: N utterances, F mel bins.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ser_fl.attacks.threat_model import Box
from ser_fl.config.compose import compose_speech
from ser_fl.config.robustness import Scored
from ser_fl.config.schema import Config
from ser_fl.config.training import PooledConfig
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.enrolment import enrolled
from ser_fl.data.enrolment import in_words as scaling_in_words
from ser_fl.data.features import FeatureStore, OnFeatures, compute_features, load_examples
from ser_fl.data.heard import Heard, Shared, in_words
from ser_fl.data.joint import Member, own_classes, split_each
from ser_fl.data.normalisation import Scale, SpeakerScales
from ser_fl.data.splits import PARTS, Indices, Split
from ser_fl.defences import Defence, build_defence
from ser_fl.devices import CPU, devices_of, send
from ser_fl.errors import UserError, unknown_name
from ser_fl.models.emotion_model import EmotionModel, load_model
from ser_fl.models.networks import NetworkSource
from ser_fl.models.own_classes import OwnClasses
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import SpeechRecord
from ser_fl.runs.zoo import readable_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Utterances of a corpus that a model is shown, and what a reader of figures on them must know."""

    store: FeatureStore
    """Of the whole corpus; it scales each speaker where the model asks for it."""
    rows: Indices
    """Utterances that are scored."""
    left_out: dict[str, int]
    """Utterances of emotions that the model does not know, by emotion."""
    shared: Shared | None
    """With what was heard in training; None where the run does not say what that was."""
    scaling: str | None
    """How speakers are scaled, in words; None where all are scaled alike."""
    asked: str | None
    """Among which emotions predictions are, in words; None for all that the model knows."""
    scale: Scale | None
    """As of a `TestSet`."""
    record: SpeechRecord


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedRun:
    """A run's model, and the speech that it is to be shown: ``config`` is the run's, with that corpus and split."""

    run: RunFolder
    config: Config
    model: EmotionModel
    part: Scored
    is_other: bool
    """Whether the speech is of another corpus than the run's own, of which there may be several."""
    is_own_test: bool
    """Whether it is the test part of the run's own corpus and split."""
    folder: RunFolder
    """Where figures on the speech lie: the run folder, for the test part of its own corpus."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Emotions that the model is asked for: all that it knows, but of one of its several corpora that corpus's."""
        member = self.model.corpora.get(self.config.data.name)
        return self.model.classes if member is None else member.emotions

    @property
    def network(self) -> nn.Module:
        """With the outputs of these emotions alone."""
        if self.classes == self.model.classes:
            return self.model.network
        return OwnClasses(self.model.network, [self.model.classes.index(emotion) for emotion in self.classes])

    def store(self, on_features: OnFeatures | None = None) -> FeatureStore:
        """Features of the whole corpus; its classes are the model's, and behind them those that only the corpus has. A
        `UserError` where the run's own corpus moved, or has other emotions than the model.
        """
        corpus, known = open_configured_corpus(self.config), self.classes
        theirs = sorted({utterance.emotion for utterance in corpus.utterances})
        if not self.is_other and theirs != sorted(known):
            raise UserError(
                f"the corpus at {self.config.data.root} has the emotions {', '.join(theirs)}, the model of "
                f"{self.run.root} knows {', '.join(known)}: set root=DIR to the corpus it was trained on, or "
                "data=NAME data.root=DIR to another"
            )
        classes = (*known, *(emotion for emotion in theirs if emotion not in known))
        cache_dir = self.config.data.cache_dir
        return compute_features(
            corpus, self.config.frontend, cache_dir=cache_dir, progress=on_features, classes=classes
        )

    def refuse_mixed(self) -> None:
        """Refuse (`UserError`) utterances that differ in the emotions that the model is asked for: an attack and its
        worst case are of one set of classes.
        """
        names = self.config.data.corpora
        if len(names) > 1 and own_classes(self.model.corpora, self.model.classes):
            raise UserError(f"the emotions of {', '.join(names)} differ: attack one by one, data={names[0]} and so on")

    def defences(self, names: Sequence[str] | Literal["auto"]) -> list[Defence]:
        """By name. A `UserError` tells of an unknown one, and of one that moves the bins of an encoder's features."""
        knowing = "model=pooled" if isinstance(self.model.model_config, PooledConfig) else ""
        if self.model.frontend_config.num_channels > 1:
            knowing = knowing or "a network with deltas"
        if names == "auto":
            names = ("none",) if knowing else ("none", "randomisation")
        defences = [build_defence(name) for name in names]
        for defence in defences:
            if defence.moves_bins and knowing:
                raise UserError(
                    f"{defence.name} shifts mel bins, and {knowing} knows each feature by its place: choose "
                    "defences=[none]"
                )
        return defences

    def choose(self, store: FeatureStore, *, allow_seen: bool = False) -> Chosen:
        """The part's utterances of emotions that the model knows. The corpus may have grown since training.

        Raises:
            UserError: there are none, or the run was trained on some of them, or selected by them, and that is not
                allowed.
        """
        everything, classes, data, members = store.utterances, self.classes, self.config.data, self.model.corpora
        scaling = None
        rows, trained = tuple(range(len(everything))), Indices()
        if self.part != "all":
            validated = self.part == "validation" or self.config.selection.needs_validation
            split = split_each(everything, self.config.split, corpus=data.name, validated=validated)
            rows = getattr(split, self.part)
            trained = () if self.is_other else split.train
        if self.model.by_speaker:  # before emotions are looked at: nobody knows those of the clips that enrol
            enrolment, known_here = self.config.enrolment, {everything[row].speaker for row in trained}
            store, (_, _, rows) = enrolled(
                store,
                Split(train=trained, validation=(), test=rows),
                enrolment,
                seed=self.config.split.seed,
                fallback=self.model.fallback,
            )
            scaling = scaling_in_words(enrolment, len({everything[row].speaker for row in rows} - known_here))
        elif self.model.fallback is not None:  # by corpus
            scales = {name: member.scale or self.model.fallback for name, member in members.items()}
            names = (each.corpus if each.corpus in scales else "" for each in everything)
            store = replace(store, scales=SpeakerScales.of_names({**scales, "": self.model.fallback}, names))
        if members and len(data.corpora) > 1:
            theirs = {name: members.get(name, Member(emotions=classes)) for name in data.corpora}
            store = replace(store, own_classes=own_classes(theirs, store.classes))
        asked = f"predictions are among the emotions of {data.name}" if classes != self.model.classes else None
        asked = "predictions are among the emotions of each corpus" if store.own_classes else asked
        left_out = Counter(everything[row].emotion for row in rows if everything[row].emotion not in classes)
        rows = tuple(row for row in rows if everything[row].emotion in classes)
        if not rows:
            raise UserError(
                f"the model knows {', '.join(classes)}, the utterances are {', '.join(sorted(left_out))}: data.labels "
                "maps the emotions of a manifest"
            )
        utterances, shared = [everything[row] for row in rows], None
        heard = Heard.read(self.run.heard, self.run.heard_sounds)
        if (heard is None or heard.missing) and not (self.is_other or self.is_own_test or allow_seen):
            raise UserError(
                f"{self.run.root} does not say all that it heard in training, and of its own corpus the test part "
                "alone is new: take part=test of its own split, or others with allow_seen=true"
            )
        if heard is not None:
            shared = heard.shared(store, rows, self.config.frontend, allow_seen=allow_seen)
        there = {utterance.emotion for utterance in utterances}
        lacking = [emotion for emotion in classes if emotion not in there]
        # Sounds too: two manifests may list the same names. Coarse, since other machines round features otherwise.
        known = [f"{level:.1f}" for level in store.features_NFL.mean(dim=(0, 2)).tolist()]
        known += (text for utterance in utterances for text in (utterance.utterance_id, utterance.emotion))
        record = SpeechRecord(
            corpus=data.name,
            part=self.part,
            num_utterances=len(rows),
            utterances=blake2b("\0".join(known).encode(), digest_size=8).hexdigest(),
            synthetic=data.synthetic,
            words=(*in_words(shared, left_out, lacking), *filter(None, (scaling, asked))),
        )
        return Chosen(
            store=store,
            rows=rows,
            scaling=scaling,
            asked=asked,
            scale=None if store.scales is None else store.scales.of(torch.tensor(rows)),
            left_out=dict(sorted(left_out.items())),
            shared=shared,
            record=record,
        )

    def test_set(
        self,
        *,
        seed: int = 0,
        batch_size: int = 64,
        allow_seen: bool = False,
        device: torch.device = CPU,
        on_features: OnFeatures | None = None,
    ) -> TestSet:
        """The chosen utterances, standardised, and the model, which moves to the device; a `UserError` as `store` and
        `choose` say.
        """
        self.refuse_mixed()
        chosen = self.choose(self.store(on_features), allow_seen=allow_seen)
        examples = load_examples(chosen.store, chosen.rows, self.model.standardisation)
        utterances = [chosen.store.utterances[row] for row in chosen.rows]
        self.model.to(device)
        return TestSet(
            model=self.network.to(device),
            features_NFL=send(examples.features_NFL, device),
            labels_N=send(examples.labels_N, device),
            ids=tuple(utterance.utterance_id for utterance in utterances),
            num_classes=len(self.classes),
            box=Box.of(self.model.standardisation.lower_F1, self.model.standardisation.upper_F1),
            seed=seed,
            batch_size=batch_size,
            speakers=tuple(utterance.speaker for utterance in utterances),
            sexes=tuple(utterance.sex for utterance in utterances),
            recordings=tuple(utterance.recording for utterance in utterances),
            emotions=self.classes,
            speech=chosen.record,
            scale=chosen.scale,
            store=chosen.store,
        )


def load_run(
    folder: Path,
    speech: Sequence[str] = (),
    *,
    part: Scored | None = None,
    root: Path | str | None = None,
    client_id: str | None = None,
    network: NetworkSource | None = None,
) -> TrainedRun:
    """A run's model, and the speech that it is to be shown.

    Args:
        folder: of the run, or a model of the zoo.
        speech: settings of the speech, as `ser_fl.config.compose.compose_speech` takes them; none of the run's own.
        part: of the split; None is the test part of the run's own corpus, and all of another.
        root: folder of the corpus, where it is no longer the one in the run's ``config.yaml``.
        client_id: whose own model is meant, in a run without averaging; None for the run's model.
        network: of a run that was trained with a network of its own.

    Raises:
        UserError: no such run, client, model, part or setting.
    """
    run = RunFolder(readable_run(folder))
    run.refuse_no_run()
    run.refuse_links_out()
    speech = [*speech, *([] if root is None else [f"data.root={root}"])]
    if part is not None and part not in (*PARTS, "all"):
        raise unknown_name("part", part, (*PARTS, "all"))
    config, model = compose_speech(speech, run.config), load_model(run, client_id=client_id, network=network)
    is_other = any(setting.startswith("data=") for setting in speech) and config.data.name not in model.corpora
    part = part or ("all" if is_other else "test")
    given = [setting for setting in speech if not setting.startswith(("data.root=", "data.roots."))]
    is_own_test = part == "test" and all(setting.startswith("enrolment=") for setting in given)
    return TrainedRun(
        run=run,
        config=config,
        model=model,
        part=part,
        is_other=is_other,
        is_own_test=is_own_test,
        folder=run if is_own_test and not given else run.on(config.data.name, part, enrolment_given(speech)),
    )


def attack_device(accelerator: str | None, trained: Config) -> torch.device:
    """The accelerator that is asked for, a `UserError` where it is not here; else the run's, or the CPU in its absence.
    Attacks measure distances in float64, which Apple's GPUs lack: their runs are attacked on the CPU.
    """
    if accelerator is not None:
        (device, *_) = devices_of(accelerator, "accelerator")
    else:
        (device, *_) = devices_of("auto" if trained.executor.accelerator in ("auto", "cuda") else "cpu")
    return CPU if device.type == "mps" else device


def enrolment_given(speech: Sequence[str]) -> str | None:
    """The enrolment among settings of speech, where it is not the run's."""
    return next((setting.partition("=")[2] for setting in reversed(speech) if setting.startswith("enrolment=")), None)
