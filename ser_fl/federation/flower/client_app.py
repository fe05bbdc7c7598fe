"""The ClientApp: one host of some speakers, which answers a server's questions about them and trains its models."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from ser_fl.config.schema import Config
from ser_fl.data.configured_corpus import open_configured_corpus
from ser_fl.data.frontend import FeatureStatistics, Standardisation
from ser_fl.data.prepared import Host, Partition, Prepared, open_node_corpus, open_partition
from ser_fl.data.splits import facts_of
from ser_fl.devices import exact_arithmetic, threads_limited_to
from ser_fl.errors import UserError, shown
from ser_fl.federation.algorithm import GLOBAL
from ser_fl.federation.client import Clients, ClientTask, attempt
from ser_fl.federation.flower.guard import Guard, Refused
from ser_fl.federation.flower.serialisation import asked_in, put, put_json, take, take_json
from ser_fl.federation.flower.submission import configured
from ser_fl.runs.records import FIGURES, State
from ser_fl.runs.redaction import public_text

_LOG = logging.getLogger(__name__)
_LONGEST_REASON = 10_000
"""Characters of an error that are told, from its end."""

Answer = tuple[dict[str, Any], dict[str, State]]
"""What becomes JSON, and tensors by name."""
Respond = Callable[[Message, Context], Message]


@lru_cache(maxsize=64)  # for processes that answer more than one question: a simulation's
def _open_share(host: Host, settings: str, classes: tuple[str, ...]) -> Partition:
    return open_partition(host.config_of(json.loads(settings)), host, classes)


def _share(host: Host, content: Mapping[str, Any]) -> Partition:
    """The host's data for a server's question."""
    return _open_share(host, json.dumps(content["config"]), tuple(content["classes"]))


def _clients(config: Config, host: Host, content: Mapping[str, Any], records: RecordDict) -> Clients:
    """Those that are here, with features standardised as at all hosts."""
    share, values = _share(host, content), take(records, "standardisation")
    standardisation = Standardisation(*(values[f"{name}_F1"] for name in ("mean", "deviation", "lower", "upper")))
    data = Prepared(store=share.store, split=share.split, clients=share.clients, standardisation=standardisation)
    return Clients(config, data)


def speakers(config: Config, host: Host, content: Mapping[str, Any], records: RecordDict) -> Answer:
    """Who is here: what the split must know of the speakers."""
    corpus = open_node_corpus(config, host)
    facts = [asdict(each) for each in facts_of(corpus.utterances, config.split, corpus.name)]
    return {"speakers": facts, "skipped": len(corpus.skipped)}, {}


def enrol(config: Config, host: Host, content: Mapping[str, Any], records: RecordDict) -> Answer:
    """What the split and a resumed run need, counts and digests; and sums over features, where others need them."""
    share = _share(host, content)
    sizes, digests = share.sizes_and_digests()
    is_told = config.normalisation.name == "pooled" or config.normalisation.share_mean
    statistics = {
        client: FeatureStatistics.of(share.store.features_NFL[torch.tensor(held)])
        for client, held in (share.clients.items() if is_told else ())
    }
    names = ("sum_F", "sum_of_squares_F", "maximum_F")
    return {
        "clients": {client: len(held) for client, held in share.clients.items()},
        "frames": {client: sums.count for client, sums in statistics.items()},
        "sizes": sizes,
        "digests": digests,
    }, {f"statistics/{client}": {name: getattr(sums, name) for name in names} for client, sums in statistics.items()}


def train(config: Config, host: Host, content: Mapping[str, Any], records: RecordDict) -> Answer:
    """The local epochs of the clients that are here."""
    clients = _clients(config, host, content, records)
    figures, tensors = dict[str, dict[str, Any]](), dict[str, State]()
    if strangers := set(content["clients"]) - clients.data.clients.keys():
        raise UserError(f"no such client has enrolled here: {shown(min(strangers))}")
    for client_id in content["clients"]:
        kept = f"optimiser/{client_id}"
        task = ClientTask(
            round=content["round"],
            client_id=client_id,
            state=take(records, "model"),
            learning_rate=content["learning_rate"],
            optimiser_state=take(records, kept) if kept in records else {},
            hostile=client_id in content.get("hostile", ()),
        )
        outcome = attempt(clients.update, task)
        if isinstance(outcome, str):
            _LOG.error("client %s failed in round %d:\n%s", client_id, task.round, outcome)
            figures[client_id] = {"error": _public(outcome, host)}
            continue
        figures[client_id] = {name: getattr(outcome, name) for name in FIGURES}
        tensors |= {f"update/{client_id}": outcome.state, kept: outcome.optimiser_state}
    return {"updates": figures}, tensors


def score(config: Config, host: Host, content: Mapping[str, Any], records: RecordDict) -> Answer:
    """Confusion matrices of the speakers here."""
    clients, models = _clients(config, host, content, records), {GLOBAL: take(records, "model")}
    scored = clients.score(models, content["part"], attacked=content["attacked"])
    return {"confusions": {holder: matrix.astype(int).tolist() for holder, matrix in scored.by_holder.items()}}, {}


def confidences(config: Config, host: Host, content: Mapping[str, Any], records: RecordDict) -> Answer:
    """How sure a model is of the utterances of the speakers here: sums over each one's."""
    clients, models = _clients(config, host, content, records), {GLOBAL: take(records, "model")}
    found = clients.confidences(models, content["part"], content["temperature"])
    return {"confidences": {holder: sums.tolist() for holder, sums in found.by_holder.items()}}, {}


def make_client_app(host_of: Callable[[Context], Host]) -> ClientApp:
    """A ClientApp for the hosts that a context tells of."""
    app = ClientApp()

    def answering(answer: Callable[[Config, Host, Mapping[str, Any], RecordDict], Answer]) -> Respond:
        def respond(message: Message, context: Context) -> Message:
            host, guard, content, why = Host(), None, dict[str, Any](), None
            try:
                host = host_of(context)
                if guard := Guard.of(context.node_config):
                    host = guard.bounded(host)
                    guard.receive(message)
                content = take_json(message.content)
                config = host.config_of(content["config"])
                if guard:
                    guard.admit(message.metadata.message_type, config, content, message.content)
                limited = guard.memory_limited() if guard else nullcontext()
                with threads_limited_to(config.executor.threads), exact_arithmetic(), limited:
                    said, tensors = answer(config, host, content, message.content)
                if guard and answer is enrol:
                    tensors = guard.keep(config, said, tensors)
                records = _records({**said, "asked": asked_in(message.content)}, tensors)
            except Exception as error:
                if isinstance(error, Refused):
                    _LOG.warning("refused: %s", error)
                else:
                    _LOG.exception("this host could not answer")
                why, reason = error, " ".join(f"{type(error).__name__}: {error}".split())
                records = _records({"error": _public(reason, host)})
            if guard:
                try:
                    guard.log(message, content, records, why)
                except OSError as error:  # what is not logged is not answered
                    _LOG.exception("the audit log cannot be written")
                    records = _records({"error": f"its audit log cannot be written: {error.strerror}"})
            return Message(records, reply_to=message)

        return respond

    app.query("speakers")(answering(speakers))
    app.query("enrol")(answering(enrol))
    app.query("confidences")(answering(confidences))
    app.train()(answering(train))
    app.evaluate()(answering(score))
    return app


def _records(said: Mapping[str, Any], tensors: Mapping[str, State] = MappingProxyType({})) -> RecordDict:
    records = RecordDict()
    for name, state in tensors.items():
        put(records, name, state)
    put_json(records, said)
    return records


def _public(text: str, host: Host) -> str:
    """An error's text without the folders of this host, which are nobody else's business."""
    return public_text(text, [folder for folder in (host.root, host.cache_dir) if folder])[-_LONGEST_REASON:]


def all_speakers(config: Config) -> list[str]:
    """Of the corpus that an experiment names."""
    return sorted({utterance.speaker for utterance in open_configured_corpus(config).utterances})


def simulated_host(config: Config, speakers: Sequence[str], context: Context) -> Host:
    """The k-th of n simulated nodes, which holds every n-th speaker from the k-th on; all read the one corpus."""
    number, count = (int(str(context.node_config[name])) for name in ("partition-id", "num-partitions"))
    return Host(config.data.root, config.data.cache_dir, tuple(speakers[number::count]), simulated=True)


def host_of_node(context: Context) -> Host:
    """As the node was started: ``data-root``, ``cache-dir`` and ``speakers`` of its configuration. In a simulation by
    `flwr run` a node has a number alone, and reads the corpus that the run names.
    """
    given = {key: str(value) for key, value in context.node_config.items()}
    if "partition-id" in given and "data-root" not in given:
        config = configured(context.run_config)
        return simulated_host(config, all_speakers(config), context)
    return named_host(given)


def named_host(given: Mapping[str, str]) -> Host:
    """By the configuration of a node."""
    names = (name.strip() for name in given.get("speakers", "").split(","))
    return Host(given.get("data-root"), given.get("cache-dir"), tuple(name for name in names if name))


torch.set_num_threads(1)  # until a message says how many
app = make_client_app(host_of_node)
