"""What the server saw of each party to a run, and in which of it one stands out."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ser_fl.data.prepared import ClientManifest
from ser_fl.metrics import Floats, scores
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.parties import Party

_FEWEST = 3
"""Parties among which one can stand out."""
_TIMES, _AWAY, _LITTLE, _FAR = 3.0, 0.0, 0.25, 0.3
"""What stands out: a norm so many times the median's, a cosine below, a share in the result below so much of that by
utterances, or above it by as much, and UAR so far from the median's."""
MOST_SHOWN = 100


def shown_parties(
    run: RunFolder, party_of: Callable[[str], tuple[str, ...]], manifest: ClientManifest, tested: Mapping[str, Floats]
) -> list[dict[str, Any]]:
    """From the run's own records. Of very many those that stand out or offended alone."""
    in_round = defaultdict[int, list[dict[str, Any]]](list)
    for update in run.read_jsonl(run.clients):
        in_round[update["round"]].append(update)
    seen = defaultdict[tuple[str, ...], dict[str, list[float]]](lambda: defaultdict(list))
    for line in run.read_jsonl(run.rounds):
        if not (own := in_round[line["round"]]):
            continue
        usual, total = statistics.median(one["update_norm"] for one in own), sum(one["num_examples"] for one in own)
        for update in own:
            of, name = seen[party_of(update["client_id"])], update["client_id"]
            of["times_median"].append(update["update_norm"] / usual if usual else 1.0)
            if update.get("cosine") is not None:
                of["cosine"].append(update["cosine"])
            if name in line.get("shares", {}):
                of["share"].append(line["shares"][name] / (update["num_examples"] / total))
        for party in {party_of(failure["client_id"]) for failure in line["failures"] if failure.get("offence")}:
            seen[party]["offences"].append(line["round"])
    names = {party_of(name) for name in (*manifest.client_ids, *tested)}
    parties = [_party(party, seen[party], manifest, tested) for party in sorted(names | seen.keys())]
    uars = [party.uar for party in parties if party.uar is not None]
    usual_uar = statistics.median(uars) if len(uars) >= _FEWEST else None
    told = [replace(party, outlier=tuple(_outlier(party, usual_uar, len(parties)))) for party in parties]
    return [asdict(party) for party in told if len(told) <= MOST_SHOWN or party.outlier or party.offences]


def _party(
    names: tuple[str, ...], seen: Mapping[str, list[float]], manifest: ClientManifest, tested: Mapping[str, Floats]
) -> Party:
    def of(key: str, take: Callable[[list[float]], float] = statistics.median) -> float | None:
        return round(take(seen[key]), 3) if seen.get(key) else None

    held = [tested[name] for name in names if name in tested]
    return Party(
        names=names,
        num_examples=sum(manifest.num_examples.get(name, 0) for name in names),
        rounds=len(seen.get("times_median", [])),
        offences=len(seen.get("offences", [])),
        times_median=of("times_median"),
        cosine=of("cosine"),
        share=of("share", statistics.fmean),
        uar=scores(np.sum(held, axis=0)).uar if held else None,
    )


def _outlier(party: Party, usual_uar: float | None, count: int) -> Iterator[str]:
    if count < _FEWEST:
        return
    if party.times_median is not None and party.times_median > _TIMES:
        yield f"its updates are {party.times_median:.3g} times as long as the median of all"
    if party.cosine is not None and party.cosine < _AWAY:
        yield f"its updates point away from those of the others (cosine {party.cosine:.2f})"
    if party.share is not None and not _LITTLE < party.share < 1 / _LITTLE:
        yield f"the aggregation takes {party.share:.3g} times as much of it as its utterances would"
    if party.uar is not None and usual_uar is not None and abs(party.uar - usual_uar) > _FAR:
        yield f"its test UAR is {party.uar:.3f}, where the median of all is {usual_uar:.3f}"
