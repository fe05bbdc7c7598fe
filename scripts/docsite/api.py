"""The reference of the Python API: a page a part, from docstrings by mkdocstrings."""

import re
from importlib import import_module
from typing import NamedTuple

import ser_fl
from docsite.markdown import first_paragraph, table


class Part(NamedTuple):
    title: str
    about: str
    objects: tuple[str, ...]


PARTS = {
    "run": Part("Train, benchmark, load", "What a program calls first. `import ser_fl` is light: each name is imported "
        "when it is first used.", ("ser_fl.errors.UserError", "ser_fl.errors.RoundFailed")),
    "attacks": Part("Attacks", "The registry of attacks, and what an attack of your own is given.",
        ("ser_fl.attacks.registry", "ser_fl.attacks.attack", "ser_fl.attacks.target", "ser_fl.attacks.threat_model",
        "ser_fl.attacks.pgd", "ser_fl.attacks.autopgd", "ser_fl.attacks.carlini_wagner", "ser_fl.attacks.minimum_norm",
        "ser_fl.attacks.art.evasion")),
    "defences": Part("Defences", "Test-time defences, and what one of your own derives from.",
        ("ser_fl.defences.defence", "ser_fl.defences.randomisation", "ser_fl.defences.squeezing")),
    "training": Part("Objectives and networks", "What a client minimises, and what it trains.",
        ("ser_fl.training.objectives.objective", "ser_fl.training.objectives.adversarial",
        "ser_fl.training.objectives.domain_adversarial", "ser_fl.models.networks")),
    "federation": Part("Aggregation and algorithms", "What the server does with the clients' updates.",
        ("ser_fl.federation.aggregation", "ser_fl.federation.algorithm")),
    "records": Part("Records and run folders", "What is written to a run folder, as types.",
        ("ser_fl.runs.records", "ser_fl.runs.folder", "ser_fl.runs.zoo", "ser_fl.metrics")),
    "data": Part("Corpora and splits", "Utterances, where they come from and who tests.",
        ("ser_fl.data.utterance", "ser_fl.data.splits", "ser_fl.data.corpora.info", "ser_fl.data.corpora.registry")),
}  # fmt: skip


def pages() -> dict[str, str]:
    """A page a part, and one that lists them; the first part begins with all names of `ser_fl` itself."""
    homes = {name: f"{module}.{attribute}" for name, (module, attribute) in sorted(ser_fl._HOMES.items())}
    elsewhere = [home for home in homes.values() if not home.startswith("ser_fl.api.")]
    parts = PARTS | {"run": PARTS["run"]._replace(objects=("ser_fl.api", *elsewhere, *PARTS["run"].objects))}
    rows = [(f"[`ser_fl.{name}`][{home}]", _summary(home)) for name, home in homes.items()]
    head = "# Python API\n\nNames that begin with an underscore are not public, and may change.\n"
    listed = "\n".join(f"- [{part.title}]({name}.md): {part.about}" for name, part in parts.items())
    index = "\n".join([head, table(("Name", "What it is"), rows), "The parts:\n", listed, ""])
    return {
        "reference/api/index.md": index,
        **{f"reference/api/{name}.md": _page(part) for name, part in parts.items()},
    }


def _summary(home: str) -> str:
    """The first sentence of a docstring."""
    module, _, name = home.rpartition(".")
    text = first_paragraph(getattr(import_module(module), name).__doc__ or "")
    return re.split(r"(?<=[.?])\s", text)[0]


def _page(part: Part) -> str:
    return "\n\n".join([f"# {part.title}", part.about, *(f"::: {name}" for name in part.objects)]) + "\n"
