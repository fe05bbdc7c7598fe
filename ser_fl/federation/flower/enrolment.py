"""How an experiment on Flower begins: which nodes take part, what they hold, and what is made of it."""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ser_fl.data.frontend import Standardisation
from ser_fl.data.heard import Shared
from ser_fl.data.normalisation import Scale
from ser_fl.data.partitioning import capped
from ser_fl.data.prepared import ClientManifest, Sizes, digest_of_all
from ser_fl.data.splits import PARTS, SpeakerFacts, check_parts, settle_split
from ser_fl.data.utterance import SkippedFile
from ser_fl.errors import UserError
from ser_fl.federation.flower.holding import Holding, is_told
from ser_fl.federation.flower.nodes import GivenUp, Nodes
from ser_fl.federation.flower.serialisation import Enrolled, Speakers, WireError
from ser_fl.runs.parties import shown_names

_LOOK_S = 0.5


def enrol(nodes: Nodes, num_nodes: int, patience_s: float, known: Mapping[str, str] | None = None) -> ClientManifest:
    """Wait for nodes, ask who is there and what they hold, and settle the experiment by it. A node that does not answer
    as it should is named and left out (`federation.strikes`). ``known`` are the digests of speakers that a run which
    goes on was begun with: nobody else is let in. Too few nodes, none that can take part, or data that make no
    experiment are a `UserError`.
    """
    present = _wait_for(nodes, num_nodes, patience_s)
    facts, skipped = _introductions(nodes, present, known or {})
    emotions = sorted({emotion for each in facts for emotion in each.emotions})
    if len(emotions) < 2:
        raise UserError(f"the nodes hold one emotion only ({', '.join(emotions)}): a classifier needs two")
    nodes.classes = tuple(emotions)
    split = settle_split(sorted(facts, key=lambda each: each.speaker), nodes.config.split)
    nodes.config = replace(nodes.config, split=split)
    _take_holdings(nodes, {each.speaker: each for each in facts}, known or {})
    nodes.manifest = _add_up(nodes, skipped)
    return nodes.manifest


def _wait_for(nodes: Nodes, num_nodes: int, patience_s: float) -> list[int]:
    begun = time.monotonic()
    while len(present := sorted(nodes.grid.get_node_ids())) < num_nodes:
        if time.monotonic() - begun > patience_s:
            raise UserError(
                f"executor.num_nodes asks for {num_nodes} nodes, {len(present)} are connected after "
                f"{patience_s:g} s (executor.wait_s): start the others, or ask for fewer"
            )
        if nodes.given_up.wait(_LOOK_S):
            raise GivenUp
    return present


def _introductions(
    nodes: Nodes, present: Sequence[int], known: Mapping[str, str]
) -> tuple[list[SpeakerFacts], tuple[SkippedFile, ...]]:
    """Who is at the nodes, each speaker at one, and how many files nobody can use."""
    told, skipped = dict[int, Speakers](), list[SkippedFile]()
    answers = dict(nodes.ask("query.speakers", {node: nodes.question("query.speakers") for node in present}, Speakers))
    for node in present:
        answer = answers[node]
        names = [] if isinstance(answer, str) else [facts.speaker for facts in answer[0].speakers]
        if isinstance(answer, str):
            nodes.leave_out(node, answer)
        elif len(set(names)) < len(names):
            nodes.leave_out(node, "it names a speaker twice")
        elif known and (unknown := sorted(set(names) - known.keys())):
            nodes.leave_out(node, f"the run was begun without {shown_names(unknown)}")
        else:
            told[node] = answer[0]
    speakers = {node: {facts.speaker for facts in said.speakers} for node, said in told.items()}
    for node, contested in rivals(speakers):
        nodes.leave_out(
            node, f"two nodes hold speaker {contested!r}: each speaker's data must be at one node (--speakers)"
        )
        del told[node]
    if not told:
        raise UserError(f"a node cannot take part: {nodes.left_out[0].reason} (of {len(present)} nodes none can)")
    for node, said in told.items():
        nodes.node_of |= dict.fromkeys(speakers[node], node)
        if said.skipped:
            skipped.append(SkippedFile(f"{said.skipped} files of a node", "named in the log of the node"))
    return [facts for said in told.values() for facts in said.speakers], tuple(skipped)


def rivals(speakers: Mapping[int, Collection[str]]) -> list[tuple[int, str]]:
    """Nodes to leave out until each speaker is at one, and a speaker that each of them contests. Nobody knows who is
    right: at first it is the node that contests those of most others, then the one that names most that no other does,
    since it can do without, then the one of the highest number.
    """
    left, out = {node: set(names) for node, names in speakers.items()}, list[tuple[int, str]]()
    while True:
        claims = Counter(name for names in left.values() for name in names)
        contested = {node: {name for name in names if claims[name] > 1} for node, names in left.items()}
        worst = max(
            (node for node in left if contested[node]),
            key=lambda node: (
                sum(not contested[node].isdisjoint(names) for names in left.values()),
                len(left[node] - contested[node]),
                node,
            ),
            default=None,
        )
        if worst is None:
            return out
        out.append((worst, min(contested[worst])))
        del left[worst]


def _take_holdings(nodes: Nodes, facts: Mapping[str, SpeakerFacts], known: Mapping[str, str]) -> None:
    """What each node holds; one whose counts cannot be, or do not go with what it said before, is left out."""
    questions = {node: nodes.question("query.enrol") for node in sorted(set(nodes.node_of.values()))}
    answers = dict(nodes.ask("query.enrol", questions, Enrolled))
    for node in questions:
        answer = answers[node]
        try:
            if isinstance(answer, str):
                raise WireError(answer)
            holding = Holding.of(*answer, nodes.config)
            own = {name: facts[name] for name, holder in nodes.node_of.items() if holder == node}
            _check_own(holding, own, nodes, known)
        except WireError as problem:
            nodes.leave_out(node, str(problem))
            continue
        nodes.holdings[node] = holding
        for client in holding.said.clients:
            nodes.speaker_of[client] = client if client in own else min(own)


def _check_own(holding: Holding, own: Mapping[str, SpeakerFacts], nodes: Nodes, known: Mapping[str, str]) -> None:
    """Refuse answers for others' speakers and clients, and more utterances than there are recordings."""
    said = holding.said
    told = {*said.digests, *(name for held in said.sizes.values() for name in held)}
    if not told <= own.keys() or (said.clients and not own):
        raise WireError("it answers for speakers that it did not name")
    if taken := sorted(said.clients.keys() & nodes.speaker_of.keys()):
        raise WireError(f"two nodes hold data of {taken[0]!r}, which is one client: give them to one node")
    for speaker, digest in said.digests.items():
        if speaker in known and known[speaker] != digest:
            raise WireError(f"of {speaker} it holds other utterances than the run was begun with")
    if nodes.config.data.segment_s is None:
        for speaker, each in own.items():
            held = sum(said.sizes[part].get(speaker, 0) for part in PARTS)
            if held > (named := sum(each.emotions.values())):
                raise WireError(f"of {speaker} it holds {held} utterances, it named {named}")


def _add_up(nodes: Nodes, skipped: tuple[SkippedFile, ...]) -> ClientManifest:
    """The experiment of all holdings."""
    holdings = [nodes.holdings[node] for node in sorted(nodes.holdings)]
    num_examples = {client: count for each in holdings for client, count in each.said.clients.items()}
    statistics = {client: sums for each in holdings for client, sums in each.statistics.items()}
    digests = {speaker: digest for each in holdings for speaker, digest in each.said.digests.items()}
    sizes: Sizes = {
        part: dict(sorted((name, count) for each in holdings for name, count in each.said.sizes[part].items()))
        for part in PARTS
    }
    config = nodes.config
    in_parts = {part: sum(sizes[part].values()) for part in PARTS}
    check_parts(in_parts, config.split, config.selection.needs_validation)
    client_ids = capped(sorted(num_examples), config.clients)
    sums_of, fallback = [statistics[client] for client in client_ids if is_told(config)], None
    if config.normalisation.name == "speaker":
        standardisation = Standardisation.of_scaled(config.frontend)
        fallback = Scale.average(map(Scale.of, sums_of)) if sums_of else None
    else:
        standardisation = Standardisation.from_statistics(sums_of, config.frontend)
    return ClientManifest(
        classes=nodes.classes,
        client_ids=client_ids,
        num_examples=num_examples,
        sizes=sizes,
        standardisation=standardisation,
        fallback=fallback,
        digest=digest_of_all(digests, client_ids, standardisation),
        digests=digests,
        skipped=skipped,
        left_out=nodes.left_out,
        shared=Shared(
            num_utterances=sum(sizes["test"].values()),
            speakers=len(sizes["test"].keys() & (sizes["train"].keys() | sizes["validation"].keys())),
            num_speakers=len(sizes["test"]),
        ),
    )
