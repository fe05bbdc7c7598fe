"""What a model has to beat: a linear SVM and a logistic regression on functionals, on the same split, normalisation and
test utterances.

Legend: N utterances, F functionals, C classes.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ser_fl.config.compose import compose
from ser_fl.config.schema import Config, dump
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.enrolment import enrolled, in_words, training_mean
from ser_fl.data.features import FeatureStore, OnFeatures, compute_features, load_examples
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.functionals import OPENSMILE_LICENCE, FunctionalsConfig, Kind, installed_opensmile
from ser_fl.data.splits import PARTS, Indices, Split, split_corpus
from ser_fl.devices import exact_arithmetic
from ser_fl.errors import UserError, unknown_name
from ser_fl.files import write_json
from ser_fl.metrics import Bootstrap, confusion_matrix, recording_products, scores, uar_by_group, uar_of
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.lock import claimed
from ser_fl.runs.records import BASELINE_SCHEMA, Baseline, BaselineRecord
from ser_fl.runs.zoo import writable_run

KINDS: tuple[Kind, ...] = ("logmel", "opensmile")
CLASSIFIERS = ("svm", "logistic")
REGULARISATIONS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Values of C that are tried; of equals the smallest is taken."""
_INNER_FOLDS = 6
_BOX = 10.0
"""Deviations that scaled functionals are cut at, as features of a run are."""

_LOG = logging.getLogger(__name__)

Array = NDArray[np.float64]
Group = Literal["speaker", "text", "recording"]


def baseline(
    run: Config | Path | str | RunFolder,
    *,
    features: Kind = "logmel",
    root: Path | str | None = None,
    on_features: OnFeatures | None = None,
) -> Baseline:
    """Train both classifiers on functionals of all that a run does not test on, and score its test utterances.
    ``baseline.json`` in the run folder then has them, beside those on other functionals.

    The training and validation parts are learnt from together, since a validation part alone chooses C badly: inner
    folds choose it that share no speaker, or where the test has the training speakers no text or no recording.
    Functionals are scaled as the run scales: by mean and deviation over all these clips, or over each speaker's own
    clips, unseen speakers by those that enrol them; then cut at ten deviations. Emotions count alike (scikit-learn's
    ``class_weight="balanced"``). Nothing here is federated: all training functionals are in one place.

    Args:
        run: the run folder, or what `ser_fl.train` gave; or what `ser_fl.compose` gives, and then the file goes to
            ``run_dir``, or to a new folder ``runs/baseline/<date-time>``.
        features: "logmel" or "opensmile", see `ser_fl.data.functionals`.
        root: folder of a run's corpus, where it is no longer the one in its ``config.yaml``.
        on_features: told how far the functionals are.

    Raises:
        UserError: scikit-learn or opensmile is not installed, the corpus or the split do not fit, a speaker is enrolled
            by one clip or by all there are to score, or the test utterances are not those that the run was tested on.
    """
    check_installed(features)
    if isinstance(run, Config):
        place, config = RunFolder(own_folder(run)), run
        if place.config.exists():
            raise UserError(f"{place.root} is the folder of a run: ser-fl baseline run={place.root}")
    else:
        place = run if isinstance(run, RunFolder) else RunFolder(writable_run(run))
        place.refuse_no_run()
        place.refuse_links_out()
        config = compose([] if root is None else [f"data.root={root}"], config_file=place.config)
    with claimed(place.root):
        found = _measured(config, features, on_features)
        if place.summary.exists() and config.federation.name != "local_only":
            _refuse_others(place, found.records[0])
        if (earlier := place.read_baseline()) and replace(earlier, records=found.records) == found:
            others = (one for one in earlier.records if one.features != features)
            found = replace(found, records=(*others, *found.records))
        write_json(place.baseline, {"schema": BASELINE_SCHEMA, **asdict(found)})
    return found


def check_installed(features: str) -> None:
    """Refuse (`UserError`) functionals that are unknown, or a package that is missing for them."""
    if features not in KINDS:
        raise unknown_name("features", features, KINDS)
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError("ser-fl baseline needs scikit-learn: pip install scikit-learn") from None
    if features == "opensmile":
        installed_opensmile()


def own_folder(config: Config) -> Path:
    """Of a baseline without a run."""
    if config.run_dir:
        return Path(config.run_dir).expanduser()
    return Path("runs", "baseline", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")


def _refuse_others(run: RunFolder, ours: BaselineRecord) -> None:
    """Refuse (`UserError`) figures beside those of a run that was tested on other utterances."""
    try:
        theirs = np.sum(run.read_json(run.summary)["test"]["confusion"], axis=1)
    except (KeyError, TypeError, ValueError):  # the run has not finished
        return
    if not np.array_equal(theirs, np.sum(ours.confusion, axis=1)):
        raise UserError(
            f"{run.root} was tested on {theirs.sum():g} utterances, and its corpus now gives "
            f"{np.sum(ours.confusion):g} or others: was it changed? root=DIR names the one that it was trained on"
        )


@exact_arithmetic()
def _measured(config: Config, kind: Kind, on_features: OnFeatures | None) -> Baseline:
    if len(config.data.corpora) > 1:
        raise UserError(
            f"a baseline is of one corpus, got {config.data.written}: ser-fl baseline data=NAME data.root=DIR"
        )
    corpus, by_speaker = open_configured_corpus(config), config.normalisation.name == "speaker"
    validated = config.selection.needs_validation
    split = split_corpus(corpus.utterances, config.split, corpus=corpus.name, validated=validated)
    speakers, scaling = [utterance.speaker for utterance in corpus.utterances], None
    strangers = {speakers[row] for row in split.test} - {speakers[row] for row in split.train}
    settings = FunctionalsConfig(kind, config.frontend)
    store = compute_features(corpus, settings, cache_dir=config.data.cache_dir, progress=on_features)
    if kind == "opensmile":
        _LOG.warning("%s", OPENSMILE_LICENCE)
    if by_speaker:
        fallback = training_mean(store, split) if config.normalisation.share_mean else None
        store, split = enrolled(store, split, config.enrolment, seed=config.split.seed, fallback=fallback)
        scaling = in_words(config.enrolment, len(strangers))
    by: Group = "speaker" if strangers else "text" if config.split.is_by_text else "recording"
    told = "\0".join(f"{store.utterances[row].utterance_id}\0{store.utterances[row].emotion}" for row in split.test)
    return Baseline(
        corpus=corpus.name,
        split=dump(config)["split"],
        synthetic=corpus.synthetic,
        normalisation=config.normalisation.name,
        enrolment=config.enrolment if by_speaker else None,
        scaling=scaling,
        num_utterances={part: len(rows) for part, rows in zip(PARTS, split, strict=True)},
        utterances=blake2b(told.encode(), digest_size=8).hexdigest(),
        records=tuple(_records(store, split, kind, by)),
    )


def scaled(store: FeatureStore, seen: Indices, test: Indices) -> tuple[Array, Array]:
    """Functionals of shape (N, F) of what is learnt from and of the test: by the former where the store scales no
    speaker.
    """
    columns = FeatureStatistics.of(store.features_NFL[list(seen)]).mean_and_deviation()
    if store.scales is not None:
        columns = torch.zeros_like(columns[0]), torch.ones_like(columns[1])
    side = torch.full_like(columns[0], _BOX)
    standardisation = Standardisation(*columns, -side, side)
    seen_NF, test_NF = (
        load_examples(store, rows, standardisation).features_NFL[..., 0].double().numpy() for rows in (seen, test)
    )
    return seen_NF, test_NF


def _records(store: FeatureStore, split: Split, kind: Kind, by: Group) -> Iterator[BaselineRecord]:
    seen = tuple(sorted((*split.train, *split.validation)))
    seen_NF, test_NF = scaled(store, seen, split.test)
    labels_N, groups_N = store.labels_N[list(seen)].tolist(), [getattr(store.utterances[row], by) for row in seen]
    if len({*labels_N}) < 2:
        raise UserError("what does not test has one emotion only: a classifier needs two")
    names = ("scikit-learn", "numpy", "ser-fl", *(("opensmile",) if kind == "opensmile" else ()))
    versions = {name: version(name) for name in names}
    for name in CLASSIFIERS:
        c, inner_uar = chosen(name, seen_NF, labels_N, groups_N)
        predicted_N = fitted(name, c, seen_NF, labels_N).predict(test_NF).tolist()
        figures = _figures(store, split.test, predicted_N)
        yield BaselineRecord(features=kind, classifier=name, c=c, inner_uar=inner_uar, versions=versions, **figures)


def chosen(name: str, features_NF: Array, labels_N: Sequence[int], groups_N: Sequence[str]) -> tuple[float, float]:
    """C of the highest UAR of a classifier over inner folds, of which no two share a group, and that UAR."""
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.asarray(labels_N)
    predicted = {c: labels.copy() for c in REGULARISATIONS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an emotion that some group lacks
        folds = StratifiedGroupKFold(min(_INNER_FOLDS, len({*groups_N})), shuffle=True, random_state=0)
        inner = [rows for rows in folds.split(features_NF, labels, groups_N) if len(rows[1])]
    for train, held_out in inner:
        for c, said in predicted.items():
            said[held_out] = fitted(name, c, features_NF[train], labels[train]).predict(features_NF[held_out])
    uars = {c: uar_of((said == labels) * 1.0, labels_N) for c, said in predicted.items()}
    best = max(uars, key=uars.__getitem__)  # of equals the first
    return best, uars[best]


def fitted(name: str, c: float, features_NF: Array, labels_N: Any) -> Any:
    """A classifier of scikit-learn's by our name for it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    settings: dict[str, Any] = {"C": c, "class_weight": "balanced"}
    made = SVC(kernel="linear", **settings) if name == "svm" else LogisticRegression(max_iter=3000, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a C that is too large to be chosen
        return made.fit(features_NF, labels_N)


def _figures(store: FeatureStore, rows: Indices, predicted_N: Sequence[int]) -> dict[str, Any]:
    utterances, labels_N = [store.utterances[row] for row in rows], store.labels_N[list(rows)].tolist()
    recordings, speakers = [one.recording for one in utterances], [one.speaker for one in utterances]
    recognised_N, size = np.equal(labels_N, predicted_N).astype(np.float64), len(store.classes)
    confusion = confusion_matrix(labels_N, predicted_N, size)
    found = scores(confusion)
    of_speakers = {}
    for speaker in sorted({*speakers}):
        own = [place for place, name in enumerate(speakers) if name == speaker]
        of_speakers[speaker] = confusion_matrix([labels_N[i] for i in own], [predicted_N[i] for i in own], size)
    is_cut = len({*recordings}) < len(recordings)
    return {
        "uar": found.uar,
        "uar_interval": Bootstrap.of(labels_N, recordings, 0).interval(recognised_N),
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "recall": dict(zip(store.classes, found.per_class_recall, strict=True)),
        "speaker_uar": uar_by_group(recognised_N, labels_N, speakers),
        "confusion": tuple(map(tuple, confusion.tolist())),
        "speaker_confusion": {name: tuple(map(tuple, counts.tolist())) for name, counts in of_speakers.items()},
        "recording_products": (
            tuple(map(tuple, recording_products(recognised_N, labels_N, recordings, size).tolist())) if is_cut else ()
        ),
    }
