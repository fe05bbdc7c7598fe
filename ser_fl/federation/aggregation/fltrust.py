"""Clients are trusted as far as they go where the server's own utterances go."""

import math
from collections.abc import Sequence

from ser_fl.federation.aggregation.robust import Robust
from ser_fl.federation.aggregation.weighted_mean import RunningMean
from ser_fl.runs.records import ClientUpdate, State


class FLTrust(Robust):
    """Mean of changes that are as long as the root's, weighted by ReLU(cosine to the root's) (Cao et al., arXiv
    2012.13995, equations 2 to 4). The root trains on clean utterances that the server trusts; here it is a client.

    Deviations: the root is averaged too, with trust 1, since its utterances are the federation's; so there is a result
    where nobody else is trusted. Of models after local epochs. It needs the root in every round and no majority, keeps
    no update but the root's, and asks nobody for his utterances. `shares` are each one's part of all trust.

    Args:
        root: the trusted client, the first one of every cohort.
    """

    name = "fltrust"
    per_hostile = 0

    def __init__(self, root: str) -> None:
        super().__init__(0.0)
        self.always = root
        self._root: State | None = None
        self._mean, self._trust, self._early = RunningMean(), dict[str, float](), list[ClientUpdate]()

    def refusal(self, client_ids: Sequence[str]) -> str | None:
        if self.always in client_ids:
            return None
        return (
            f"federation.aggregation=fltrust needs the update of its root client in every round: "
            f"{self.always!r} (federation.aggregation.root) is none of {', '.join(client_ids[:20])}"
        )

    def add(self, update: ClientUpdate) -> None:
        norm, trust = self.norm(update.state), float(update.client_id == self.always)
        if trust:
            self._root, self._root_norm = update.state, norm
        if (root := self._root) is None:
            self._early.append(update)
            return
        if not trust and norm and self._root_norm:
            products = (self.change(update.state, name) @ self.change(root, name) for name in self.names)
            trust = max(0.0, float(sum(products)) / norm / self._root_norm)
        self._trust[update.client_id] = trust
        if trust:
            self._mean.add(update.state, trust * (self._root_norm / norm if norm else 1.0))
        early, self._early = self._early, []
        for one in early:
            self.add(one)

    def combined(self) -> State:
        whole = math.fsum(self._trust.values())
        if self._mean.weight != whole:
            self._mean.add(self.received, whole - self._mean.weight)
        self._shares = {client_id: trust / whole for client_id, trust in self._trust.items()}
        return self._mean.result()
