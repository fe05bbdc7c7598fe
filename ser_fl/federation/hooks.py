"""Who watches a run, and what they are told before its next round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ser_fl.config.schema import Config
from ser_fl.data.features import OnFeatures
from ser_fl.data.prepared import ClientManifest
from ser_fl.federation.profile import OnProfile
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.preemption import Preemption
from ser_fl.runs.records import RoundRecord, State

OnRound = Callable[[RoundRecord], None]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of what batch norm keeps beside parameters."""


def num_parameters(state: State) -> int:
    """Of a model that travels."""
    return sum(tensor.numel() for name, tensor in state.items() if not name.endswith(_STATISTICS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What is known of a run before its next round."""

    config: Config
    """With its precision settled."""
    run: RunFolder
    client_manifest: ClientManifest
    devices: Sequence[str]
    num_parameters: int
    """Of a model that travels."""
    round: int
    """Rounds that are done."""
    tracked: str
    """Where the run is shown, in words; empty where it is not."""
    sending: str
    """The command that sends what is tracked, once the run is over; empty where there is nothing to send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Who watches a run, and who may end it."""

    on_opening: Callable[[Opening], None] = lambda opening: None
    """Told of the run before its next round."""
    on_round: OnRound = lambda record: None
    """Told of every committed round."""
    on_features: OnFeatures | None = None
    """Told how far the features are, where they are computed here."""
    on_profile: OnProfile = lambda profile: None
    """Told where the time of the rounds went, with `profile=true`; of a run that is cut short too."""
    preemption: Preemption | None = None
    """Whose signals a round in flight is sheltered from; None where nobody listens to any."""
