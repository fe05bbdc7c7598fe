"""Hostile clients against aggregations: a fifth of the clients lies, and what is left is written down.

python scripts/hostile.py run [--ravdess DIR] [--hours 1] [--book FILE]
python scripts/hostile.py table [--book FILE]

A cell is a corpus, a training (clean or adversarial), an attack, a rule of `federation.aggregation` and a seed. Each is
a run of some seconds, and one line of the book, written whole; cells that are on record are not made again. They come
in an order that makes a part useful. Models are linear on clips' means and deviations of a frozen speaker encoder
(`experiment=strangers`, known speakers), one gradient a client and round, Adam at the server, which all attacks meet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ser_fl
from ser_fl.api import Run
from ser_fl.config.adversaries import AdversariesConfig
from ser_fl.config.aggregation import SETTINGS
from ser_fl.config.schema import Config
from ser_fl.data.features import Examples, load_examples
from ser_fl.data.prepared import prepare
from ser_fl.errors import RoundFailed, UserError
from ser_fl.federation.adversaries import ADVERSARIES, Backdoor

ROUNDS, UNTIL = 40, 30
EPSILON = 0.05
"""Of the attack on test utterances, L-infinity in standardised features."""
RECIPE = (
    "experiment=strangers",
    "split=within_speaker",
    "split.validation_fraction=0",
    "augmentation=none",
    "federation=federated_sgd",
    "federation.batch_size=4096",
    f"federation.num_rounds={ROUNDS}",
    "federation.server_learning_rate=0.02",
    "optimiser.learning_rate=1",
    "optimiser.schedule=constant",
    "optimiser.weight_decay=0",
    "executor.engine=loop",
    "federation.strikes=0",  # what is left is what the rule makes of it
    "tracking=none",
)
CORPORA = {"ravdess": ("data=ravdess",), "builtin": ("data=builtin", "data.num_speakers=16")}
TRAININGS = {
    "clean": (),
    "adversarial": (
        "objective=pgd",
        "objective.recipe=per_step",
        "objective.from_round=1",
        f"objective.epsilon={EPSILON}",
    ),
}
ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "label_flip": {},
    "sign_flip": {},
    "noise": {},
    "scaled": {},
    "alie": {},
    "ipm 0.5": {"name": "ipm"},
    "ipm 5": {"name": "ipm", "strength": 5.0},
    "min_max": {},
    "min_sum": {},
    "fang_krum": {},
    "fang_trimmed_mean": {},
    "model_replacement audible": {"name": "model_replacement", "until_round": UNTIL},
    "backdoor audible": {"name": "backdoor", "until_round": UNTIL},
    "backdoor masked": {"name": "backdoor", "trigger": "masked", "until_round": UNTIL},
    "free_rider": {},
    "masked_gradient": {},
}
"""By the name in the table: settings of `adversaries`."""
FIRST = ("weighted_mean", "median", "trimmed_mean", "multi_krum")
"""Rules that come before all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    corpus: str
    training: str
    attack: str
    rule: str
    seed: int


def cells(corpora: Sequence[str]) -> Iterator[Cell]:
    """All, the most useful ones first: one seed, clean training; then adversarial training; then more seeds."""
    rules = [*FIRST, *(name for name in SETTINGS if name not in FIRST)]
    for training, seed in (("clean", 1), ("adversarial", 1), ("clean", 2), ("clean", 3)):
        for corpus in corpora:
            for attack in ATTACKS:
                for rule in rules:
                    yield Cell(corpus=corpus, training=training, attack=attack, rule=rule, seed=seed)


_TRIGGERED: dict[tuple[str, str, int], dict[str, Any]] = {}
"""Features of triggered utterances by corpus, trigger and seed: cells share them."""


def settings_of(cell: Cell, ravdess: Path, folder: Path) -> Config:
    """The run of a cell."""
    where = (f"data.root={ravdess}",) if cell.corpus == "ravdess" else ()
    attack = {"name": cell.attack, **ATTACKS[cell.attack]}
    attack = {**attack, "name": "own"} if is_backdoor(cell) else attack
    hostile = [f"adversaries.{name}={value}" for name, value in attack.items()]
    changed = (*CORPORA[cell.corpus], *where, *TRAININGS[cell.training], *hostile)
    rule = f"federation.aggregation={cell.rule}"
    return ser_fl.compose([*RECIPE, *changed, rule, f"seed={cell.seed}", f"run_dir={folder}"])


def is_backdoor(cell: Cell) -> bool:
    return ATTACKS[cell.attack].get("name") in ("backdoor", "model_replacement")


def adversary_of(cell: Cell) -> Backdoor | None:
    """A backdoor that has the features of triggered utterances already, where another cell made them."""
    if not is_backdoor(cell):
        return None
    settings = AdversariesConfig(**ATTACKS[cell.attack])
    made = ADVERSARIES[settings.name](settings)
    assert isinstance(made, Backdoor)
    made.features = _TRIGGERED.setdefault((cell.corpus, settings.trigger, cell.seed), made.features)
    return made


def measured(cell: Cell, ravdess: Path) -> dict[str, Any]:
    """Run a cell; the figures, or why there are none."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ser_fl-hostile-") as folder:
        config, adversary = settings_of(cell, ravdess, Path(folder, "run")), adversary_of(cell)
        try:
            run = ser_fl.train(config, adversary=adversary) if adversary else ser_fl.train(config)
            figures = figures_of(run, tested(cell.corpus, ravdess))
        except (UserError, RoundFailed) as error:
            figures = {"failed": str(error).splitlines()[0][:200]}
    return {**asdict(cell), **figures, "seconds": round(time.perf_counter() - began, 1)}


@cache
def tested(corpus: str, ravdess: Path) -> Examples:
    """Every other test utterance of a corpus, as the models are given it."""
    where = (f"data.root={ravdess}",) if corpus == "ravdess" else ()
    data = prepare(ser_fl.compose([*RECIPE, *CORPORA[corpus], *where]))
    return load_examples(data.store, data.split.test[::2], data.standardisation)


def figures_of(run: Run, test: Examples) -> dict[str, Any]:
    summary = run.read_json(run.summary)
    said = run.read_json(run.adversaries) if run.adversaries.exists() else {"hostile": []}
    hostile, rounds = set(said["hostile"]), run.read_jsonl(Path(run.rounds))
    records = ser_fl.benchmark(
        run.load().network,
        test.features_NFL,
        test.labels_N,
        attacks=["fgsm", "pgd"],
        epsilons=[EPSILON],
        checks=False,
    )
    refused = [failure["client_id"] for one in rounds for failure in one["failures"]]
    shares = [one["shares"] for one in rounds if one.get("shares")]
    speakers = summary["test"]["per_speaker_uar"]
    found = {
        "uar": round(summary["test"]["uar"], 4),
        "worst_uar": round(next(one.robust_uar for one in records if one.attack == "worst_case"), 4),
        "speakers": {name: round(uar, 3) for name, uar in speakers.items()},
        "hostile": sorted(hostile),
        "dropped_hostile": dropped(shares, hostile),
        "dropped_honest": dropped(shares, {name for one in shares for name in one} - hostile),
        "refused_hostile": sum(name in hostile for name in refused),
        "refused_honest": sum(name not in hostile for name in refused),
    }
    if "backdoor_success" in said:
        success = said["backdoor_success"]
        found |= {
            "success": round(success[str(UNTIL)], 3),
            "without_trigger": round(summary["backdoor"]["without_trigger"], 3),
            "rounds_to_forget": summary["backdoor"]["rounds_to_forget"],
        }
    return found


def dropped(shares: Sequence[Mapping[str, float]], clients: set[str]) -> float | None:
    """Share of the clients' rounds in which they had no part in the model."""
    parts = [one[name] for one in shares for name in clients & one.keys()]
    return round(sum(part == 0 for part in parts) / len(parts), 3) if parts else None


def read(book: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in book.read_text().splitlines()] if book.exists() else []


def table(book: Path) -> str:
    """Markdown of all cells on record: a table a corpus and training, an attack a row, a rule a column."""
    made, parts = [one for one in read(book) if "failed" not in one], list[str]()
    for corpus, training in dict.fromkeys((one["corpus"], one["training"]) for one in made):
        own = [one for one in made if (one["corpus"], one["training"]) == (corpus, training)]
        rules = list(dict.fromkeys(one["rule"] for one in own))
        attacks = [name for name in ATTACKS if any(one["attack"] == name for one in own)]
        for title, figure in FIGURES.items():
            rows = []
            for attack in attacks:
                found = [[one for one in own if (one["attack"], one["rule"]) == (attack, rule)] for rule in rules]
                values = [[value for one in of if (value := figure(one, own)) is not None] for of in found]
                if any(values):
                    shown = (f"{statistics.mean(each):.1f}" if each else "" for each in values)
                    rows.append(f"| {attack} | {' | '.join(shown)} |")
            if rows:
                head = f"| {title} | {' | '.join(rules)} |\n| :--- |{' ---: |' * len(rules)}\n"
                seeds = len({one["seed"] for one in own})
                parts.append(
                    f"**{corpus}, {training} training**, {seeds} seed{'s' * (seeds > 1)}\n\n{head}" + "\n".join(rows)
                )
    return "\n\n".join(parts)


def _lost(one: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> float | None:
    """Points of UAR that the honest speaker who is worst off lost against the mean without hostile clients."""
    same = [
        other
        for other in own
        if (other["attack"], other["rule"], other["seed"]) == ("none", "weighted_mean", one["seed"])
    ]
    honest = one["speakers"].keys() - set(one["hostile"])
    if not same or one["attack"] == "none":
        return None
    return 100 * float(min(one["speakers"][name] - same[0]["speakers"][name] for name in honest))


def _percent(name: str) -> Any:
    return lambda one, own: None if one.get(name) is None else 100 * one[name]


FIGURES: Mapping[str, Any] = {
    "UAR": _percent("uar"),
    "worst-case UAR": _percent("worst_uar"),
    "honest speaker worst off, change of UAR": _lost,
    "hostile rounds without a part": _percent("dropped_hostile"),
    "honest rounds without a part": _percent("dropped_honest"),
    "backdoor success": _percent("success"),
    "rounds to forget": lambda one, own: one.get("rounds_to_forget"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--ravdess", type=Path, metavar="DIR", help="without it the built-in corpus alone")
    parser.add_argument("--hours", type=float, default=1.0, help="no cell begins after so long")
    parser.add_argument("--book", type=Path, default=Path("results/hostile/cells.jsonl"), metavar="FILE")
    chosen = parser.parse_args(arguments)
    if chosen.what == "table":
        print(table(chosen.book))
        return 0
    ends = time.monotonic() + 3600 * chosen.hours
    done = {tuple(one[name] for name in Cell.__slots__) for one in read(chosen.book)}
    chosen.book.parent.mkdir(parents=True, exist_ok=True)
    for cell in cells([name for name in CORPORA if name != "ravdess" or chosen.ravdess]):
        if time.monotonic() > ends:
            break
        if tuple(asdict(cell).values()) in done:
            continue
        found = measured(cell, chosen.ravdess or Path())
        with chosen.book.open("a", encoding="utf-8") as book:
            book.write(json.dumps(found) + "\n")
        print(json.dumps({name: value for name, value in found.items() if name != "speakers"}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
