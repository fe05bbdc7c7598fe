"""Who is scaled by which clips (normalisation=speaker): training speakers by theirs, others by some that enrol them.

A client scales its speakers by the clips that it trains on. A speaker that nobody trained on is enrolled by some clips,
of which nobody tells the emotion.
"""

from dataclasses import replace
from itertools import chain

from torch import Tensor

from ser_fl.config.data import Enrolment
from ser_fl.data.features import FeatureStore
from ser_fl.data.frontend import FeatureStatistics
from ser_fl.data.normalisation import Scale, SpeakerScales
from ser_fl.data.splits import Indices, Split, holders
from ser_fl.errors import UserError
from ser_fl.randomness import derive_seed


def enrolled(
    store: FeatureStore, split: Split, enrolment: Enrolment, *, seed: int, fallback: Scale | None = None
) -> tuple[FeatureStore, Split]:
    """The store with a scale for every speaker, and the split without the clips that enrol.

    Speakers of the training part are scaled by all their clips there, whatever part is scored. Others of the test part
    are enrolled by ``enrolment`` of their clips in it, drawn by seed and clip, so that more clips are the fewer ones
    and some, and these are not scored; by "all", which are scored nevertheless (transductive: a system that hears one
    clip after the other does not have them); or by "none", and then they have the ``fallback``. Validation speakers are
    enrolled by all their clips.

    Raises:
        UserError: a test speaker has no clip left to score, or one alone that has no deviation; or there is no
            fallback.
    """
    utterances = store.utterances
    trained = holders(utterances, split.train)
    scales: dict[str, Scale] = {
        speaker: scale_of(store.features_NFL, rows)
        for speaker, rows in (*holders(utterances, split.validation).items(), *trained.items())
    }
    enrolled_by: dict[str, Indices] = {}
    for speaker, rows in holders(utterances, split.test).items():
        if speaker in trained:
            continue
        if enrolment == "none":
            if fallback is None:
                raise UserError(
                    "enrolment=none needs a run with normalisation.share_mean=true, whose clients told what the mean "
                    "of their speakers is: enrol by a number of clips, or all"
                )
            scales[speaker] = fallback
            continue
        if enrolment != "all":
            if enrolment >= len(rows):
                raise UserError(
                    f"enrolment={enrolment} must leave a clip of each unseen speaker to be scored, and {speaker} has "
                    f"{len(rows)}: lower it, or take enrolment=all"
                )
            ids = {row: utterances[row].alone().utterance_id for row in rows}  # whatever corpora are beside its own
            rows = tuple(sorted(rows, key=lambda row: derive_seed("enrolment", seed, ids[row]))[:enrolment])
            enrolled_by[speaker] = rows
        near = None if enrolment == "all" and len(rows) > 1 else fallback  # all there is to know of the speaker
        scales[speaker] = Scale.enrolled(store.features_NFL[list(rows)], near)
    names = (each.speaker for each in utterances)
    table = replace(SpeakerScales.of_names(scales, names, enrolled_by), near=fallback)
    left_out = set(chain(*enrolled_by.values()))
    test = tuple(row for row in split.test if row not in left_out)
    return replace(store, scales=table), split._replace(test=test)


def scale_of(features_NFL: Tensor, rows: Indices) -> Scale:
    """By all clips of some rows."""
    return Scale.of(FeatureStatistics.of(features_NFL[list(rows)]))


def training_mean(store: FeatureStore, split: Split) -> Scale:
    """The fallback, where all training speakers are on this machine."""
    return Scale.average(scale_of(store.features_NFL, rows) for rows in holders(store.utterances, split.train).values())


def in_words(enrolment: Enrolment, strangers: int) -> str:
    """What a reader of figures must know of the scales, and of how many speakers that nobody trained on."""
    if not strangers:
        return "each speaker scaled by own training clips"
    how = {
        "all": "all their clips, unlabelled, the scored ones included (transductive)",
        "none": "the mean of training speakers",
    }.get(str(enrolment), f"{enrolment} unlabelled clips each, which are not scored")
    return f"{strangers} unseen speakers scaled by {how}"
