"""The attacks that every entry is judged by. They are fixed: a change of any figure here is another `VERSION`, and what
was judged by an earlier one is judged again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ser_fl.errors import UserError
from ser_fl.runs.records import NO_DEFENCE, WORST_CASE, AttackRecord

VERSION = 1
ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteAttack:
    """An attack and its least effort."""

    attack: str
    steps: int
    restarts: int | None = None
    """None for an attack that has none."""

    def choice(self) -> str:
        """As a setting of `ser-fl benchmark`."""
        restarts = "" if self.restarts is None else f", restarts: {self.restarts}"
        return f"{{name: {self.attack}, steps: {self.steps}{restarts}}}"

    def is_met_by(self, record: AttackRecord) -> bool:
        enough = (record.steps or 0) >= self.steps and (record.restarts or 0) >= (self.restarts or 0)
        return record.attack == self.attack and enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One benchmark: what attacks move, how far, by what and on how many utterances at least."""

    domain: str
    """"logmel" or "waveform", as of an `AttackRecord`."""
    budgets: tuple[float, ...]
    """Epsilons in L-infinity on standardised log-mel, or signal-to-noise ratios in dB."""
    attacks: tuple[SuiteAttack, ...]
    num_examples: int
    adaptive: SuiteAttack
    """Made in expectation over a defence, on every entry that has one."""
    num_adaptive: int
    eot_samples: int = 16

    def settings(self, defence: str, num_examples: int | None = None, more: Sequence[str] = ()) -> list[str]:
        """Of the `ser-fl benchmark` that runs the stage, on fewer utterances or by more attacks where that is said."""
        budgets = ",".join(f"{budget:g}" for budget in self.budgets)
        choices = ", ".join([*(attack.choice() for attack in self.attacks), *more])
        where = "epsilons" if self.domain == "logmel" else "snr_dbs"
        given = [f"domain={self.domain}", f"attacks=[{choices}]", f"{where}=[{budgets}]", f"defences=[{defence}]"]
        given += ["curve_attacks=[]", f"max_examples={num_examples or self.num_examples}"]
        if defence != NO_DEFENCE:
            given += [f"adaptive=[{self.adaptive.choice()}]", f"eot_samples={self.eot_samples}"]
            given += [f"subsets.adaptive={num_examples or self.num_adaptive}"]
        return given

    def records(self, records: Iterable[AttackRecord], budget: float, defence: str) -> list[AttackRecord]:
        """Those of the stage at one of its budgets, with a defence."""
        return [
            record
            for record in records
            if record.domain == self.domain
            and (record.epsilon if self.domain == "logmel" else record.snr_db) == budget
            and record.defence == defence
            and not record.enrolment
        ]

    def required(
        self, records: Iterable[AttackRecord], budget: float, defence: str, num_test: int
    ) -> list[AttackRecord]:
        """The record of each attack that must be there, the one of most utterances; of a test part that is smaller than
        the suite asks for, all ``num_test`` will do.

        Raises:
            UserError: it is not there, or was run on fewer utterances or with less effort.
        """
        there, found = self.records(records, budget, defence), list[AttackRecord]()
        wanted = [(attack, self.num_examples, False) for attack in self.attacks]
        wanted += [(self.adaptive, self.num_adaptive, True)] if defence != NO_DEFENCE else []
        for attack, number, aware in wanted:
            met = [
                record
                for record in there
                if attack.is_met_by(record)
                and aware == (record.knowledge == ADAPTIVE)
                and (not aware or record.eot_samples >= self.eot_samples)
            ]
            most = max(met, key=lambda record: record.num_examples, default=None)
            number = min(number, num_test)
            if most is None or most.num_examples < number:
                what = f"{attack.attack} of {attack.steps} steps" + (f", adaptive to {defence}" if aware else "")
                short = "none on record" if most is None else f"it is on {most.num_examples}"
                at = f"epsilon {budget:g}" if self.domain == "logmel" else f"{budget:g} dB"
                raise UserError(
                    f"an entry needs {what}, at {at} on {number} utterances at least, and {short}: run "
                    f"ser-fl benchmark run=RUN {' '.join(map(_quoted, self.settings(defence)))}"
                )
            found.append(most)
        return found

    def worst(self, records: Iterable[AttackRecord], budget: float, defence: str, least: int = 1) -> AttackRecord:
        """The worst case of the utterances that every attack was made on, ``least`` of them or more; of one attack that
        is its own record.
        """
        there = [one for one in self.records(records, budget, defence) if one.num_examples >= least]
        together = [record for record in there if record.attack == WORST_CASE]
        return min(together or there, key=lambda record: record.num_examples)


def _quoted(setting: str) -> str:
    return f"'{setting}'" if "[" in setting else setting


STAGES = (
    Stage(
        domain="logmel",
        budgets=(0.05,),
        attacks=(
            SuiteAttack(attack="pgd", steps=50, restarts=5),
            SuiteAttack(attack="apgd_t", steps=100, restarts=1),
            SuiteAttack(attack="cw_linf", steps=40),
            SuiteAttack(attack="square", steps=1000),
        ),
        num_examples=120,
        adaptive=SuiteAttack(attack="pgd", steps=40, restarts=1),
        num_adaptive=60,
    ),
    Stage(
        domain="waveform",
        budgets=(60.0, 40.0, 30.0),
        attacks=(
            SuiteAttack(attack="pgd", steps=20, restarts=1),
            SuiteAttack(attack="apgd_ce", steps=20, restarts=1),
            SuiteAttack(attack="cw_l2", steps=20),
        ),
        num_examples=60,
        adaptive=SuiteAttack(attack="pgd", steps=20, restarts=1),
        num_adaptive=24,
    ),
)
