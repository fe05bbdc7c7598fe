"""What a benchmark keeps of its work: what attacks did to every utterance, and what they have made so far.

Everything is under a key that says what the result depends on, so that whoever asks for the same gets the same bits,
whether they were made a moment ago, before a kill, or in an earlier benchmark.

Legend: N utterances, B of a batch, F mel bins, L frames, R runs of a defence.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from ser_fl.attacks.domains import Crafted
from ser_fl.defences import Defence
from ser_fl.devices import CPU
from ser_fl.errors import UserError, one_line
from ser_fl.files import record_of, write_bytes, write_json
from ser_fl.robustness.test_set import TestSet
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import CLEAN, AttackFacts, AttackRecord

OUTCOME_SCHEMA = 3
"""Version of the files below ``attacks/``; those of another are left alone and made anew."""
_SHOWN, _WRITTEN = "adversarial_BFL", "written_BFL"
_DAMAGE = (SafetensorError, ValueError, KeyError, TypeError, RecursionError)
"""What reading a file of tensors raises that is not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(AttackFacts):
    """What one attack did to each of its utterances."""

    epsilon: float | None = None
    """As it was set, in L-infinity; None for a budget that is no epsilon."""
    budget: float | None = None
    """Of the attack's own norm."""
    adaptive_to: str | None = None
    """The defence that the attacker knew of."""
    leftover: bool = False
    """Whether it saw only what earlier attacks had not broken."""
    minimal: bool = False
    """Whether the attack looks for the nearest adversarial utterance."""
    ids: tuple[str, ...]
    """Including those that a smaller epsilon had broken already."""
    l2_N: tuple[float, ...]
    linf_N: tuple[float, ...]
    votes: dict[str, tuple[tuple[int, ...], ...]]
    """By defence, what each run said of each utterance, (R, N)."""
    written_votes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """The same of recordings that went through a 16-bit file."""
    measured: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    """More figures of each utterance, by the name of the record's median over successes; None where there is none."""
    adversarials_kept: bool = False

    def was_shown_to(self, defence: Defence) -> bool:
        return len(self.votes.get(defence.name, ())) == len(defence.run_weights)

    def votes_RN(self, defence: str) -> Tensor:
        return torch.tensor(self.votes[defence], dtype=torch.int64)


@dataclass(slots=True, eq=False)
class ResultCache:
    """Keeps outcomes, and adversarial batches of exactly some utterances, by key: in a folder, ``KEY.json`` an outcome,
    ``KEY/*.safetensors`` its batches, each written whole; or, without one, until the benchmark ends.
    """

    root: Path | None = None
    device: torch.device = CPU
    """Where batches go when they are read."""
    shape_FL: tuple[int, ...] = ()
    """Of an utterance: batches of others are made anew."""
    keeps_adversarials: bool = False
    """Whether adversarial utterances are to stay when nobody needs them any more."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """To be added to by `keep_outcome`; those of the folder are read at once, but for damaged ones."""
    _batches: dict[str, dict[tuple[str, ...], Crafted]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunFolder, test_set: TestSet, *, keeps_adversarials: bool = False, fresh: bool = False) -> Self:
        """The folder of a test set below ``RUN/attacks``; its name is of all that attacks depend on, batches apart.
        Records of other weights or other speech, and with ``fresh`` all, are put aside first; outcomes of other weights
        go.
        """
        features_NFL, box = test_set.features_NFL, test_set.box
        state = sorted(test_set.model.state_dict().items())
        weights = digest_of(*chain(*((f"{name} {value.dtype} {tuple(value.shape)}", value) for name, value in state)))
        is_new = fresh or all(_read(file).get("weights") != weights for file in run.outcomes.glob("*/test_set.json"))
        now, earlier = test_set.speech, None if is_new else run.read_speech()
        if run.attacks.exists() and (is_new or (earlier and now and earlier.utterances != now.utterances)):
            run.attacks.replace(run.root / "attacks.before.json")
        if is_new:
            shutil.rmtree(run.outcomes, ignore_errors=True)
        known = (test_set.ids, test_set.num_classes, test_set.seed, features_NFL.device.type)
        tensors = (features_NFL, test_set.labels_N, box.lower_F1, box.upper_F1)
        root = run.outcomes / digest_of(f"{weights} {known!r}", *("none" if part is None else part for part in tensors))
        if _read(root / "test_set.json").get("weights") != weights:
            write_json(root / "test_set.json", {"weights": weights, "speech": test_set.speech})
        return cls(root, features_NFL.device, tuple(features_NFL.shape[1:]), keeps_adversarials)

    def __post_init__(self) -> None:
        names = {entry.name for entry in fields(Outcome)}
        for file in sorted(self.root.glob("*.json")) if self.root else ():
            content = _read(file)
            if content.pop("schema", None) != OUTCOME_SCHEMA or content.keys() != names:
                continue
            with suppress(ValueError):
                outcome = record_of(Outcome, content)
                votes = chain(*outcome.votes.values(), *outcome.written_votes.values())
                rows = (outcome.l2_N, outcome.linf_N, *outcome.measured.values(), *votes)
                if all(len(row) == len(outcome.ids) for row in rows):
                    self.outcomes[file.stem] = outcome

    def keep_outcome(self, key: str, outcome: Outcome) -> None:
        self.outcomes[key] = outcome
        if self.root is not None:
            content = {"schema": OUTCOME_SCHEMA, **asdict(outcome)}
            write_bytes(self.root / f"{key}.json", (json.dumps(content) + "\n").encode())

    def batch(self, key: str, ids: Sequence[str]) -> Crafted | None:
        """What was kept of these utterances; None where nothing was, or it is damaged."""
        if self.root is None:
            return self._batches.get(key, {}).get(tuple(ids))
        name = digest_of(json.dumps(list(ids)), size=8)
        try:
            with safe_open(self.root / key / f"{name}.safetensors", framework="pt") as file:
                cost = json.loads(file.metadata()["cost"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shown = {name: tensors.pop(name).to(self.device) for name in (_SHOWN, _WRITTEN) if name in tensors}
            crafted = Crafted(adversarial_NFL=shown[_SHOWN], written_NFL=shown.get(_WRITTEN), figures=tensors, **cost)
        except (FileNotFoundError, *_DAMAGE):
            return None
        shape = (len(ids), *self.shape_FL)
        fits = all(tensor.shape == shape and tensor.dtype == torch.float32 for tensor in shown.values())
        return crafted if fits and all(len(value_N) == len(ids) for value_N in tensors.values()) else None

    def keep_batch(self, key: str, ids: Sequence[str], made: Crafted) -> None:
        if self.root is None:
            self._batches.setdefault(key, {})[tuple(ids)] = made
            return
        cost = {name: getattr(made, name) for name in ("forward_passes", "backward_passes", "seconds")}
        metadata = {"ids": json.dumps(list(ids)), "cost": json.dumps(cost)}
        tensors = {**made.figures, _SHOWN: made.adversarial_NFL}
        if made.written_NFL is not None:
            tensors[_WRITTEN] = made.written_NFL
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        file = self.root / key / f"{digest_of(metadata['ids'], size=8)}.safetensors"
        write_bytes(file, save_tensors(whole, metadata=metadata))

    def forget_batches(self, key: str) -> None:
        self._batches.pop(key, None)
        if self.root is not None:
            shutil.rmtree(self.root / key, ignore_errors=True)


def adversarials(folder: Path) -> dict[str, Tensor]:
    """Adversarial features of shape (F, L) by utterance id, from what `keep_adversarials` left in one of
    ``RUN/attacks/*/*/``; the ``.json`` of the same name says which attack made them. A damaged file is a `UserError`.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                ids = json.loads(file.metadata()["ids"])
                found |= dict(zip(ids, file.get_tensor(_SHOWN), strict=True))
        except _DAMAGE as error:
            reason = one_line(str(error), 200)
            raise UserError(f"{path} cannot be read ({reason}): run `ser-fl benchmark` again") from None
    return found


def merged(earlier: Sequence[AttackRecord], records: Sequence[AttackRecord]) -> list[AttackRecord]:
    """Records of several benchmarks of one model: a later one takes the place of one that says the same of itself."""
    kept: dict[tuple[Any, ...], AttackRecord] = {}
    for record in (*earlier, *records):
        found = (record.attack, record.domain, record.epsilon, record.snr_db, record.defence)
        measured = (record.norm, record.num_examples, record.seed, record.device)
        effort = (record.steps, record.step_size, record.restarts, record.eot_samples, record.swept)
        made = () if record.attack == CLEAN or record.is_worst_case else (*effort, record.library, record.knowledge)
        kept[*found, *measured, *made] = record
    return sorted(kept.values(), key=lambda record: (record.attack != CLEAN, record.is_worst_case))


def digest_of(*parts: str | Tensor, size: int = 16) -> str:
    """One word, of so many bytes, for texts and for the values of tensors, wherever these are."""
    digest = hashlib.blake2b(digest_size=size)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(part.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(part.encode())
    return digest.hexdigest()


def _read(file: Path) -> dict[str, Any]:
    """Content of a JSON file; empty where it is missing or damaged: what it was made of is there to make it anew."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
