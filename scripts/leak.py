"""What a curious server gets back of a recording by enrolment alone, of a node without a policy and of nodes with one.

A server may ask for sums over any set of training utterances, of clips of any length. Of a set of one utterance, the
sums over L and over L - 1 frames differ by the frame L: the log-mel spectrogram itself. Of larger sets it asks twice,
with one utterance exchanged for another, and gets the difference of these two. The node is the unmodified ClientApp.

    python scripts/leak.py results/leak/leak.json
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from ser_fl.config.compose import compose
from ser_fl.config.policy import DEFAULT
from ser_fl.data.prepared import Host, open_partition
from ser_fl.federation.flower.client_app import app
from ser_fl.federation.flower.nodes import told_settings
from ser_fl.federation.flower.serialisation import WireError, put_json, take, take_json
from ser_fl.files import write_json
from ser_fl.metrics import Floats

NUM_FRAMES, SPEAKER = 60, "f01"
CLASSES = ("anger", "disgust", "fear", "guilt", "happiness", "sadness", "surprise")
ONE = {"test_fraction": 0.98, "validation_fraction": 0.0}
"""Of 56 utterances 55 are tested with, and one trains."""
MANY = {"test_fraction": 0.2, "validation_fraction": 0.0}
_SETTINGS = ("experiment=debug", "tracking=none", "model=pooled", "data.utterances_per_emotion=8", "executor=flower")

Ask = Callable[[dict[str, Any]], RecordDict]
"""An enrolment with some settings, and what the node answers."""


@cache
def base() -> dict[str, Any]:
    """Settings that are composed once."""
    return told_settings(compose(_SETTINGS))


def settings(num_frames: int, split: dict[str, Any]) -> dict[str, Any]:
    """An experiment whose clips have so many frames."""
    told = deepcopy(base())
    front_end = told["frontend"]
    samples = front_end["window_samples"] + (num_frames - 1) * front_end["hop_samples"]
    front_end["duration_s"] = samples / front_end["sample_rate_hz"]
    told["split"] |= split
    return told


def sums(ask: Ask, split: dict[str, Any], most: int) -> Iterator[Floats]:
    """Over the first frame of all clips, the first two, and so on; none that the node does not tell."""
    for num_frames in range(1, most + 1):
        records = ask(settings(num_frames, split))
        try:
            yield take(records, f"statistics/{SPEAKER}")["sum_F"].numpy()
        except WireError:
            yield np.full(64, np.nan)


def recover(ask: Ask, split: dict[str, Any], other: dict[str, Any] | None = None, most: int = NUM_FRAMES) -> Floats:
    """The frames of one utterance, or the difference of two; NaN where the node did not answer."""
    found = np.array([*sums(ask, split, most)])
    if other is not None:
        found = found - np.array([*sums(ask, other, most)])
    return np.diff(found, axis=0, prepend=np.zeros((1, 64)))


def truth(split: dict[str, Any], other: dict[str, Any] | None = None, most: int = NUM_FRAMES) -> Floats:
    """What a server should never see."""
    found = []
    for each in filter(None, (split, other)):
        config = Host().config_of(settings(most, each))
        share = open_partition(config, Host(speakers=(SPEAKER,)), CLASSES)
        found.append(share.store.features_NFL[list(share.clients[SPEAKER])].double().sum(0).T.numpy())
    difference: Floats = found[0] - found[1] if other is not None else found[0]
    return difference


def exchanged() -> dict[str, Any]:
    """`MANY`, where one utterance that trains and one that tests have changed places."""
    return MANY | {"exchanges": [["test", SPEAKER, "anger", "fear"]]}


def asking(node_config: dict[str, str], refusals: list[str]) -> Ask:
    """A node, asked as Flower asks it; what it refuses is added to a list."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def ask(told: dict[str, Any]) -> RecordDict:
        records = RecordDict()
        put_json(records, {"config": told, "classes": CLASSES})
        message = Message(records, 1, "query.enrol")
        message.metadata.__dict__["_message_id"] = "1"
        answer = app(message, Context(1, 1, dict(node_config), RecordDict(), {})).content
        refusals.extend(filter(None, [take_json(answer).get("error")]))
        return answer

    return ask


def measure(
    policy: str | None, split: dict[str, Any], other: dict[str, Any] | None = None, most: int = NUM_FRAMES
) -> dict[str, Any]:
    """One attack on a new node."""
    with tempfile.TemporaryDirectory() as folder:
        node, refusals = {"speakers": SPEAKER}, list[str]()
        if policy is not None:
            file = Path(folder, "site.policy.yaml")
            file.write_text(policy)
            file.chmod(0o600)
            node |= {"policy": str(file), "state": folder}
        found, real = recover(asking(node, refusals), split, other, most), truth(split, other, most)
    known = ~np.isnan(found).any(1)
    return {
        "messages": most * (2 if other else 1),
        "refused": len(refusals),
        "frames_recovered": int((np.abs(found - real).max(1) < 1e-3)[known].sum()),
        "largest_error": float(np.abs(found - real)[known].max()) if known.any() else None,
        "reasons": sorted(set(refusals)),
    }


def main(target: Path) -> None:
    policies = {"no policy": None, "the default policy": DEFAULT}
    write_json(
        target,
        {
            name: {
                "a set of one utterance": measure(policy, ONE),
                "two sets that differ in one": measure(policy, MANY, exchanged()),
            }
            for name, policy in policies.items()
        },
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
