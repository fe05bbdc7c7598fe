"""Where the time of a fit goes, by Lightning's own account of what it is doing."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.profilers import Profiler

from ser_fl.stopwatch import ClientPart, Stopwatch, Watch

_PARTS: dict[str, ClientPart] = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "transfer_batch_to_device": "data",
    "training_step": "forward",
    "backward": "backward",
    "configure_optimizers": "optimiser",
    "optimizer_step": "optimiser",
    "optimizer_zero_grad": "optimiser",
}
"""By the name of Lightning's hook; all others are the trainer's. Its optimizer_step holds the whole of a training step,
of which what has no other part is left."""


class FitProfiler(Profiler):
    """A Lightning profiler that turns the hooks of a Trainer into parts of a stopwatch."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self._watch = watch

    @classmethod
    def of(cls, watch: Watch) -> FitProfiler | None:
        """None where nothing is measured, so that a Trainer has Lightning's own, which does nothing."""
        return cls(watch) if isinstance(watch, Stopwatch) else None

    def start(self, action_name: str) -> None:
        """Lightning begins something, such as ``[Strategy]SingleDeviceStrategy.backward``."""
        hook = action_name.rpartition(".")[2]
        self._watch.enter("trainer" if action_name.startswith("[Callback]") else _PARTS.get(hook, "trainer"))

    def stop(self, action_name: str) -> None:
        """Lightning ends what it began last."""
        self._watch.leave()

    def __reduce__(self) -> tuple[Any, ...]:
        return FitProfiler, (self._watch,)
