"""Weights & Biases: one run an experiment, offline where there is no key or no way to the server."""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ser_fl.runs.environment import git_commit
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord, ClientRecord, RoundRecord
from ser_fl.runs.redaction import public_config, public_text
from ser_fl.tracking import metric_names
from ser_fl.tracking.backend import Backend
from ser_fl.tracking.metric_names import BEST, BY_ROUND, ROUND
from ser_fl.tracking.wandb_settings import tags_of, unless_in_environment

logger = logging.getLogger(__name__)

MAX_ARTIFACT_BYTES = 50_000_000
"""Larger weights stay in the run folder."""
INIT_TIMEOUT_S = 60
FINISH_TIMEOUT_S = 120
"""How long the end of a run may wait for uploads; what is left can be sent with ``wandb sync``."""
_OF_THIS_MACHINE = ("run", "root", "speech")
"""Settings of a benchmark that name folders."""

_RUNS: set[Path] = set()


def _without_folders(record: logging.LogRecord) -> bool:
    """A filter that takes the folders of this machine out of what wandb logs to files in run folders. One for all runs
    of a process: wandb's loggers and handlers outlive a run, and with it its filter. What others log stays as it is:
    somebody's own handler may listen to wandb, and to them.
    """
    if record.name.partition(".")[0] == "wandb":
        record.msg, record.args = public_text(record.getMessage(), _RUNS), ()
    return True


class WeightsAndBiases(Backend):
    """One W&B run; where the server cannot be reached, as on most cluster nodes, an offline one of the same id."""

    def __init__(self, run: RunFolder, given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """``given`` are arguments of `wandb.init`, ``settings`` the resolved configuration."""
        os.environ.setdefault("WANDB_SILENT", "true")  # wandb speaks before it has read our settings
        import wandb

        self._wandb = wandb
        self._folder = run
        self._settings = settings
        self._tracking = settings["tracking"]
        _RUNS.add(run.root.absolute())
        logging.getLogger("wandb").addFilter(_without_folders)  # the first lines come before there is a file to watch
        mode = given["mode"]
        try:
            self._run = self._init(given)
        except Exception as error:
            if mode != "online":
                raise
            reason = public_text(" ".join(f"{type(error).__name__}: {error}".split()))
            logger.warning("W&B cannot be reached, this run is tracked offline: `wandb sync` sends it (%s)", reason)
            mode = "offline"
            if wandb.run is None:  # a caller's own run would end with it
                wandb.teardown()  # else the id counts as in use by what has just failed
            self._run = self._init({**given, "mode": mode})
        for handler in logging.getLogger("wandb").handlers:
            handler.addFilter(_without_folders)
        self._run.define_metric(ROUND)
        for section in BY_ROUND:  # not of what comes after the last round, which would get the round 0
            self._run.define_metric(f"{section}/*", step_metric=ROUND)
        for name, best in BEST.items():
            self._run.define_metric(name, step_metric=ROUND, summary=best)
        self.description = f"W&B {self._run.url}" if mode == "online" else f"W&B {mode}"
        if mode == "offline":
            folder, root = Path(self._run.dir).parent, run.root.absolute()
            shown = run.root / folder.relative_to(root) if folder.is_relative_to(root) else folder
            self.sending = f"wandb sync {shlex.quote(str(shown))}"

    def _init(self, given: Mapping[str, Any]) -> Any:
        ours = unless_in_environment(
            silent=True,
            console="wrap" if self._tracking["console"] else "off",
            use_dot_wandb=False,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            host="-",  # else the machine's name
            git_commit=git_commit(),
            git_remote_url="",
            x_disable_meta=True,  # the command line has data folders; environment.json is kept with the run
            x_disable_stats=not self._tracking["system_metrics"],
            x_transaction_log_flush_interval=1.0,  # what a killed run can lose; wandb's own 15 s is many rounds
        )
        return self._wandb.init(
            **given,
            **unless_in_environment(resume="allow", dir=self._folder.root),
            config={**public_config(self._settings), "git_commit": git_commit()},
            settings=self._wandb.Settings(
                **ours,
                reinit="create_new",  # else a run that a caller left open would get our figures
                finish_timeout_raises=True,
            ),
        )

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        metrics = metric_names.round_metrics(record, clients, per_client=self._tracking["per_client"])
        self._run.log({ROUND: record.round, **metrics})

    def log_attacks(self, records: Sequence[AttackRecord], settings: Mapping[str, Any]) -> None:
        self._run.summary.update(metric_names.attack_metrics(records))
        asked = {key: value for key, value in settings.items() if key not in _OF_THIS_MACHINE}
        self._run.config.update({"benchmark": public_config(asked)}, allow_val_change=True)
        self._run.tags = tuple(dict.fromkeys((*(self._run.tags or tags_of(self._settings)), "benchmark")))
        shown = dict[str, Any]()
        rows = [{key: value for key, value in asdict(record).items() if key != "confusion"} for record in records]
        if rows:
            table = self._wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            shown[metric_names.ATTACK_TABLE] = table
        for defence, curves in metric_names.curves(records).items():
            shown[f"{metric_names.CURVES}/{defence}"] = self._wandb.plot.line_series(
                xs=[[epsilon for epsilon, _ in points] for points in curves.values()],
                ys=[[uar for _, uar in points] for points in curves.values()],
                keys=list(curves),
                title=f"Robust UAR over epsilon, defence: {defence}",
                xname="epsilon",
            )
        recordings = sorted(self._folder.adversarial.glob("*.wav"))[: 2 * self._tracking["num_recordings"]]
        if recordings:
            shown[metric_names.RECORDINGS] = [self._wandb.Audio(str(path), caption=path.stem) for path in recordings]
        if shown:
            self._run.log(shown)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(metric_names.summary_metrics(summary))
        classes, test = summary["classes"], summary["test"]
        cells = [
            (true, predicted, count)
            for true, row in enumerate(test["confusion"])
            for predicted, count in enumerate(row)
        ]
        recall = zip(classes, test["per_class_recall"], strict=True)
        table: Any = self._wandb.Table
        self._run.log(
            {
                metric_names.CONFUSION_TABLE: table(
                    columns=["true", "predicted", "count"],
                    data=[(classes[true], classes[predicted], count) for true, predicted, count in cells],
                ),
                metric_names.RECALL_TABLE: table(columns=["class", "recall"], data=list(recall)),
                metric_names.CONFUSION_PLOT: self._wandb.plot.confusion_matrix(
                    y_true=[true for true, _, count in cells for _ in range(round(count))],
                    preds=[predicted for _, predicted, count in cells for _ in range(round(count))],
                    class_names=list(classes),
                    title="Test utterances",
                ),
            }
        )
        self._send("model", self._folder.weights, self._folder.model, self._folder.summary)

    def log_evaluation(self, name: str, figures: Mapping[str, Any]) -> None:
        self._run.summary.update(metric_names.evaluation_metrics(name, figures))

    def log_report(self) -> None:
        page = self._folder.report
        if self._tracking["num_recordings"] or b"data:audio" not in page.read_bytes():
            self._send("report", page)

    def _send(self, kind: str, first: Path, *others: Path) -> None:
        """Log files as an artifact, where they are small; what has no room on the way is a warning."""
        if not first.exists() or first.stat().st_size > MAX_ARTIFACT_BYTES:
            return
        artifact = self._wandb.Artifact(f"{kind}-{self._run.id}", type=kind)
        try:
            for path in filter(Path.exists, (first, *others)):
                artifact.add_file(str(path))
            self._run.log_artifact(artifact)
        except OSError as error:
            logger.warning("W&B gets no %s, it stays in the run folder (%s)", kind, error.strerror)

    def finish(self) -> None:
        self._run.finish()
