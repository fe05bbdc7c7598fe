"""How well a run's model does on any speech, and what that speech shares with what the model has heard.

Legend: N utterances, C classes of the model.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch

from ser_fl.calibration import Calibration, calibration_of, confidence_sums
from ser_fl.config.robustness import Scored
from ser_fl.data.features import OnFeatures, load_examples
from ser_fl.data.heard import Shared, in_words
from ser_fl.data.joint import by_corpus
from ser_fl.data.utterance import Utterance
from ser_fl.devices import exact_arithmetic, threads_limited_to
from ser_fl.errors import UserError
from ser_fl.files import write_bytes, write_json
from ser_fl.metrics import Bootstrap, confusion_matrix, mean_scores, scores, uar_by_group
from ser_fl.models.own_classes import asked_of
from ser_fl.robustness.evaluator import batches_of
from ser_fl.robustness.trained_run import load_run
from ser_fl.runs.folder import RunFolder

SETTINGS = ("run", "part", "allow_seen", "out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredUtterance:
    """What the model says of one utterance."""

    utterance_id: str
    speaker: str
    emotion: str
    predicted: str
    probabilities: dict[str, float]
    """Calibrated by the run's temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFigures:
    """Those of one of several corpora, over the emotions that the model knows in it; else as in `Evaluation`."""

    num_utterances: int
    uar: float
    uar_interval: tuple[float, float] | None
    accuracy: float
    macro_f1: float
    recall: dict[str, float | None]
    confusion: list[list[float]]

    @classmethod
    def of(cls, utterances: Sequence[Utterance], predicted: Sequence[str], emotions: Sequence[str]) -> Self:
        labels_N, predicted_N = (
            [emotions.index(name) for name in names] for names in ([one.emotion for one in utterances], predicted)
        )
        confusion = confusion_matrix(labels_N, predicted_N, len(emotions))
        figures, recordings = scores(confusion), [utterance.recording for utterance in utterances]
        return cls(
            num_utterances=len(utterances),
            uar=figures.uar,
            uar_interval=Bootstrap.of(labels_N, recordings, 0).interval(
                np.asarray(np.equal(labels_N, predicted_N), dtype=np.float64)
            ),
            accuracy=figures.accuracy,
            macro_f1=figures.macro_f1,
            recall=dict(zip(emotions, figures.per_class_recall, strict=True)),
            confusion=confusion.tolist(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Clean figures, in [0, 1]."""

    corpus: str
    part: Scored
    num_utterances: int
    uar: float
    """Unweighted average recall over the emotions that both the model and the speech know. Of several corpora it is the
    mean of theirs, as accuracy and macro F1 are."""
    uar_interval: tuple[float, float] | None
    """95 %, by resampling recordings within their emotion (`ser_fl.metrics.Bootstrap`)."""
    accuracy: float
    macro_f1: float
    recall: dict[str, float | None]
    """By emotion of the model; None for one that the speech lacks."""
    confusion: list[list[float]]
    """Utterances; rows true, columns predicted, in the order of `recall`."""
    speaker_uar: dict[str, float]
    sex_uar: dict[str, float]
    temperature: float
    """Of the run: what logits are divided by (`ser_fl.calibration`)."""
    uncalibrated: Calibration
    """How far probabilities could be believed without the temperature."""
    calibrated: Calibration
    """How far they can be with it."""
    left_out: dict[str, int]
    """Utterances of emotions that the model does not know, which are not scored."""
    shared: Shared | None
    """With what the model has heard; None where the run does not say what that was."""
    scaling: str | None
    """How speakers are scaled, in words; None where all are scaled alike."""
    utterances: tuple[ScoredUtterance, ...]
    asked: str | None = None
    """Among which emotions predictions are, in words; None for all that the model knows."""
    corpora: dict[str, CorpusFigures] = field(default_factory=dict)
    """Of several corpora what each has alone."""

    def words(self) -> list[str]:
        """What a reader of the figures must know, a line each."""
        lacking = [name for name, recall in self.recall.items() if recall is None]
        return [*in_words(self.shared, self.left_out, lacking), *filter(None, (self.scaling, self.asked))]

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` and ``predictions.csv``, an utterance a row, both whole."""
        content = asdict(self)
        del content["utterances"]
        write_json(folder / "evaluation.json", content)
        rows = io.StringIO()
        table = csv.writer(rows, lineterminator="\n")
        table.writerow(["utterance_id", "speaker", "emotion", "predicted", *self.recall])
        for one in self.utterances:
            shares = (f"{share:.6f}" for share in one.probabilities.values())
            table.writerow([one.utterance_id, one.speaker, one.emotion, one.predicted, *shares])
        write_bytes(folder / "predictions.csv", rows.getvalue().encode())


@exact_arithmetic()
def evaluate(
    run: Path | str | RunFolder,
    speech: Sequence[str] = (),
    *,
    part: Scored | None = None,
    allow_seen: bool = False,
    on_features: OnFeatures | None = None,
) -> Evaluation:
    """Score the selected model of a run on utterances of its own corpus or of another.

    Args:
        run: the run folder, or what `ser_fl.train` gave.
        speech: settings of the speech: ``["data=ravdess", "data.root=DIR"]`` for another corpus, ``["data.root=DIR"]``
            for the run's own in another place, and any other of ``data`` and ``split``.
        part: of the split; None is the test part of the run's own corpus, and all of another.
        allow_seen: whether utterances that the model was trained on or selected by are scored, and counted.
        on_features: told how far the features are.

    Raises:
        UserError: the run or the corpus cannot be read, they have no emotion in common, the model gives no finite
            output for an utterance, or utterances were heard in training and ``allow_seen`` is false.
    """
    folder = run.root if isinstance(run, RunFolder) else Path(run)
    trained = load_run(folder, speech, part=part, network=getattr(run, "network", None))
    store, classes = trained.store(on_features), trained.classes
    chosen = trained.choose(store, allow_seen=allow_seen)
    utterances = [store.utterances[row] for row in chosen.rows]
    with torch.no_grad(), threads_limited_to(trained.config.executor.threads):
        logits_NC = torch.cat(
            [
                asked_of(trained.network, chosen.store, batch)(
                    load_examples(chosen.store, batch, trained.model.standardisation).features_NFL
                ).float()
                for batch in batches_of([chosen.rows])
            ]
        )
    probabilities_NC = trained.model.probabilities(logits_NC)
    if not probabilities_NC.isfinite().all():
        first = int((~probabilities_NC.isfinite().all(dim=1)).nonzero()[0])
        raise UserError(f"the model of {folder} gives no finite output for {utterances[first].utterance_id}")
    predicted_N = logits_NC.argmax(dim=1).tolist()
    labels_N = [classes.index(utterance.emotion) for utterance in utterances]
    before, after = map(
        calibration_of, confidence_sums(logits_NC.double().numpy(), labels_N, trained.model.temperature)
    )
    recognised_N = np.asarray(np.equal(labels_N, predicted_N), dtype=np.float64)
    rows_of, corpora = by_corpus(utterances), dict[str, CorpusFigures]()
    confusions = [
        confusion_matrix([labels_N[row] for row in rows], [predicted_N[row] for row in rows], len(classes))
        for rows in rows_of.values()
    ]
    for name, rows in rows_of.items() if len(rows_of) > 1 else ():
        member = trained.model.corpora.get(name)
        said, own = [classes[predicted_N[row]] for row in rows], [utterances[row] for row in rows]
        corpora[name] = CorpusFigures.of(own, said, classes if member is None else member.emotions)
    figures, recordings = mean_scores(confusions), [utterance.recording for utterance in utterances]
    bootstrap = Bootstrap.over(labels_N, recordings, [utterance.corpus for utterance in utterances], 0)
    return Evaluation(
        corpus=trained.config.data.name,
        part=trained.part,
        num_utterances=len(utterances),
        uar=figures.uar,
        uar_interval=bootstrap.interval(recognised_N),
        accuracy=figures.accuracy,
        macro_f1=figures.macro_f1,
        recall=dict(zip(classes, figures.per_class_recall, strict=True)),
        confusion=np.sum(confusions, axis=0).tolist(),
        speaker_uar=uar_by_group(recognised_N, labels_N, [utterance.speaker for utterance in utterances]),
        sex_uar=uar_by_group(recognised_N, labels_N, [utterance.sex for utterance in utterances]),
        temperature=trained.model.temperature,
        uncalibrated=before,
        calibrated=after,
        left_out=chosen.left_out,
        shared=chosen.shared,
        scaling=chosen.scaling,
        utterances=tuple(
            ScoredUtterance(
                utterance_id=utterance.utterance_id,
                speaker=utterance.speaker,
                emotion=utterance.emotion,
                predicted=classes[predicted],
                probabilities=dict(zip(classes, shares, strict=True)),
            )
            for utterance, predicted, shares in zip(utterances, predicted_N, probabilities_NC.tolist(), strict=True)
        ),
        asked=chosen.asked,
        corpora=corpora,
    )
