"""What a W&B run is begun with: the settings, W&B's own environment variables where a setting is at its default, and
what an interrupted run was begun with.
"""

import netrc
import os
import re
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.folder import RunFolder

_PLACE = {"project": ("WANDB_PROJECT", "ser_fl"), "entity": ("WANDB_ENTITY", None), "group": ("WANDB_RUN_GROUP", None)}
"""Settings that a run keeps for good: W&B's variable, and the default, at which the variable counts."""
_LONGEST_NAME, _LONGEST_TAG = 128, 64
"""Characters that W&B takes."""
_RUN_NAME = re.compile(r"^(offline-)?run-(?P<time>\d+_\d+)-(?P<id>[^-]+)")
"""Of a folder; where two start in one second, a number follows."""
WANDB_MODES = ("online", "offline", "shared", "disabled")
_OLDER_MODES = {"dryrun": "offline", "run": "online"}
"""W&B's words of before, which it still takes."""


def resolve_mode(mode: str) -> str:
    """W&B's mode for a setting, found out here because wandb itself would prompt for a missing key. "auto" is what
    ``WANDB_MODE`` says; else online if there is an API key (``WANDB_API_KEY`` or netrc), else offline.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", mode)
        mode = _OLDER_MODES.get(mode, mode)
    if mode == "auto":
        return "online" if _has_wandb_key() else "offline"
    if mode not in WANDB_MODES:
        raise unknown_name("WANDB_MODE", mode, WANDB_MODES)
    if mode == "online" and not _has_wandb_key():
        raise UserError(
            "W&B mode is online but no API key was found: set WANDB_API_KEY, run `wandb login`, "
            "or use tracking.mode=offline"
        )
    return mode


def run_begun_in(run: RunFolder) -> str | None:
    """Id of the W&B run that was begun in a run folder before it had a checkpoint to say so."""
    begun = [found for folder in run.root.glob("wandb/*run-*") if (found := _RUN_NAME.search(folder.name))]
    return max(begun, key=lambda found: found["time"])["id"] if begun else None


def wandb_settings(settings: Mapping[str, Any], run: RunFolder, state: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `wandb.init`. ``state`` holds id, project, entity and group from the first time on. What somebody
    may have changed on the server since, name, tags and job type, is given to a new run alone.
    """
    tracking, begun = settings["tracking"], run_begun_in(run)
    of_agent = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    is_new = begun is None and "wandb_id" not in state
    given = dict[str, Any]()
    if of_agent:
        state["wandb_id"] = of_agent
        given["group"] = tracking["group"]
    else:
        given["id"] = state.setdefault("wandb_id", begun or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12])
        for setting, (variable, default) in _PLACE.items():
            chosen = os.environ.get(variable) if tracking[setting] == default else tracking[setting]
            given[setting] = state.setdefault(setting, chosen or default)
    if is_new:
        numbered = f"{settings['experiment']}-seed{settings['seed']}"
        given["name"] = (settings["run_name"] or os.environ.get("WANDB_NAME") or numbered)[:_LONGEST_NAME]
        given["job_type"] = os.environ.get("WANDB_JOB_TYPE") or "train"
        given["tags"] = tags_of(settings)
    return given


def tags_of(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Experiment, corpus, objective and federation, the user's own and those of ``WANDB_TAGS``, each once."""
    stages = (settings.get(stage) or {} for stage in ("data", "objective", "federation"))
    named = (settings["experiment"], *(stage.get("name") for stage in stages))
    of_environment = map(str.strip, os.environ.get("WANDB_TAGS", "").split(","))
    tags = (str(tag)[:_LONGEST_TAG] for tag in (*named, *settings["tracking"]["tags"], *of_environment) if tag)
    return tuple(dict.fromkeys(tags))


def unless_in_environment(**settings: Any) -> dict[str, Any]:
    """Those of W&B's settings that no variable of W&B's is set for.

    >>> os.environ["WANDB__DISABLE_META"] = "false"
    >>> unless_in_environment(x_disable_meta=True, console="off")
    {'console': 'off'}
    >>> del os.environ["WANDB__DISABLE_META"]
    """
    return {
        name: value
        for name, value in settings.items()
        if f"WANDB_{name.removeprefix('x') if name.startswith('x_') else name}".upper() not in os.environ
    }


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    default = os.path.expanduser("~/_netrc" if os.name == "nt" else "~/.netrc")  # noqa: PTH111, raises nothing
    try:
        entry = netrc.netrc(os.environ.get("NETRC", default)).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(entry and entry[2])
