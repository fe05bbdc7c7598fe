"""Experiment tracking beside the run folder: Weights & Biases, TensorBoard or nothing.

The run folder is the record; a tracker only shows it elsewhere while it grows, so nothing that goes wrong here may
stop a training: the first failure is one warning, and tracking is then off for the rest of the run.

One W&B run per experiment, written by the server process. Keys: ``server/uar``, ``client/{id}/train_loss``,
``attack/{name}/eps_{e}/robust_uar``, ``test/uar``. The x axis is the logged ``round``, never W&B's own step, which
only grows and would drop the rounds that a resumed run repeats.
"""

from __future__ import annotations

import logging
import netrc
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from ser_fl.errors import UserError, unknown_name
from ser_fl.records import AttackRecord, ClientRecord, RoundRecord, RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

BACKENDS = ("wandb", "tensorboard", "none")
MODES = ("auto", "online", "offline")
MAX_ARTIFACT_BYTES = 50_000_000
"""Larger weights stay in the run folder."""
INIT_TIMEOUT_S = 60
FINISH_TIMEOUT_S = 120
"""How long the end of a run may wait for uploads; what is left can be sent with ``wandb sync``."""
FLUSH_INTERVAL_S = 1.0
"""What a killed run can lose of its offline file; wandb's own 15 s would be many rounds."""
_SECRET_WORDS = ("key", "token", "password", "secret")


class Backend(Protocol):
    """Somewhere to show a run."""

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Figures of one round and of its clients."""
        ...

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        """Figures of attacks on the selected model."""
        ...

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """The content of ``summary.json``."""
        ...

    def finish(self) -> None:
        """Send what is left and close."""
        ...


class Tracker(Backend, Protocol):
    """A backend that never raises and knows how to go on after a restart."""

    def state(self) -> dict[str, Any]:
        """What `open_tracker` needs to go on in the same tracked run: JSON values, for the checkpoint."""
        ...


def open_tracker(
    *,
    backend: str,
    mode: str,
    project: str,
    entity: str | None,
    group: str | None,
    run: RunFolder,
    name: str,
    config: Mapping[str, Any],
    state: Mapping[str, Any] | None,
) -> Tracker:
    """Open the tracker of a run.

    A resumed run goes on in the same W&B run. Offline it cannot append: it writes a second ``offline-run-*`` folder
    of the same id beside the first, and ``wandb sync`` of both, oldest first, gives the one run. Rounds that were
    logged after the last checkpoint appear twice, with the same figures.

    Args:
        backend: "wandb", "tensorboard" or "none".
        mode: W&B only. "online", "offline", or "auto": what ``WANDB_MODE`` says; where that is not set, online if an
            API key is found (``WANDB_API_KEY`` or netrc), else offline. Nothing ever asks for a key.
        project: W&B project.
        entity: W&B user or team; None is the key's own.
        group: W&B group, such as a study of several seeds.
        run: the run folder; files go to ``wandb/`` or ``tensorboard/`` in it.
        name: name shown for the run.
        config: the resolved configuration; secrets are left out and folders cut to their last name.
        state: what `Tracker.state` gave before the run was interrupted.

    Raises:
        UserError: an unknown backend or mode, online without a key, or TensorBoard without its package.
    """
    if backend not in BACKENDS:
        raise unknown_name("tracking backend", backend, BACKENDS)
    if mode not in MODES:
        raise unknown_name("tracking mode", mode, MODES)
    kept = dict(state or {})
    if backend == "none":
        return _Guarded(None, kept)
    if backend == "tensorboard":
        if find_spec("tensorboard") is None:
            raise UserError("tracking.backend=tensorboard needs the extra `tracking`: pip install 'ser-fl[tracking]'")
        return _Guarded(lambda: _TensorBoard(run), kept)
    resolved = _wandb_mode(mode)
    run_id = str(kept.setdefault("wandb_id", uuid.uuid4().hex[:12]))
    settings = {"project": project, "entity": entity, "group": group, "name": name, "id": run_id, "mode": resolved}
    return _Guarded(lambda: _WeightsAndBiases(run, settings, public_config(config)), kept)


def _wandb_mode(mode: str) -> str:
    """Mode for wandb, found out here because wandb itself would prompt for a missing key."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", mode)
    if mode == "auto":
        return "online" if _has_wandb_key() else "offline"
    if mode == "online" and not _has_wandb_key():
        raise UserError(
            "W&B mode is online but no API key was found: set WANDB_API_KEY, run `wandb login`, "
            "or use tracking.mode=offline"
        )
    return mode


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    default = Path.home() / ("_netrc" if os.name == "nt" else ".netrc")
    try:
        entry = netrc.netrc(os.environ.get("NETRC", str(default))).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(entry and entry[2])


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without secrets, and with folders of this machine cut to their last name."""
    public: dict[str, Any] = {}
    for key, value in config.items():
        if any(key.lower() == word or key.lower().endswith(f"_{word}") for word in _SECRET_WORDS):
            continue
        if isinstance(value, Mapping):
            public[key] = public_config(value)
        elif isinstance(value, (list, tuple)):
            public[key] = [_public_value(item) for item in value]
        else:
            public[key] = _last_name(value) if key == "root" else _public_value(value)
    return public


def _public_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return public_config(value)
    is_folder = isinstance(value, Path) or (isinstance(value, str) and Path(value).expanduser().is_absolute())
    return _last_name(value) if is_folder else value


def _last_name(value: Any) -> Any:
    return Path(value).name if isinstance(value, (str, Path)) else value


def round_metrics(record: RoundRecord, clients: Sequence[ClientRecord]) -> dict[str, float]:
    """Every figure of a round by key: ``server/...`` and ``client/{id}/...``."""
    metrics = {f"server/{key}": value for key, value in _figures(record).items()}
    metrics["server/num_clients"] = len(record.cohort)
    metrics["server/num_failures"] = len(record.failures)
    for client in clients:
        metrics |= {f"client/{client.client_id}/{key}": value for key, value in _figures(client).items()}
    return metrics


def _figures(record: RoundRecord | ClientRecord) -> dict[str, float]:
    return {key: value for key, value in asdict(record).items() if isinstance(value, (int, float)) and key != "round"}


def attack_metrics(records: Sequence[AttackRecord]) -> dict[str, float]:
    """Robust UAR and success rate by key ``attack/{name}/eps_{e}[/{defence}][/{knowledge}]/...``.

    Defence and knowledge are named where they are not none and undefended. Of records that share a key (other
    steps, say) the strongest attack is kept; the W&B table has them all.
    """
    metrics = {}
    for record in sorted(records, key=lambda record: record.robust_uar, reverse=True):
        parts = ["attack", record.attack]
        if record.epsilon is not None:
            parts.append(f"eps_{record.epsilon:g}")
        elif record.snr_db is not None:
            parts.append(f"snr_{record.snr_db:g}_db")
        parts += [word for word in (record.defence, record.knowledge) if word not in ("none", "undefended")]
        metrics["/".join([*parts, "robust_uar"])] = record.robust_uar
        metrics["/".join([*parts, "attack_success_rate"])] = record.attack_success_rate
    return metrics


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Selected round and test figures by key: ``test/uar``, ``test/recall/{class}`` and so on."""
    test = summary["test"]
    metrics = {"selected_round": summary["selected_round"]}
    metrics |= {f"test/{key}": test[key] for key in ("uar", "accuracy", "macro_f1")}
    recall_by_class = zip(summary["classes"], test["per_class_recall"], strict=True)
    metrics |= {f"test/recall/{name}": recall for name, recall in recall_by_class}
    return {key: value for key, value in metrics.items() if value is not None}


class _Guarded:
    """A tracker around a backend: the first exception is one warning, and then there is no backend any more."""

    def __init__(self, open_backend: Callable[[], Backend] | None, state: dict[str, Any]) -> None:
        self._backend: Backend | None = None
        self._state = state
        if open_backend is not None:
            try:
                self._backend = open_backend()
            except Exception as error:
                self._give_up(error)

    def _try(self, call: Callable[[Backend], None]) -> None:
        if self._backend is None:
            return
        try:
            call(self._backend)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._backend = None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("tracking failed and is off for the rest of this run, its folder has everything (%s)", reason)

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self._try(lambda backend: backend.log_round(record, clients))

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        self._try(lambda backend: backend.log_attacks(records))

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._try(lambda backend: backend.log_summary(summary))

    def finish(self) -> None:
        self._try(lambda backend: backend.finish())
        self._backend = None

    def state(self) -> dict[str, Any]:
        return dict(self._state)


class _WeightsAndBiases:
    """One W&B run."""

    def __init__(self, run: RunFolder, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # wandb speaks before it has read our settings
        import wandb

        self._wandb = wandb
        self._folder = run
        self._online = settings["mode"] == "online"
        self._run = wandb.init(
            **settings,
            resume="allow",
            dir=run.root,
            config=dict(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                use_dot_wandb=False,
                reinit="create_new",  # else a run that a caller left open would get our figures
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
                x_disable_meta=True,  # the command line has data folders; environment.json is kept with the run
                x_disable_stats=True,
                x_transaction_log_flush_interval=FLUSH_INTERVAL_S,
            ),
        )
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")
        if self._online:
            logger.info("W&B run: %s", self._run.url)

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self._run.log({"round": record.round, **round_metrics(record, clients)})

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        self._run.summary.update(attack_metrics(records))
        rows = [{key: value for key, value in asdict(record).items() if key != "confusion"} for record in records]
        if rows:
            table = self._wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self._run.log({"attacks": table})

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(summary_metrics(summary))
        classes, test = summary["classes"], summary["test"]
        counts: list[Iterable[Any]] = [
            (true, predicted, count)
            for true, row in zip(classes, test["confusion"], strict=True)
            for predicted, count in zip(classes, row, strict=True)
        ]
        recall: list[Iterable[Any]] = list(zip(classes, test["per_class_recall"], strict=True))
        confusion_table = self._wandb.Table(columns=["true", "predicted", "count"], data=counts)
        recall_table = self._wandb.Table(columns=["class", "recall"], data=recall)
        self._run.log({"test/confusion": confusion_table, "test/per_class_recall": recall_table})
        if self._online:
            self._upload_model()

    def _upload_model(self) -> None:
        weights = self._folder.weights
        if not weights.exists() or weights.stat().st_size > MAX_ARTIFACT_BYTES:
            return
        artifact = self._wandb.Artifact(f"model-{self._run.id}", type="model")
        for path in (weights, self._folder.model, self._folder.summary):
            if path.exists():
                artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self) -> None:
        self._run.finish()


class _TensorBoard:
    """Scalars for TensorBoard, opened at the first figure."""

    def __init__(self, run: RunFolder) -> None:
        self._folder = run.root / "tensorboard"
        self._writer: SummaryWriter | None = None

    def _write(self, metrics: Mapping[str, float], step: int, *, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            # The purge hides rounds that a killed run logged after the checkpoint that this one goes on from.
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def log_round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self._write(round_metrics(record, clients), record.round, purge_step=record.round)

    def log_attacks(self, records: Sequence[AttackRecord]) -> None:
        self._write(attack_metrics(records), 0)

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        self._write(summary_metrics(summary), summary["selected_round"])

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
