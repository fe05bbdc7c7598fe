"""What a run is called in tables and figures, and where its figures come from."""

from __future__ import annotations

from collections.abc import Sequence

from ser_fl.report.reader import RunRecords

_FEDERATIONS = {"federated": "Federated", "centralised": "Centralised", "local_only": "Local only"}
_RECIPES = {"per_round": "per round", "per_step": "per step"}


def training(run: RunRecords) -> str:
    """How the model was trained, in words: "Federated + adversarial training"."""
    federation = str(run.setting("federation.name") or "unknown")
    words = _FEDERATIONS.get(federation, federation)
    return words if _is_clean(run) else f"{words} + adversarial training"


def adversary(run: RunRecords) -> str:
    """The attack of the adversarial training: "PGD ε 0.05 per step"; empty for clean training."""
    if _is_clean(run):
        return ""
    epsilon, recipe = training_epsilon(run), run.setting("objective.recipe")
    words = [
        str(run.setting("objective.name")).upper(),
        "" if epsilon is None else f"ε {epsilon:.3g}",
        _RECIPES.get(str(recipe), str(recipe or "")),
    ]
    return " ".join(word for word in words if word)


def training_epsilon(run: RunRecords) -> float | None:
    """Budget of the adversarial training; None for clean training."""
    epsilon = run.setting("objective.epsilon")
    return float(epsilon) if isinstance(epsilon, (int, float)) and not _is_clean(run) else None


def labels_of(runs: Sequence[RunRecords]) -> list[str]:
    """A label for each run: how it was trained and, on a second line, whatever else tells it from the others.

    Corpus, split, model and seed are named only where the runs differ in them; runs that still read the same get the
    name of their folder.
    """
    details = [[adversary(run)] for run in runs]
    traits = (
        [f"corpus {run.corpus}" for run in runs],
        [f"split {run.split}" for run in runs],
        [f"model {run.setting('model.name')}" for run in runs],
        [f"seed {run.setting('seed')}" for run in runs],
    )
    for trait in traits:
        if len(set(trait)) > 1:
            details = [[*known, value] for known, value in zip(details, trait, strict=True)]
    labels = [
        "\n".join(filter(None, (training(run), ", ".join(filter(None, known)))))
        for run, known in zip(runs, details, strict=True)
    ]
    return [
        f"{label}\n{run.root.name}" if labels.count(label) > 1 else label
        for label, run in zip(labels, runs, strict=True)
    ]


def labelled(runs: Sequence[RunRecords]) -> list[tuple[str, RunRecords]]:
    """Each run after its label."""
    return list(zip(labels_of(runs), runs, strict=True))


def provenance(runs: Sequence[RunRecords]) -> str:
    """Where the figures come from: corpus, split, seed; SYNTHETIC where the speech is."""
    facts = (
        ("Corpus", [run.corpus for run in runs]),
        ("split", [run.split for run in runs]),
        ("seed", [str(run.setting("seed")) for run in runs]),
    )
    words = "; ".join(f"{name} {' / '.join(dict.fromkeys(values))}" for name, values in facts)
    warning = " Synthetic speech is no evidence about real speech." if any(run.synthetic for run in runs) else ""
    return f"{words}.{warning}"


def _is_clean(run: RunRecords) -> bool:
    return run.setting("objective.name") in (None, "clean")
