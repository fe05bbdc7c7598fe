"""What a benchmark keeps of its work: what attacks did to every utterance, and what they have made so far.

Everything is under a key that says what the result depends on, so that whoever asks for the same gets the same bits,
whether they were made a moment ago, before a kill, or in an earlier benchmark.

Legend: N utterances, B of a batch, F mel bins, L frames, R runs of a defence.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from ser_fl.attacks.domains import Crafted
from ser_fl.attacks.registry import VERSION
from ser_fl.errors import UserError
from ser_fl.files import write_bytes, write_json
from ser_fl.robustness.outcomes import Outcome

OUTCOME_SCHEMA = 3
"""Version of the files below ``attacks/``; those of another are left alone and made anew."""
_SHOWN, _WRITTEN = "adversarial_BFL", "written_BFL"
_COSTS = ("forward_passes", "backward_passes", "seconds")


_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)


def key_of(settings: Mapping[str, Any]) -> str:
    """One word for what an outcome depends on beside its test_set, the version of the attacks included."""
    content = json.dumps({"version": VERSION, **settings}, sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


@dataclass(slots=True)
class Memory:
    """Keeps outcomes and adversarial batches until the benchmark ends."""

    keeps_adversarials: bool = False
    """Whether adversarial utterances are to stay when nobody needs them any more."""
    _outcomes: dict[str, Outcome] = field(default_factory=dict)
    _batches: dict[str, dict[tuple[str, ...], Crafted]] = field(default_factory=dict)

    def outcome(self, key: str) -> Outcome | None:
        """The outcome of that key, where there is one."""
        return self._outcomes.get(key)

    def keep_outcome(self, key: str, outcome: Outcome) -> None:
        """Keep it, in place of one that there may be."""
        self._outcomes[key] = outcome

    def outcomes(self) -> dict[str, Outcome]:
        """All outcomes that are kept, by key."""
        return dict(self._outcomes)

    def batch(self, key: str, ids: Sequence[str]) -> Crafted | None:
        """What was made of exactly these utterances, where it was."""
        return self._batches.get(key, {}).get(tuple(ids))

    def keep_batch(self, key: str, ids: Sequence[str], made: Crafted) -> None:
        """Keep what was made of these utterances."""
        self._batches.setdefault(key, {})[tuple(ids)] = made

    def forget_batches(self, key: str) -> None:
        """Drop all adversarial utterances of a key."""
        self._batches.pop(key, None)


@dataclass(frozen=True, slots=True)
class Folder:
    """`Memory` on disk: ``KEY.json`` an outcome, ``KEY/*.safetensors`` its batches, each written whole."""

    root: Path
    device: torch.device
    """Where batches go when they are read."""
    shape_FL: tuple[int, ...]
    """Of an utterance: batches of others are made anew."""
    keeps_adversarials: bool = False

    def outcome(self, key: str) -> Outcome | None:
        return _read_outcome(self.root / f"{key}.json")

    def keep_outcome(self, key: str, outcome: Outcome) -> None:
        content = {"schema": OUTCOME_SCHEMA, **asdict(outcome)}
        write_bytes(self.root / f"{key}.json", (json.dumps(content) + "\n").encode())

    def outcomes(self) -> dict[str, Outcome]:
        read = {file.stem: _read_outcome(file) for file in sorted(self.root.glob("*.json"))}
        return {key: outcome for key, outcome in read.items() if outcome is not None}

    def batch(self, key: str, ids: Sequence[str]) -> Crafted | None:
        try:
            with safe_open(self._file(key, ids), framework="pt") as file:
                cost = json.loads(file.metadata()["cost"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                shown = {name: tensors.pop(name).to(self.device) for name in (_SHOWN, _WRITTEN) if name in tensors}
                crafted = Crafted(
                    adversarial_NFL=shown[_SHOWN], written_NFL=shown.get(_WRITTEN), figures=tensors, **cost
                )
        except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            return None
        shape = (len(ids), *self.shape_FL)
        fits = all(tensor.shape == shape and tensor.dtype == torch.float32 for tensor in shown.values())
        return crafted if fits and all(len(value_N) == len(ids) for value_N in tensors.values()) else None

    def keep_batch(self, key: str, ids: Sequence[str], made: Crafted) -> None:
        cost = {name: getattr(made, name) for name in _COSTS}
        metadata = {"ids": json.dumps(list(ids)), "cost": json.dumps(cost)}
        tensors = {**made.figures, _SHOWN: made.adversarial_NFL}
        if made.written_NFL is not None:
            tensors[_WRITTEN] = made.written_NFL
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_bytes(self._file(key, ids), save_tensors(whole, metadata=metadata))

    def forget_batches(self, key: str) -> None:
        shutil.rmtree(self.root / key, ignore_errors=True)

    def _file(self, key: str, ids: Sequence[str]) -> Path:
        name = hashlib.blake2b(json.dumps(list(ids)).encode(), digest_size=8).hexdigest()
        return self.root / key / f"{name}.safetensors"


ResultCache = Memory | Folder
"""Where outcomes and adversarial batches are kept."""


def adversarials(folder: Path) -> dict[str, Tensor]:
    """Adversarial features of shape (F, L) by utterance id, from what `keep_adversarials` left.

    Args:
        folder: one of ``RUN/attacks/*/*/``; the ``.json`` of the same name says which attack made them.

    Raises:
        UserError: a file is damaged.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                ids = json.loads(file.metadata()["ids"])
                found |= dict(zip(ids, file.get_tensor(_SHOWN), strict=True))
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read ({reason}): run `ser-fl benchmark` again") from None
    return found


@dataclass(frozen=True, slots=True)
class Archive:
    """``RUN/attacks``: a folder for every set of utterances, seed and device that a model was attacked with."""

    root: Path

    def knows(self, weights: str) -> bool:
        """Whether a model of this digest was attacked, whatever else the folder knows."""
        return any(_read(file).get("weights") == weights for file in self.root.glob("*/test_set.json"))

    def open(
        self, digest: str, weights: str, *, device: torch.device, shape_FL: tuple[int, ...], keeps_adversarials: bool
    ) -> Folder:
        """The folder of a test_set, made where it is not there."""
        root = self.root / digest
        if _read(root / "test_set.json").get("weights") != weights:
            write_json(root / "test_set.json", {"weights": weights})
        return Folder(root, device, shape_FL, keeps_adversarials)

    def clear(self) -> None:
        """Drop everything."""
        shutil.rmtree(self.root, ignore_errors=True)


def _read(file: Path) -> dict[str, Any]:
    """Content of a JSON file; empty where it is missing or damaged: what it was made of is there to make it anew."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_outcome(file: Path) -> Outcome | None:
    content = _read(file)
    if content.pop("schema", None) != OUTCOME_SCHEMA or content.keys() != {entry.name for entry in fields(Outcome)}:
        return None
    try:
        outcome = _OUTCOME.validate_python(content)
    except ValidationError:
        return None
    return outcome if _has_one_figure_an_utterance(outcome) else None


def _has_one_figure_an_utterance(outcome: Outcome) -> bool:
    votes = (runs for kind in (outcome.votes, outcome.written_votes) for runs in kind.values())
    rows = (outcome.l2_N, outcome.linf_N, *outcome.measured.values(), *(run for runs in votes for run in runs))
    return all(len(row) == len(outcome.ids) for row in rows)
