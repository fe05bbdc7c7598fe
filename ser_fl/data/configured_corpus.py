"""The corpus that a configuration names, wherever it lies."""

import logging
from pathlib import Path

from ser_fl.config.schema import Config
from ser_fl.data.corpora import open_corpus
from ser_fl.data.joint import JointCorpus
from ser_fl.data.synthetic import SyntheticCorpus
from ser_fl.data.utterance import Corpus
from ser_fl.errors import UserError
from ser_fl.runs.redaction import is_place

_LOG = logging.getLogger(__name__)


def open_configured_corpus(config: Config) -> Corpus:
    """The corpus that the configuration names, or several of them as one."""
    data, members = config.data, list[Corpus]()
    several = len(data.corpora) > 1
    for name in data.corpora:
        if name == "builtin":
            members.append(SyntheticCorpus(data.num_speakers, data.utterances_per_emotion))
            continue
        root = data.folders[name]
        assert root is not None
        if is_place(root):
            ways = f"data.roots.{name}=DIR" if several else "data.root=DIR (train) or root=DIR (benchmark, transfer)"
            raise UserError(
                f"the run has its corpus at {root}, which this machine does not know: say where it is, with {ways}"
            )
        corpus = open_corpus(
            name,
            Path(root),
            channel=data.channel,
            on_unreadable=data.on_unreadable,
            labels=(data.labels if name == "manifest" or not several else None) or None,
            to_hz=config.frontend.sample_rate_hz,
            segment_s=data.segment_s,
            root_name=f"data.roots.{name}" if several else "data.root",
        )
        for skipped in corpus.skipped:
            _LOG.warning("left out %s: %s", skipped.utterance_id, skipped.reason)
        members.append(corpus)
    return JointCorpus(members) if several else members[0]
