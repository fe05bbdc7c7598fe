"""From a trained and attacked run to an entry."""

from dataclasses import dataclass
from pathlib import Path

from ser_fl.config.compose import compose
from ser_fl.data.corpora import CORPORA
from ser_fl.data.features import OnFeatures
from ser_fl.errors import UserError
from ser_fl.files import write_bytes
from ser_fl.leaderboard import suite
from ser_fl.leaderboard.entry import FILE, MODEL_FILES, Entry, StatedAttack, WorstCase, digests_of, read_entry
from ser_fl.leaderboard.examination import examine, settings_of
from ser_fl.robustness.sanity_checks.report import read_sanity_report
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import NO_DEFENCE, WORST_CASE, AttackRecord
from ser_fl.runs.zoo import PREFIX, is_zoo_model, writable_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What only its authors know of an entry."""

    name: str
    authors: str
    defence: str = NO_DEFENCE
    remarks: str = ""
    """Needed where a check of the benchmark fails: why its figures may be believed nevertheless."""
    licence: str | None = None
    """Of the weights; None for that of the corpus."""


def add(
    given: str,
    folder: Path,
    submission: Submission,
    *,
    root: str | None = None,
    on_features: OnFeatures | None = None,
) -> Entry:
    """Make the entry of a run, from its records and the corpus.

    Args:
        given: a run folder, or a model of the zoo, whose files are then referred to; so are those of an entry beside
            the new one that holds the same weights.
        folder: of the entry; an earlier ``entry.json`` in it is replaced.
        submission: what its authors say.
        root: folder of the corpus, where it is not the one in the run's ``config.yaml``.
        on_features: told how far the features are.

    Raises:
        UserError: the run was not attacked as the suite asks, a defence was not attacked by who knows of it, a check of
            the benchmark fails and no remark says why that is, or whatever `examine` refuses.
    """
    run = RunFolder(writable_run(given))
    run.refuse_no_run()
    config, defence = compose(config_file=run.config), submission.defence
    if config.objects:
        raise UserError(
            f"{run.root} was trained with objects of its own ({', '.join(config.objects)}), which no entry holds"
        )
    records, speech = run.read_attacks(), run.read_speech()
    if not records or speech is None:
        raise UserError(f"{run.root} was never attacked: {_command(given, suite.STAGES[0], defence)}")
    attacks, worst_cases = list[StatedAttack](), list[WorstCase]()
    for stage in suite.STAGES:
        for budget in stage.budgets:
            required = stage.required(records, budget, defence, speech.num_utterances)
            worst = stage.worst(records, budget, defence, min(one.num_examples for one in required))
            if any(
                one.robust_uar < worst.robust_uar - 1e-9 for one in required if one.num_examples == worst.num_examples
            ):
                raise UserError(
                    f"the worst case of {run.root} is of a later benchmark, without all attacks of the suite: run "
                    f"{_command(given, stage, defence)}"
                )
            there = stage.records(records, budget, defence)
            attacks += [_stated(record, budget) for record in there if record.attack != WORST_CASE]
            worst_cases.append(
                WorstCase(
                    domain=stage.domain,
                    budget=budget,
                    uar=worst.robust_uar,
                    interval=worst.uar_interval,
                    num_examples=worst.num_examples,
                )
            )
    checks = read_sanity_report(run)
    if checks is None:
        raise UserError(f"{run.root} was attacked with checks=false: {_command(given, suite.STAGES[0], defence)}")
    if checks.failed and not submission.remarks:
        raise UserError(
            f"the benchmark doubts its figures ({', '.join(checks.failed)}): put it right, or say with remarks=TEXT "
            "why they may be believed"
        )
    info = CORPORA.get(config.data.name)
    if submission.licence and info and "NC" in info.licence and "NC" not in submission.licence:
        raise UserError(
            f"weights made of {info.name} are under {info.licence} as it is, got licence={submission.licence}: leave "
            "it out"
        )
    entry = Entry(
        name=submission.name,
        authors=submission.authors,
        licence=submission.licence or (info.licence if info else "Apache-2.0"),
        corpus=config.data.name,
        synthetic=config.data.synthetic,
        settings=settings_of(config),
        trained_by=str(run.read_json(run.environment).get("command", "not on record")),
        defence=defence,
        model=_kept_at(given, folder, run),
        suite=suite.VERSION,
        test=examine(run.root, defence, root=root, on_features=on_features),
        attacks=tuple(attacks),
        worst_cases=tuple(worst_cases),
        training_seed=config.seed,
        checks=checks.headline,
        remarks=submission.remarks,
        digests=digests_of(run.root),
    )
    for name in MODEL_FILES if entry.model is None else ():
        write_bytes(folder / name, (run.root / name).read_bytes())
    entry.write(folder)
    return read_entry(folder)


def _stated(record: AttackRecord, budget: float) -> StatedAttack:
    return StatedAttack(
        attack=record.attack,
        domain=record.domain,
        budget=budget,
        adaptive=record.knowledge == suite.ADAPTIVE,
        steps=record.steps,
        restarts=record.restarts,
        eot_samples=record.eot_samples,
        num_examples=record.num_examples,
        seed=record.seed,
        uar=record.robust_uar,
    )


def _kept_at(given: str, folder: Path, run: RunFolder) -> str | None:
    """Where the same files lie already."""
    if is_zoo_model(given):
        return PREFIX + given.removeprefix(PREFIX)
    own = digests_of(run.root)
    for other in sorted(folder.parent.glob(f"*/{FILE}")):
        if other.parent.name != folder.name:
            entry = read_entry(other.parent)
            if entry.model is None and own.items() <= entry.digests.items():
                return other.parent.name
    return None


def _command(given: str, stage: suite.Stage, defence: str) -> str:
    return f"ser-fl benchmark run={given} {' '.join(stage.settings(defence))}"
