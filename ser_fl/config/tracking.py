"""Where figures are tracked."""

from __future__ import annotations

from typing import Literal

from ser_fl.config.values import stage


@stage
class TrackingConfig:
    """Beside the run folder, which is always written."""

    backend: Literal["wandb", "tensorboard", "none"]
    mode: Literal["auto", "online", "offline"]
    """auto: online where an API key is found, else offline."""
    project: str
    entity: str | None
    group: str | None
