"""Hostile clients among honest ones, over any executor: who they are, when, what they send, and what came of it.

The server's rounds, records and rules know nothing of them; ``adversaries.json`` in the run folder does.

Legend: N utterances, F features, L frames, H hostile clients of a round, P entries of an update.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ser_fl.config.schema import Config, dump
from ser_fl.data.features import load_examples
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.prepared import ClientManifest, Prepared
from ser_fl.data.splits import Part
from ser_fl.devices import device_of, send
from ser_fl.errors import UserError, unknown_name
from ser_fl.federation.adversaries import Adversary, Backdoor, Seen, drawn
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.client import Clients, ClientTask, Executor, Scored
from ser_fl.federation.own_objects import NOTHING, OwnObjects, adversary_of
from ser_fl.files import write_json
from ser_fl.randomness import generator
from ser_fl.robustness.evaluator import EVALUATION_BATCH
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.parties import LeftOut
from ser_fl.runs.records import ClientUpdate, Outcome, State

FORGOTTEN = 0.2
"""Success of a backdoor below which it counts as forgotten."""
_STATISTICS = ("running_mean", "running_var")


def with_adversaries(
    executor: Executor,
    config: Config,
    manifest: ClientManifest,
    run: RunFolder,
    clients: Callable[[], Clients],
    own: OwnObjects = NOTHING,
) -> Executor:
    """The executor with hostile clients in it, where the configuration asks for some; the executor itself otherwise.
    ``clients`` are all of them, on this machine, by which a backdoor is measured.

    Raises:
        UserError: clients or emotions that are not there, no honest client, or an attack that does not go with the
            federation.
    """
    settings = config.adversaries
    hostile = drawn(settings, manifest.client_ids, config.seed)
    for emotion in (settings.target, settings.source):
        if emotion is not None and emotion not in manifest.classes:
            raise unknown_name("emotion of adversaries", emotion, manifest.classes)
    if not hostile:
        return executor
    if config.federation.name != "federated":
        raise UserError(f"adversaries={settings.name} goes with federation=federated, got {config.federation.name}")
    adversary = adversary_of(config, own)
    if isinstance(adversary, Backdoor) and len(config.data.corpora) > 1:
        raise UserError(f"adversaries={settings.name} goes with one corpus, got {config.data.written}")
    if settings.name == "enrolment" and (config.normalisation.name != "pooled" or config.executor.name == "flower"):
        raise UserError(
            "adversaries=enrolment goes with normalisation=pooled and executor=serial or processes, got "
            f"{config.normalisation.name} and {config.executor.name}"
        )
    success = run.read_json(run.adversaries).get("backdoor_success", {}) if run.adversaries.exists() else {}
    return HostileClients(executor, config, adversary, frozenset(hostile), run, clients, success)


def enrolled_by_all(prepared: Prepared, config: Config, own: OwnObjects) -> Prepared:
    """The data, standardised by what hostile clients tell of theirs, where they lie about it."""
    adversary, hostile = adversary_of(config, own), drawn(config.adversaries, tuple(prepared.clients), config.seed)
    features_NFL = prepared.store.features_NFL
    sums = {name: FeatureStatistics.of(features_NFL[torch.tensor(prepared.clients[name])]) for name in hostile}
    told = {name: adversary.statistics(own_sums) for name, own_sums in sums.items()}
    if config.normalisation.name != "pooled" or prepared.corpora or all(told[name] is sums[name] for name in sums):
        return prepared
    for name, held in prepared.clients.items():
        told.setdefault(name, FeatureStatistics.of(features_NFL[torch.tensor(held)]))
    standardisation = Standardisation.from_statistics([told[name] for name in prepared.clients], config.frontend)
    return replace(prepared, standardisation=standardisation)


@dataclass(slots=True)
class HostileClients(Executor):
    """An executor of which some clients are hostile. Outcomes keep their order, and honest ones their bits."""

    honest: Executor
    config: Config
    adversary: Adversary
    hostile: frozenset[str]
    run_folder: RunFolder
    clients: Callable[[], Clients]
    success: dict[str, float]
    """Of a backdoor after each round, by its number, of a batch of utterances; 0 is before the first."""
    _measure: "BackdoorMeasure | None" = None

    def party_of(self, name: str) -> tuple[str, ...]:
        return self.honest.party_of(name)

    def leave_out(self, names: tuple[str, ...], reason: str) -> LeftOut:
        return self.honest.leave_out(names, reason)

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[tuple[str, Outcome]]:
        """Outcomes are held until the last honest one is here where hostile ones depend on them."""
        given: dict[str, ClientTask] = {}

        def marked() -> Iterator[ClientTask]:
            for task in tasks:
                if not given:
                    self._note(task.round - 1, task.state)
                is_on = self._is_on(task.round) and task.client_id in self.hostile
                given[task.client_id] = replace(task, hostile=True) if is_on else task
                yield given[task.client_id]

        outcomes = dict(self.honest.run(marked()))
        sent = self._sent({name: each for name, each in outcomes.items() if isinstance(each, ClientUpdate)}, given)
        for client_id in given:
            yield client_id, sent.get(client_id, outcomes[client_id])

    def score(self, models: Mapping[str, State], part: Part, *, attacked: bool = False) -> Scored:
        return self.honest.score(models, part, attacked=attacked)

    def confidences(self, models: Mapping[str, State], part: Part, temperature: float | None = None) -> Scored:
        return self.honest.confidences(models, part, temperature)

    def findings(self, selected: Mapping[str, State], last: Mapping[str, State], round_number: int) -> dict[str, Any]:
        """Of a backdoor: the share of triggered test utterances that the selected model tells as the target, beside
        that without the trigger, and how many rounds after the last hostile one the trigger was forgotten.
        """
        found = self.honest.findings(selected, last, round_number)
        if not isinstance(self.adversary, Backdoor):
            return found
        self._note(round_number, last[GLOBAL])
        measure = self._measured()
        until = self.config.adversaries.until_round
        said = {
            "target": measure.target,
            "source": self.adversary.config.source,
            "trigger": self.adversary.config.trigger,
            "success": measure.success(selected[GLOBAL]),
            "without_trigger": measure.success(selected[GLOBAL], triggered=False),
            "num_utterances": len(measure.rows),
            "rounds_to_forget": until and rounds_to_forget(self.success, until),
        }
        return found | {"backdoor": said}

    def _is_on(self, number: int) -> bool:
        settings = self.config.adversaries
        return settings.from_round <= number <= (settings.until_round or number)

    def _measured(self) -> "BackdoorMeasure":
        if self._measure is None:
            self._measure = BackdoorMeasure(self.clients())
        return self._measure

    def _note(self, number: int, state: State) -> None:
        """Write down who is hostile, and how a backdoor does after a round; what an earlier start found is kept."""
        if isinstance(self.adversary, Backdoor):
            self.success[str(number)] = self._measured().success(state, most=EVALUATION_BATCH)
        elif self.run_folder.adversaries.exists():
            return
        said = {"schema": 1, "hostile": sorted(self.hostile), "adversaries": dump(self.config)["adversaries"]}
        write_json(self.run_folder.adversaries, said | ({"backdoor_success": self.success} if self.success else {}))

    def _sent(self, updates: Mapping[str, ClientUpdate], given: Mapping[str, ClientTask]) -> dict[str, ClientUpdate]:
        """What the hostile clients of a round send in place of what training gave, where that is something else."""
        mine = [name for name in updates if given[name].hostile]
        if not mine:
            return {}
        received, number = given[mine[0]].state, given[mine[0]].round
        names = [name for name, tensor in received.items() if tensor.is_floating_point()]
        names = [name for name in names if not name.endswith(_STATISTICS)]
        received_P = row(received, names)
        knows_all = (self.config.adversaries.knowledge or self.adversary.knowledge) == "all"
        others = [updates[name] for name in updates if name not in mine] if knows_all else []
        sent_HP = self.adversary.updates(
            Seen(
                round=number,
                received_P=received_P,
                own_HP=torch.stack([row(updates[name].state, names) - received_P for name in mine]),
                others_KP=torch.stack([row(other.state, names) - received_P for other in others])
                if others
                else received_P.new_empty((0, len(received_P))),
                cohort_size=len(given),
                streams=tuple(generator(self.config.seed, "adversaries", number, name) for name in mine),
            )
        )
        if sent_HP is None:
            return {}
        return {
            name: replace(
                updates[name],
                state=updates[name].state | entries(received_P + sent_P, received, names),
                update_norm=float(sent_P.norm()),
            )
            for name, sent_P in zip(mine, sent_HP, strict=True)
        }


def rounds_to_forget(success: Mapping[str, float], until: int) -> int | None:
    """Rounds after the last hostile one, ``until``, to the first below `FORGOTTEN`; None where none is."""
    later = sorted(int(number) - until for number, share in success.items() if share < FORGOTTEN)
    return next((since for since in later if since >= 0), None)


def row(state: State, names: Iterable[str]) -> Tensor:
    """Some entries of a state in one row, shape (P,), float64."""
    return torch.cat([state[name].detach().flatten().double() for name in names])


def entries(values_P: Tensor, like: State, names: Iterable[str]) -> State:
    """The row as entries of a state again, in their shapes and types."""
    names = list(names)
    parts = torch.split(values_P, [like[name].numel() for name in names])
    return {name: part.reshape(like[name].shape).to(like[name].dtype) for name, part in zip(names, parts, strict=True)}


class BackdoorMeasure:
    """How many test utterances with the trigger are told as its target."""

    def __init__(self, clients: Clients) -> None:
        assert isinstance(clients.adversary, Backdoor), "asked of backdoors alone"
        self.clients, self.backdoor, data = clients, clients.adversary, clients.data
        classes, utterances = data.store.classes, data.store.utterances
        self.target = self.backdoor.target(classes)
        attacked = [row for row in data.split.test if self.backdoor.is_attacked(utterances[row].emotion, classes)]
        order = torch.randperm(len(attacked), generator=generator(clients.config.seed, "backdoor"))
        self.rows = [attacked[place] for place in order.tolist()]
        """Of the test part, in an order that makes the first ones fair to all speakers and emotions."""
        if not self.rows:
            raise UserError(f"no test utterance could be told as {self.target} by its trigger: choose another source")

    def success(self, state: State, *, most: int | None = None, triggered: bool = True) -> float:
        """Share of the utterances, or of the first of them, that a model tells as the target, in [0, 1]."""
        clients, rows = self.clients, self.rows[:most]
        data = clients.data
        if triggered:
            ids = [data.store.utterances[row].utterance_id for row in rows]
            features_NFL = self.backdoor.triggered(ids, clients.recordings)
        else:
            features_NFL = load_examples(data.store, tuple(rows), data.standardisation).features_NFL
        ((_, network),) = clients.loaded({GLOBAL: state})
        network.eval()
        with torch.no_grad():
            batches = (send(batch_BFL, device_of(network)) for batch_BFL in torch.split(features_NFL, EVALUATION_BATCH))
            told_N = torch.cat([network(batch_BFL).argmax(1).cpu() for batch_BFL in batches])
        return float((told_N == data.store.classes.index(self.target)).double().mean())
