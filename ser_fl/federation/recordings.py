"""The recordings behind the features that clients hold, for those who train on attacked ones."""

from copy import deepcopy

import torch

from ser_fl.attacks.waveform_domain import Waveform
from ser_fl.config.schema import Config
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.frontend_registry import build_frontend
from ser_fl.data.prepared import Prepared


def recordings_of(config: Config, data: Prepared, device: torch.device) -> Waveform:
    """Of the corpus, read when they are asked for, as what attacks move; scaled as clients' features are."""
    corpus, utterances, scales = open_configured_corpus(config), data.store.utterances, data.store.scales
    by_id = {utterance.utterance_id: utterance for utterance in corpus.utterances}
    rows = {utterance.utterance_id: row for row, utterance in enumerate(utterances)}
    return Waveform(
        frontend=build_frontend(config.frontend).to(device).eval(),
        standardisation=deepcopy(data.standardisation).to(device),
        read=lambda key: corpus.read(by_id[key]),
        scale_of=None if scales is None else lambda ids: scales.of(torch.tensor([rows[key] for key in ids])),
    )
