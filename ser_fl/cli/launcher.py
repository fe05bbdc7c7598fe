"""Where the runs of a sweep go: through this process one after the other, or to SLURM as jobs, through submitit.

Names and settings are those of Hydra's submitit launcher: ``hydra/launcher=submitit_slurm``,
``hydra.launcher.partition=gpu`` and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser_fl.errors import UserError, unknown_name

NAMES = ("basic", "submitit_local", "submitit_slurm")
_CHOICE, _PREFIX = "hydra/launcher", "hydra.launcher."
MAX_NUM_TIMEOUT = 10
"""How often a job whose time is up is queued again; the launcher's own default is never, but our runs go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where jobs are submitted, and what each asks for."""

    name: str
    """Of the submitit executor: slurm, local (processes of this machine) or debug (this process)."""
    parameters: dict[str, Any]
    """By the names of Hydra's launcher."""

    @property
    def grace_s(self) -> float:
        """What a round has left after the signal that a job's time is up; submitit gives a local job 30 s."""
        return 0.75 * float(self.parameters.get("signal_delay_s", 30))

    def executor(self, folder: Path) -> Any:
        """The submitit executor, whose files go to a folder.

        Raises:
            UserError: SLURM is not here, or a parameter has another type than submitit wants.
        """
        from submitit import AutoExecutor

        own = {f"{self.name}_max_num_timeout": self.parameters["max_num_timeout"]} if self.name == "slurm" else {}
        generic = AutoExecutor._typed_parameters()
        asked = {
            name if name in generic else f"{self.name}_{name}": value
            for name, value in self.parameters.items()
            if name not in ("max_num_timeout", "submitit_folder")
        }
        place = self.parameters["submitit_folder"] or folder / "%j"
        try:
            executor = AutoExecutor(place, cluster=self.name, **own)
        except RuntimeError:
            raise UserError(
                "hydra/launcher=submitit_slurm needs SLURM's srun and sbatch, which are not here: submit from a login "
                "node, or take hydra/launcher=submitit_local"
            ) from None
        executor.update_parameters(**asked)
        return executor


def split_settings(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of the launcher, and those of the runs."""
    launcher = [setting for setting in settings if setting.startswith(("hydra/", "hydra."))]
    return launcher, [setting for setting in settings if setting not in launcher]


def read_cluster(settings: Sequence[str]) -> Cluster | None:
    """The cluster that settings of the launcher choose; None for this process.

    Raises:
        UserError: an unknown launcher or setting, a value of the wrong kind, or the extra `slurm` is not installed.
    """
    chosen, name = [], NAMES[0]
    for setting in settings:
        key, separator, value = setting.partition("=")
        if key == _CHOICE and separator:
            name = value
        elif key.startswith(_PREFIX) and separator:
            chosen.append(setting)
        else:
            raise unknown_name("setting", key, [_CHOICE, f"{_PREFIX}partition", f"{_PREFIX}timeout_min"])
    if name not in NAMES:
        raise unknown_name(_CHOICE, name, NAMES)
    if name != "basic":
        return Cluster(name=name.removeprefix("submitit_"), parameters=_parameters(name, chosen))
    if chosen:
        raise UserError(f"{chosen[0].partition('=')[0]} goes with hydra/launcher=submitit_slurm or submitit_local")
    return None


def _parameters(name: str, chosen: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
    except ImportError:
        raise UserError(f"hydra/launcher={name} needs the extra `slurm`: pip install 'ser-fl[slurm]'") from None
    ours = {"submitit_folder": "", "name": "ser-fl"}  # in place of what refers to Hydra's own run
    kind = SlurmQueueConf(**ours, max_num_timeout=MAX_NUM_TIMEOUT) if name.endswith("slurm") else LocalQueueConf(**ours)
    defaults = OmegaConf.structured(kind)
    known = [str(each) for each in defaults if each != "_target_"]
    for setting in chosen:
        key = setting.partition("=")[0]
        if key.removeprefix(_PREFIX).split(".")[0] not in known:
            raise unknown_name("setting", key, [_PREFIX + each for each in known])
    try:
        given = OmegaConf.from_dotlist([setting.removeprefix(_PREFIX) for setting in chosen])
        parameters = OmegaConf.to_container(OmegaConf.merge(defaults, given))
    except (OmegaConfBaseException, YAMLError) as error:
        key = getattr(error, "full_key", None) or "*"
        raise UserError(f"{_PREFIX}{key} cannot be that: {' '.join(str(error).splitlines()[0].split())}") from None
    assert isinstance(parameters, dict)
    for setting in ("nodes", "tasks_per_node"):
        if parameters[setting] != 1:
            raise UserError(
                f"{_PREFIX}{setting} must be 1, got {parameters[setting]}: a run is one process, and one with several "
                "GPUs shares them among its own workers (executor=processes)"
            )
    return {name: parameters[name] for name in known}
