"""Cards of attacks, defences, objectives and servers, by name: what each is, its paper, where it is and what tests it.

Names, papers, norms and defaults are the registries'; `cards.yaml` has what they do not say.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from docsite.markdown import ROOT, linked_papers, table
from docsite.settings import choices, written
from ser_fl.attacks.attack import Entry
from ser_fl.attacks.registry import ATTACKS, BY_ART, ON_RECORDINGS, SUITES
from ser_fl.config.training import ObjectiveConfig
from ser_fl.defences import DEFENCES
from ser_fl.federation import aggregation, algorithm
from ser_fl.training.objectives import OBJECTIVES, adversarial
from ser_fl.training.objectives.objective import Objective

NORMS = {"inf": "L∞", "2": "L2"}
KNOWLEDGE = {
    "undefended": "gradients of the model without its test-time defence",
    "score": "scores alone",
    "decision": "decisions alone",
}


@dataclass(frozen=True, kw_only=True)
class About:
    """What cards.yaml says of a name."""

    title: str
    what: str
    tests: list[str]
    """Files in tests/."""
    paper: str = ""
    """Empty where the registry has it."""


@cache
def texts(kind: str) -> dict[str, About]:
    """Of "attacks", "defences", "objectives" or "server", by name."""
    told = yaml.safe_load(Path(__file__).with_name("cards.yaml").read_text(encoding="utf-8"))[kind]
    return {name: About(**about) for name, about in told.items()}


def about_of(kind: str, name: str) -> About:
    """What cards.yaml says of a name; a `LookupError` says what to add."""
    if name not in texts(kind):
        raise LookupError(f"{name} has no card: tell of it under {kind} in scripts/docsite/cards.yaml")
    return texts(kind)[name]


@dataclass(frozen=True, kw_only=True)
class Card:
    name: str
    about: About
    paper: str
    file: str
    """Of the repository: where it is."""
    facts: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""
    """The docstring of what runs."""

    @property
    def tests(self) -> list[str]:
        return [f"tests/{name}" for name in self.about.tests]


def attack_cards() -> list[Card]:
    """Every attack of the registry, those on recordings alone too."""
    return [_attack_card(name, entry) for name, entry in {**ATTACKS, **ON_RECORDINGS}.items()]


def _attack_card(name: str, entry: Entry) -> Card:
    facts = {
        "Norm": ("smallest " if entry.minimal else "") + NORMS[entry.norm],
        "Knows": KNOWLEDGE[entry.knowledge],
        "Effort": _effort(entry),
        "Code": f"`{entry.library}`" + (f", or `{BY_ART[name].library}` with `backend=art`" if name in BY_ART else ""),
        "Against a defence": "in expectation over its randomness (`adaptive`)" if entry.adaptive else "not adaptive",
        "On recordings": ", ".join(f"`{budget}`" for budget in entry.on_recordings) or "no",
        "Suites": ", ".join(f"`{suite}`" for suite, its in SUITES.items() if name in its.attacks) or "none",
    }
    if name not in ATTACKS:
        facts["Norm"] = "masking threshold of the clip"
    about = about_of("attacks", name)
    crafted = entry.craft
    module = inspect.getmodule(crafted)
    file = "ser_fl/attacks/psychoacoustic.py" if name == "psychoacoustic" else _file(module)
    return Card(name=name, about=about, paper=entry.paper, file=file, facts=facts, detail=_detail(crafted))


def _effort(entry: Entry) -> str:
    steps = "" if entry.steps is None else f"{entry.steps} step" + ("s" if entry.steps > 1 else "")
    queries = steps.replace("step", "query" if entry.steps == 1 else "querie") if entry.knowledge == "score" else steps
    size = f" of {entry.fixed_step}" if entry.fixed_step else ""
    restarts = f", {entry.restarts} random start" + ("s" if (entry.restarts or 0) > 1 else "") if entry.restarts else ""
    settable = ", ".join(f"`{name}`" for name in sorted(entry.settable))
    return f"{queries}{size}{restarts} by default" + (f"; {settable} can be set" if settable else "; fixed")


def _file(module: Any) -> str:
    return str(Path(module.__file__).resolve().relative_to(ROOT))


def _detail(thing: Any) -> str:
    """A function's or class's own docstring; nothing of what has none, such as a partial or a lambda."""
    if inspect.isfunction(thing) or inspect.isclass(thing):
        return inspect.getdoc(thing) or ""
    return ""


def defence_cards() -> list[Card]:
    """Every test-time defence by name."""
    cards = []
    for name, make in DEFENCES.items():
        defence, about = make(), about_of("defences", name)
        settings = {key: getattr(defence, key) for key in ("num_draws", "step", "frames") if hasattr(defence, key)}
        weights = defence.outcome_weights
        facts = {
            "Defaults": ", ".join(f"`{key}={value}`" for key, value in settings.items()),
            "Outcomes": "one: nothing is drawn" if weights is not None and len(weights) == 1 else _outcomes(weights),
            "Adaptive attack": "straight through (BPDA)" if defence.approximation else "through its own gradient",
        }
        kind = type(defence)
        file, detail = _file(inspect.getmodule(kind)), _detail(kind)
        cards.append(Card(name=name, about=about, paper=about.paper, file=file, facts=facts, detail=detail))
    return cards


def _outcomes(weights: tuple[float, ...] | None) -> str:
    return "drawn, not listed" if weights is None else f"{len(weights)} patterns, listed with their probabilities"


def objective_cards() -> list[Card]:
    """Every training objective by name."""
    files, cards = choices("objective"), []
    for name in OBJECTIVES:
        about, settings = about_of("objectives", name), files[name]
        made = OBJECTIVES[name](ObjectiveConfig(**settings))
        kind = type(made)
        differing = {key: value for key, value in settings.items() if value != files["clean"][key] and key != "name"}
        facts = {
            "Taken by": f"`objective={name}`",
            "Differs from `objective=clean`": ", ".join(f"`{key}={written(value)}`" for key, value in differing.items())
            or "no",
            "Norm": "L∞" if isinstance(made, adversarial.Adversarial) else "none: nothing is attacked",
        }
        detail = "" if kind is Objective else _detail(kind)
        file = _file(inspect.getmodule(kind))
        cards.append(Card(name=name, about=about, paper=about.paper, file=file, facts=facts, detail=detail))
    return cards


def server_classes() -> dict[str, type]:
    """Aggregations and algorithms that come with the package."""
    families = ((aggregation, aggregation.Aggregation), (algorithm, algorithm.Algorithm))
    return {
        name: kind
        for module, base in families
        for name, kind in vars(module).items()
        if inspect.isclass(kind)
        and kind.__module__.startswith(module.__name__)
        and issubclass(kind, base)
        and not inspect.isabstract(kind)
        and kind not in (base, aggregation.Robust)
    }


def server_cards() -> list[Card]:
    """Every aggregation and algorithm of the server."""
    return [
        Card(
            name=name,
            about=about_of("server", name),
            paper=about_of("server", name).paper,
            file=_file(inspect.getmodule(kind)),
            detail=_detail(kind),
        )
        for name, kind in server_classes().items()
    ]


def page(title: str, intro: str, cards: Iterable[Card], more: str = "") -> str:
    """Cards one below the other, after a table of them all."""
    cards = list(cards)
    rows = [(f"[`{card.name}`](#{card.name})", card.about.title, linked_papers(card.paper)) for card in cards]
    parts = [f"# {title}\n", intro + "\n", table(("Name", "What", "Paper"), rows), more]
    return "\n".join([*parts, *map(section, cards)])


def section(card: Card) -> str:
    """One card."""
    facts = {
        "Paper": linked_papers(card.paper),
        **{name: fact for name, fact in card.facts.items() if fact},
        "File": source_link(card.file),
        "Tests": ", ".join(map(source_link, card.tests)),
    }
    detail = card.detail.partition("\n\nArgs:")[0]
    parts = [
        f"## {card.about.title} {{ #{card.name} }}",
        f"`{card.name}`: {card.about.what}",
        "\n".join(f"- **{name}:** {fact}" for name, fact in facts.items()),
        f'??? info "From the code"\n\n{_indented(linked_papers(detail))}\n' if detail else "",
    ]
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def source_link(path: str) -> str:
    """To a file of the repository, from a page in docs/reference."""
    return f"[`{path}`](../../{path})"


def pages() -> dict[str, str]:
    """The pages of cards by path."""
    suites = [
        (f"`{name}`", ", ".join(f"[`{attack}`](#{attack})" for attack in suite.attacks))
        for name, suite in SUITES.items()
    ]
    return {
        "reference/attacks.md": page(
            "Attack cards",
            "Every attack that `ser-fl benchmark run=RUN attacks=[NAME]` knows. Any evasion attack of ART is there as "
            "well, as `art:ClassName`. A name that ends in `_unlabelled` is the attack without true emotions. Epsilon "
            "is in standardised log-mel units; an attack of norm 2 gets epsilon · √(bins · frames).",
            attack_cards(),
            "Suites are lists of attacks under one name:\n\n" + table(("Suite", "Attacks"), suites),
        ),
        "reference/defences.md": page(
            "Defence cards",
            "Every test-time defence that `ser-fl benchmark run=RUN defences=[NAME]` knows: what stands between the "
            "features and an unchanged classifier.",
            defence_cards(),
        ),
        "reference/objectives.md": page(
            "Objective cards",
            "What a client minimises in a round: `ser-fl train objective=NAME`. Its settings are on "
            "[a page of their own](settings/objective.md).",
            objective_cards(),
        ),
        "reference/server.md": page(
            "Aggregation cards",
            "How the server makes the next model of the clients' updates. Settings are those of "
            "[federation](settings/federation.md).",
            server_cards(),
        ),
    }
