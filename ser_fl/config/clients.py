"""How training utterances are spread over clients."""

from __future__ import annotations

from typing import Literal

from ser_fl.config.values import Count, Positive, stage


@stage
class ClientsConfig:
    """How training utterances are spread over clients."""

    by: Literal["speaker", "session", "dirichlet", "iid"]
    num_clients: Count | None
    """For dirichlet and iid; null: as many as training speakers. For speaker and session: at most this many."""
    dirichlet_alpha: Positive
    """Label skew of "dirichlet": small is skewed, large is iid."""
