"""Weights & Biases: one run an experiment, offline where there is no key or no way to the server."""

import logging
import netrc
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ser_fl.errors import UserError, unknown_name
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord
from ser_fl.runs.redaction import public_text
from ser_fl.tracking import metric_names
from ser_fl.tracking.metric_names import ROUND

logger = logging.getLogger(__name__)

MAX_ARTIFACT_BYTES = 50_000_000
"""Larger weights stay in the run folder."""
INIT_TIMEOUT_S = 60
FINISH_TIMEOUT_S = 120
"""How long the end of a run may wait for uploads; what is left can be sent with ``wandb sync``."""
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


_RUNS: set[Path] = set()


def _without_folders(record: logging.LogRecord) -> bool:
    """A filter that takes the folders of this machine out of what wandb logs to files in run folders. One for all runs
    of a process: wandb's loggers and handlers outlive a run, and with it its filter. What others log stays as it is:
    somebody's own handler may listen to wandb, and to them.
    """
    if record.name.partition(".")[0] == "wandb":
        record.msg, record.args = public_text(record.getMessage(), _RUNS), ()
    return True


class WeightsAndBiases:
    """One W&B run; where the server cannot be reached, as on most cluster nodes, an offline one of the same id."""

    def __init__(self, run: RunFolder, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # wandb speaks before it has read our settings
        import wandb

        self._wandb = wandb
        self._folder = run
        self._online = settings["mode"] == "online"
        _RUNS.add(run.root.absolute())
        logging.getLogger("wandb").addFilter(_without_folders)  # the first lines come before there is a file to watch
        try:
            self._run = self._init(settings, config)
        except Exception as error:
            if not self._online:
                raise
            reason = public_text(" ".join(f"{type(error).__name__}: {error}".split()))
            logger.warning("W&B cannot be reached, this run is tracked offline: `wandb sync` sends it (%s)", reason)
            self._online = False
            if wandb.run is None:  # a caller's own run would end with it
                wandb.teardown()  # else the id counts as in use by what has just failed
            self._run = self._init({**settings, "mode": "offline"}, config)
        for handler in logging.getLogger("wandb").handlers:
            handler.addFilter(_without_folders)
        self._run.define_metric(ROUND)
        self._run.define_metric("*", step_metric=ROUND)
        if self._online:
            logger.info("W&B run: %s", self._run.url)

    def _init(self, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
        return self._wandb.init(
            **settings,
            resume="allow",
            dir=self._folder.root,
            config=dict(config),
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                use_dot_wandb=False,
                reinit="create_new",  # else a run that a caller left open would get our figures
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                x_disable_meta=True,  # the command line has data folders; environment.json is kept with the run
                x_disable_stats=True,
                x_transaction_log_flush_interval=1.0,  # what a killed run can lose; wandb's own 15 s is many rounds
            ),
        )

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self._run.log({ROUND: record.round, **metric_names.round_metrics(record, clients)})

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        self._run.summary.update(metric_names.attack_metrics(records))
        rows = [{key: value for key, value in asdict(record).items() if key != "confusion"} for record in records]
        if rows:
            table = self._wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self._run.log({metric_names.ATTACK_TABLE: table})

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(metric_names.summary_metrics(summary))
        classes, test = summary["classes"], summary["test"]
        counts = [
            (true, predicted, count)
            for true, row in zip(classes, test["confusion"], strict=True)
            for predicted, count in zip(classes, row, strict=True)
        ]
        recall = list(zip(classes, test["per_class_recall"], strict=True))
        table: Callable[..., Any] = self._wandb.Table
        confusion_table = table(columns=["true", "predicted", "count"], data=counts)
        recall_table = table(columns=["class", "recall"], data=recall)
        self._run.log({metric_names.CONFUSION_TABLE: confusion_table, metric_names.RECALL_TABLE: recall_table})
        weights = self._folder.weights
        if not self._online or not weights.exists() or weights.stat().st_size > MAX_ARTIFACT_BYTES:
            return
        artifact = self._wandb.Artifact(f"model-{self._run.id}", type="model")
        for path in (weights, self._folder.model, self._folder.summary):
            if path.exists():
                artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self) -> None:
        self._run.finish()
