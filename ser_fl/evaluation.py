"""How well a run's model does on any speech, and what that speech shares with what the model has heard.

Legend: N utterances, C classes of the model.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ser_fl.config.compose import compose
from ser_fl.data.features import OnFeatures, compute_features, load_examples, open_configured_corpus
from ser_fl.data.heard import Heard, Shared
from ser_fl.data.splits import PARTS, split_corpus
from ser_fl.devices import exact_arithmetic
from ser_fl.errors import UserError, unknown_name
from ser_fl.files import write_bytes, write_json
from ser_fl.metrics import Bootstrap, confusion_matrix, scores, uar_by_group
from ser_fl.robustness.evaluator import batches_of
from ser_fl.robustness.test_set import load_run
from ser_fl.runs.environment import threads_limited_to
from ser_fl.runs.folder import RunFolder

SETTINGS = ("run", "part", "allow_seen", "out")
Scored = Literal["train", "validation", "test", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredUtterance:
    """What the model says of one utterance."""

    utterance_id: str
    speaker: str
    emotion: str
    predicted: str
    probabilities: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Clean figures, in [0, 1]."""

    corpus: str
    part: Scored
    num_utterances: int
    uar: float
    """Unweighted average recall over the emotions that both the model and the speech know."""
    uar_interval: tuple[float, float] | None
    """95 %, by resampling utterances within their emotion."""
    accuracy: float
    macro_f1: float
    recall: dict[str, float | None]
    """By emotion of the model; None for one that the speech lacks."""
    confusion: list[list[float]]
    """Utterances; rows true, columns predicted, in the order of `recall`."""
    speaker_uar: dict[str, float]
    sex_uar: dict[str, float]
    left_out: dict[str, int]
    """Utterances of emotions that the model does not know, which are not scored."""
    shared: Shared | None
    """With what the model has heard; None where the run does not say what that was."""
    utterances: tuple[ScoredUtterance, ...]

    def words(self) -> list[str]:
        """What a reader of the figures must know, a line each."""
        lacking = [emotion for emotion, recall in self.recall.items() if recall is None]
        left_out = ", ".join(f"{emotion} ({count})" for emotion, count in self.left_out.items())
        unknown = " and ".join(self.shared.missing) if self.shared else ""
        return [
            str(self.shared or "what was heard in training is not on record: these utterances may be among it"),
            *([f"what {unknown} heard is not on record: these utterances may be among it"] if unknown else []),
            *([f"not scored, since the model does not know these emotions: {left_out}"] if self.left_out else []),
            *([f"no utterance of {', '.join(lacking)}, which the model knows"] if lacking else []),
        ]

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
    settings: Sequence[str] = (),
    *,
    part: Scored | None = None,
    allow_seen: bool = False,
    on_features: OnFeatures | None = None,
) -> Evaluation:
    """Score the selected model of a run on utterances of its own corpus or of another.

    Args:
        run: the run folder, or what `ser_fl.train` gave.
        settings: of the speech, as `ser_fl.compose` takes them: ``["data=ravdess", "data.root=DIR"]`` for another
            corpus, ``["data.root=DIR"]`` for the run's own in another place.
        part: of the split; None is the test part of the run's own corpus, and all of another.
        allow_seen: whether utterances that the model was trained on or selected by are scored, and counted.
        on_features: told how far the features are.

    Raises:
        UserError: the run or the corpus cannot be read, they have no emotion in common, the model gives no finite
            output for an utterance, or utterances were heard in training and ``allow_seen`` is false.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    trained = load_run(folder.root, network=getattr(run, "network", None))
    is_other = any(setting.startswith("data=") for setting in settings)
    chosen = compose(settings, config_file=None if is_other else folder.config)
    config = replace(trained.config, data=chosen.data, split=chosen.split)
    part = part or ("all" if is_other else "test")
    if part not in (*PARTS, "all"):
        raise unknown_name("part", part, (*PARTS, "all"))
    corpus = open_configured_corpus(config)
    classes, everything = trained.model.classes, corpus.utterances
    store = compute_features(
        corpus,
        config.frontend,
        cache_dir=config.data.cache_dir,
        progress=on_features,
        classes=tuple(sorted({*classes, *(utterance.emotion for utterance in everything)})),
    )
    chosen_rows = range(len(everything)) if part == "all" else getattr(split_corpus(everything, config.split), part)
    rows = tuple(row for row in chosen_rows if everything[row].emotion in classes)
    left_out = Counter(everything[row].emotion for row in chosen_rows if everything[row].emotion not in classes)
    if not rows:
        raise UserError(
            f"the model knows {', '.join(classes)}, the utterances are {', '.join(sorted(left_out))}: data.labels maps "
            "the emotions of a manifest"
        )
    utterances = [everything[row] for row in rows]
    heard, shared = Heard.read(folder.heard, folder.heard_sounds), None
    if (heard is None or heard.missing) and not (is_other or part == "test" or allow_seen):
        raise UserError(
            f"{folder.root} does not say all that it heard in training, and of its own corpus the test part alone is "
            "new: take part=test, or score the others with allow_seen=true"
        )
    if heard is not None:
        seen = heard.refuse(store, rows, config.frontend, allow_seen=allow_seen)
        shared = Shared.between(
            utterances, recordings=seen, speakers=heard.speakers, texts=heard.texts, missing=heard.missing
        )
    with torch.no_grad(), threads_limited_to(trained.config.executor.threads):
        parts = (load_examples(store, batch, trained.model.standardisation) for batch in batches_of([rows]))
        probabilities_NC = torch.cat([trained.model.network(one.features_NFL).float().softmax(dim=1) for one in parts])
    if not probabilities_NC.isfinite().all():
        first = int((~probabilities_NC.isfinite().all(dim=1)).nonzero()[0])
        raise UserError(f"the model of {folder.root} gives no finite output for {utterances[first].utterance_id}")
    predicted_N = probabilities_NC.argmax(dim=1).tolist()
    labels_N = [classes.index(utterance.emotion) for utterance in utterances]
    confusion = confusion_matrix(labels_N, predicted_N, len(classes))
    recognised_N = np.asarray(np.equal(labels_N, predicted_N), dtype=np.float64)
    figures = scores(confusion)
    return Evaluation(
        corpus=corpus.name,
        part=part,
        num_utterances=len(rows),
        uar=figures.uar,
        uar_interval=Bootstrap.of(labels_N, [one.utterance_id for one in utterances], 0).interval(recognised_N),
        accuracy=figures.accuracy,
        macro_f1=figures.macro_f1,
        recall=dict(zip(classes, figures.per_class_recall, strict=True)),
        confusion=confusion.tolist(),
        speaker_uar=uar_by_group(recognised_N, labels_N, [utterance.speaker for utterance in utterances]),
        sex_uar=uar_by_group(recognised_N, labels_N, [utterance.sex for utterance in utterances]),
        left_out=dict(sorted(left_out.items())),
        shared=shared,
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
    )
