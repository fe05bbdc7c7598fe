"""What was asked for, as attacks: names, suites and settings, each at every budget, and what a caller brings.

A `Request` holds what is set for all attacks of a benchmark, whether it was given to `ser_fl.benchmark`, on the command
line or in a file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ser_fl.attacks.attack import UNLABELLED, Attack
from ser_fl.attacks.objects import attack_from
from ser_fl.attacks.registry import ATTACKS, ON_RECORDINGS, build, build_on_recordings, entry_of
from ser_fl.attacks.settings import AttackSettings
from ser_fl.attacks.suites import SUITE_ON_RECORDINGS, SUITES, expand, subsets_of
from ser_fl.attacks.waveform_domain import SNR_DBS
from ser_fl.config.robustness import AttackChoice, Backend, BenchmarkConfig
from ser_fl.config.schema import one_line

_CHOICE: TypeAdapter[AttackChoice] = TypeAdapter(AttackChoice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is set for all attacks of a benchmark."""

    num_classes: int
    steps: int | None = None
    """Of every attack that has some; None is each attack's own default, as with restarts."""
    restarts: int | None = None
    backend: Backend = "auto"

    def attacks(self, given: object, epsilons: Sequence[float]) -> list[Attack]:
        """Attacks on features within the model, each once.

        Args:
            given: one of these or many: names, suites, choices and mappings of settings, each run at every epsilon
                unless it has its own; full `AttackSettings`; attacks of ART, their classes and functions.
            epsilons: budgets.

        Raises:
            UserError: an unknown attack or setting.
        """
        return self._built(given, epsilons, adaptive=False)

    def adaptive(self, given: object, epsilons: Sequence[float]) -> list[Attack]:
        """The same of attackers who know of a defence: by our own code, and of a suite what can know of one."""
        return self._built(given, epsilons, adaptive=True)

    def _built(self, given: object, epsilons: Sequence[float], *, adaptive: bool) -> list[Attack]:
        attacks: dict[object, Attack] = {}
        for one in _listed(given):
            if isinstance(one, AttackSettings):
                attacks[one] = build(one)
            elif (choice := _choice(one)) is None:
                keys = [(id(one), epsilon) for epsilon in epsilons]
                taken = {*ATTACKS, *(attack.settings.name for key, attack in attacks.items() if key not in keys)}
                attacks |= {(id(one), epsilon): _told_apart(attack_from(one, epsilon), taken) for epsilon in epsilons}
            else:
                for settings in self._settings(choice, epsilons, adaptive=adaptive):
                    attacks[settings] = build(settings)
        return list(attacks.values())

    def _settings(self, choice: AttackChoice, epsilons: Sequence[float], *, adaptive: bool) -> list[AttackSettings]:
        def fits(name: str) -> bool:
            entry = ATTACKS[name]
            return self.num_classes >= entry.min_classes and (
                not adaptive or entry.knowledge == "undefended" or entry.adaptive
            )

        suite = SUITES.get(choice.name)
        backend = choice.backend or (suite.backend if suite else None) or self.backend
        found = []
        for name in expand([choice.name], fits):
            known = name.removesuffix(UNLABELLED)
            settable = entry_of(known).settable if known in ATTACKS else {"steps", "restarts"}
            found += [
                AttackSettings(
                    name=name,
                    epsilon=epsilon,
                    steps=choice.steps or (self.steps if "steps" in settable else None),
                    step_size=choice.step_size,
                    restarts=_first(choice.restarts, self.restarts if "restarts" in settable else None),
                    labels=choice.labels,
                    backend="native" if adaptive else backend,
                )
                for epsilon in (epsilons if choice.epsilon is None else (choice.epsilon,))
            ]
        return found

    def on_recordings(
        self, choices: Sequence[AttackChoice], snr_dbs: Sequence[float], amplitudes: Sequence[float]
    ) -> list[Attack]:
        """Attacks on recorded samples: each at all budgets that it keeps to; a suite stands for `SUITE_ON_RECORDINGS`.

        Raises:
            UserError: an attack that does not go on recordings, or one that cannot keep to any of the budgets.
        """
        budgets: list[dict[str, Any]] = [{"epsilon": value} for value in amplitudes]
        if snr_dbs or not amplitudes:
            budgets = [{"snr_db": value} for value in snr_dbs or SNR_DBS] + budgets
        attacks: dict[AttackSettings, Attack] = {}
        for choice in choices:
            for name in SUITE_ON_RECORDINGS if choice.name in SUITES else (choice.name,):
                entry = ON_RECORDINGS.get(name.removesuffix(UNLABELLED))
                units = entry.on_recordings if entry else ()
                kept: list[dict[str, Any]] = [
                    budget for budget in budgets if ("snr_db" if "snr_db" in budget else "amplitude") in units
                ]
                for budget in [{}] if "masking" in units else kept or budgets[:1]:
                    settings = AttackSettings(
                        name=name,
                        steps=choice.steps or self.steps,
                        restarts=_first(choice.restarts, self.restarts),
                        labels=choice.labels,
                        masked=not budget,
                        **budget,
                    )
                    attacks[settings] = build_on_recordings(settings)
        return list(attacks.values())


def request_of(config: BenchmarkConfig, num_classes: int) -> Request:
    """What the settings of a benchmark say of all attacks."""
    return Request(num_classes=num_classes, steps=config.steps, restarts=config.restarts, backend=config.backend)


def subsets_for(given: object, own: Mapping[str, int] | None) -> dict[str, int]:
    """Sizes of balanced subsets: those that are said, and else those that the suites among the attacks ask for."""
    choices = (None if isinstance(one, AttackSettings) else _choice(one) for one in _listed(given))
    return subsets_of([choice.name for choice in choices if choice is not None]) | dict(own or {})


def _listed(given: object) -> Sequence[object]:
    return given if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _choice(one: object) -> AttackChoice | None:
    """A name or a mapping as settings; None for what a caller brings.

    Raises:
        UserError: an unknown setting, or a value out of its range.
    """
    if isinstance(one, AttackChoice):
        return one
    if not isinstance(one, (str, Mapping)):
        return None
    settings: dict[str, Any] = {"name": one} if isinstance(one, str) else dict(one)
    try:
        return _CHOICE.validate_python(settings)
    except ValidationError as error:
        known = dict.fromkeys(AttackChoice.__annotations__)
        raise one_line(error, known | settings) from None


def _told_apart(attack: Attack, taken: Collection[str]) -> Attack:
    """The attack under a name that no other has: records and what is kept go by it."""
    name = attack.settings.name
    names = (name if number == 1 else f"{name}_{number}" for number in count(1))
    return replace(attack, settings=replace(attack.settings, name=next(free for free in names if free not in taken)))


def _first(own: int | None, common: int | None) -> int | None:
    """What is set for one attack, else for all; 0 is a setting."""
    return common if own is None else own
