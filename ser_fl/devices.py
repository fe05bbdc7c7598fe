"""Which devices there are, which one a worker takes, and how tensors and random streams get there.

Batches, augmentation, random starts and cohorts are drawn on the CPU and sent, so that a run on a GPU draws what one on
a CPU draws. Dropout draws from its device's own stream, of the same seed and other numbers on every kind of device.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ser_fl.errors import UserError

CPU = torch.device("cpu")


def devices_of(accelerator: str, setting: str = "executor.accelerator") -> tuple[torch.device, ...]:
    """The devices of an accelerator ("cpu", "cuda", "mps", or "auto" for the first of cuda, mps and cpu that is here)
    that this process may use: at least one, each with its index among them, or a `UserError`, which names the
    ``setting``.

    GPUs are those that CUDA shows: ``CUDA_VISIBLE_DEVICES``, which SLURM sets for a job, hides the others, and they are
    counted from 0.
    """
    if accelerator == "cpu":
        return (CPU,)
    if accelerator in ("auto", "cuda") and (count := torch.cuda.device_count()):
        return tuple(torch.device("cuda", index) for index in range(count))
    if accelerator in ("auto", "mps") and torch.backends.mps.is_available():
        return (torch.device("mps"),)
    if accelerator == "auto":
        return (CPU,)
    raise UserError(
        f"{setting}={accelerator} cannot be used here: torch {torch.__version__} finds no such device; take cpu, or "
        "auto for the best that there is"
    )


def device_for(worker: int, devices: Sequence[torch.device]) -> torch.device:
    """The device of a worker, counted from 0: workers take the devices in turns.

    >>> [device_for(worker, [torch.device("cuda", 0), torch.device("cuda", 1)]).index for worker in range(5)]
    [0, 1, 0, 1, 0]
    """
    return devices[worker % len(devices)]


def device_of(network: nn.Module) -> torch.device:
    """Where a network is; the CPU for one without parameters."""
    return next((parameter.device for parameter in network.parameters()), CPU)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU through pinned memory, so that the copy does not block."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until it has been read


@contextmanager
def seeded_streams(seed: int, device: torch.device, *, everywhere: bool = False) -> Iterator[None]:
    """Seed torch's own streams, of the CPU and of this device, and put them back afterwards. Other devices' streams are
    left alone, which `torch.manual_seed` would seed as well. A GPU is the current one inside, which libraries use that
    name none. ``everywhere`` means Python's and NumPy's global states too, which ART draws from.
    """
    is_gpu, before = device.type == "cuda", (random.getstate(), np.random.get_state())  # noqa: NPY002
    mps_before = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.cuda.device(device) if is_gpu else nullcontext(), torch.random.fork_rng([device] if is_gpu else []):
        torch.default_generator.manual_seed(seed)
        if is_gpu:
            torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        if everywhere:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            if mps_before is not None:
                torch.mps.set_rng_state(mps_before)
            if everywhere:
                random.setstate(before[0])
                np.random.set_state(before[1])  # noqa: NPY002


@contextmanager
def threads_limited_to(count: int) -> Iterator[None]:
    """Torch uses ``count`` threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, torch makes tensors of this type by default, in all threads: enter before they start."""
    before = torch.get_default_dtype()
    if before != dtype:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        if before != dtype:
            torch.set_default_dtype(before)


float32_by_default = partial(default_dtype, torch.float32)
"""Inside, libraries that ask for no dtype make float32 tensors, whatever `torch.set_default_dtype` says outside."""


def autocast(device: torch.device, *, bf16: bool) -> AbstractContextManager[object]:
    """Inside, layers that can compute in bfloat16 do; with ``bf16=False`` none does, whatever is on outside."""
    if device.type in ("cpu", "cuda", "mps"):
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    return nullcontext()


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Inside, torch computes in full float32, whatever default the caller has set, by the same algorithm for the same
    shapes every time; cuDNN not in TF32. Sums that a GPU's own kernels take by atomic additions (backward passes of
    pooling and of resizing) may still differ in their last bits from run to run.
    """
    cudnn = torch.backends.cudnn
    with cudnn.flags(cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False), float32_by_default():
        yield
