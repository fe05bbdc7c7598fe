"""What a server knows of its clients' data: names, counts and sums, and neither audio nor features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ser_fl.data.frontend import Standardisation
from ser_fl.data.splits import Part, Split
from ser_fl.data.utterance import SkippedFile, Utterance

Sizes = dict[Part, dict[str, int]]
"""Utterances of each part by speaker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientManifest:
    """The clients of an experiment, and how much each speaker has of each part."""

    classes: tuple[str, ...]
    client_ids: tuple[str, ...]
    """In the order in which their updates are summed."""
    sizes: Sizes
    standardisation: Standardisation
    digest: str
    """Of utterances, labels, split, clients and standardisation: a resumed run must find the data that it left."""
    skipped: tuple[SkippedFile, ...] = ()
    """Files that could not be used and were left out, with ``data.on_unreadable=skip``."""

    def num_utterances(self, part: Part) -> int:
        """Utterances of a part, of all speakers together."""
        return sum(self.sizes[part].values())

    def speakers(self, part: Part) -> list[str]:
        """The speakers who have utterances in a part, by name."""
        return sorted(self.sizes[part])


def digest_of_speakers(utterances: Sequence[Utterance], split: Split) -> dict[str, str]:
    """A digest of each speaker's utterances, labels and split, by which a server sees whether they have changed."""
    digests = {utterance.speaker: blake2b(digest_size=16) for utterance in utterances}
    part_of = {index: part for part, indices in split.parts.items() for index in indices}
    for index, utterance in enumerate(utterances):
        content = repr((utterance.utterance_id, utterance.emotion, part_of.get(index)))
        digests[utterance.speaker].update(content.encode())
    return {speaker: digest.hexdigest() for speaker, digest in digests.items()}


def digest_of_all(speakers: Mapping[str, str], client_ids: Sequence[str], standardisation: Standardisation) -> str:
    """One digest of an experiment's data, the same on whatever nodes the speakers are."""
    digest = blake2b(repr((sorted(speakers.items()), tuple(client_ids))).encode(), digest_size=16)
    for tensor in standardisation.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
