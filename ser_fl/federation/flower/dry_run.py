"""`ser-fl federation node ... --dry-run`: what a node would tell a server, by its policy. Nothing is sent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from flwr.app import RecordDict

from ser_fl.config.compose import compose
from ser_fl.config.policy import read_policy
from ser_fl.data.prepared import open_node_corpus, open_partition
from ser_fl.data.splits import facts_of, settle_split
from ser_fl.federation.flower.client_app import enrol, named_host
from ser_fl.federation.flower.guard import Guard
from ser_fl.federation.flower.nodes import told_settings


def what_is_shared(
    policy_file: Path, state: Path, node_config: Mapping[str, str], settings: Sequence[str]
) -> Iterator[str]:
    """Lines: the policy, and what an enrolment in an experiment of these settings would tell. The split is settled by
    the speakers here, as if no other node took part. A `UserError` says what the policy refuses.
    """
    policy = read_policy(policy_file)
    yield f"policy: {policy_file}"
    names = [each.name for each in fields(policy)]
    yield from (f"  {key}: {getattr(policy, key)}" for key in names)
    if policy.app == "any":
        yield "whoever may submit runs may run code here that reads all this account can read: no limit holds"
        return
    root = node_config.get("data-root")
    config = compose([*settings, "executor=flower", *([f"data.root={root}"] if root else [])])
    guard = Guard(policy, state)
    host = guard.bounded(named_host(node_config))
    corpus = open_node_corpus(host.config_of(told_settings(config)), host)
    told = facts_of(corpus.utterances, config.split, corpus.name)
    yield f"asked who is here, it would tell of {len(told)} speakers, and of {len(corpus.skipped)} skipped files:"
    for facts in told:
        emotions = ", ".join(f"{emotion} {count}" for emotion, count in facts.emotions.items())
        yield f"  {facts.speaker}, sex {facts.sex or 'unknown'}: {emotions}; {len(facts.texts)} digests of texts"
    classes = sorted({emotion for facts in told for emotion in facts.emotions})
    config = replace(config, split=settle_split(told, config.split))
    settled = told_settings(config)
    content, config = {"config": settled, "classes": classes}, host.config_of(settled)
    guard.admit("query.enrol", config, content, RecordDict())
    said, tensors = enrol(config, host, content, RecordDict())
    yield "asked to enrol, it would tell:"
    for speaker, digest in said["digests"].items():
        parts = ", ".join(f"{part} {held.get(speaker, 0)}" for part, held in said["sizes"].items())
        yield f"  speaker {speaker}: {parts}; digest {digest}"
    whole = open_partition(config, replace(host, least_utterances=1, least_scored=1), classes)
    for client, held in whole.clients.items():
        if client not in said["clients"]:
            least = policy.least_utterances
            yield f"  client {client} stays home: {len(held)} training utterances, of {least} at least"
            continue
        sums = tensors.get(f"statistics/{client}", {})
        frames = f", and over {said['frames'][client]} frames" if sums else ", no sums over features"
        rows = "; ".join(f"{key} of {len(row)} bins, {row.min():.6g} to {row.max():.6g}" for key, row in sums.items())
        yield f"  client {client}: {said['clients'][client]} training utterances{frames}{rows and f': {rows}'}"
    yield "then models go both ways, and confusion matrices; nothing was sent now"
