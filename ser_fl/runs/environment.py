"""What a result was computed with: command, commit, versions, hardware."""

import gc
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ser_fl.runs.redaction import is_private, is_secret, last_name, public_path, public_text

_PACKAGES = (
    *("ser-fl", "torch", "torchaudio", "lightning", "torchmetrics", "adversarial-robustness-toolbox", "numpy"),
    *("wandb", "hydra-core", "soundfile", "safetensors"),
)


def describe_environment(*, seed: int, threads: int, devices: Sequence[str] = ("cpu",)) -> dict[str, Any]:
    """Content of ``environment.json``, without folders, since they name people and machines."""
    import torch

    program = Path(sys.argv[0]).name
    packages: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for name in packages:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    processor = None
    with suppress(OSError):
        cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        processor = re.search(r"^model name[^:]*:(.*)$", cpus, re.MULTILINE)
    return {
        "command": shlex.join(
            ["ser-fl" if program == "__main__.py" else program, *(_without_folder(part) for part in sys.argv[1:])]
        ),
        "git_commit": git_commit(),
        "seed": seed,
        "threads": threads,
        "python": platform.python_version(),
        "packages": packages,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor[1].strip() if processor else platform.processor(),
        "cpus": os.cpu_count(),
        "devices": list(devices),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


@cache
def git_commit() -> str | None:
    """Of the checkout that the package lies in, with "+" where files differ from it; None of a wheel."""
    checkout = Path(__file__).parents[1]
    with suppress(OSError, subprocess.CalledProcessError):
        head, changes = (
            subprocess.run(["git", "-C", checkout, *asked], capture_output=True, text=True, check=True).stdout.strip()
            for asked in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        )
        return head + ("+" if changes else "")
    return None


def _without_folder(argument: str) -> str:
    """``data.root=/a/b`` becomes ``data.root=b``: absolute folders stay out of the records, and so do secrets."""
    key, separator, value = argument.partition("=")
    if not separator:
        return public_path(argument)
    told = last_name(value) if is_private(value) else public_text(value)
    return f"{key}={'***' if is_secret(key.rpartition('.')[2]) else told}"


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a training step frees for the next step. By default it returns large pieces to the
    system, page by page again: some thousand page faults a step, a tenth of its time.
    """
    if sys.platform != "linux":
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # as in malloc.h
        mallopt(trim_threshold, 1 << 28)
        mallopt(mmap_threshold, 1 << 25)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the garbage collector inside, for imports. What torch and Lightning create then stays for good; to look
    through all of it again and again takes a seventh of the import's time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
