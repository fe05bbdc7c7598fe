"""What an attack changes of its surroundings while it runs, put back afterwards: modes, gradients, random states."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from ser_fl.devices import autocast, device_of, float32_by_default, seeded_streams


@contextmanager
def attacked(model: nn.Module, *, low_precision: bool = False) -> Iterator[None]:
    """Everything that a gradient attack needs of its surroundings, put back afterwards, the mode of each module too.

    Inside, every module is in eval mode, no parameter asks for a gradient, gradients are enabled even under ``no_grad``
    or ``inference_mode``, the model runs in float32 (bfloat16 with ``low_precision``) whatever autocast says outside,
    and recurrent layers run without cuDNN, whose backward pass refuses eval mode. (Training mode, as in ART, would
    switch their dropout on.)
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module, _ in modes:
            module.training = False
        for parameter in trained:
            parameter.requires_grad_(False)  # layers with a backward pass of their own compute what is asked for
        with ExitStack() as recurrence, ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(float32_by_default())
            stack.enter_context(autocast(device_of(model), bf16=low_precision))
            # cuDNN is off while a recurrent layer runs, and only then, so that convolutions keep it. The forward pass
            # decides which kernel the backward pass uses, so that this is enough for both.
            for module in model.modules():
                if isinstance(module, nn.RNNBase):
                    off = module.register_forward_pre_hook(
                        lambda *_: recurrence.enter_context(torch.backends.cudnn.flags(enabled=False))
                    )
                    back = module.register_forward_hook(lambda *_: recurrence.close(), always_call=True)
                    stack.callback(off.remove)
                    stack.callback(back.remove)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global states of Python, NumPy and torch (of this GPU alone), which ART uses; put them back."""
    python_before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002
    with seeded_streams(seed, device):
        try:
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
        finally:
            random.setstate(python_before)
            np.random.set_state(numpy_before)  # noqa: NPY002


@contextmanager
def random_states_from_the_global_one() -> Iterator[None]:
    """Let ART's decision attacks seed their random states, which no seed reaches, from NumPy's global one.

    HopSkipJump, BoundaryAttack and BrendelBethgeAttack make an ``np.random.RandomState()`` each, seeded by the
    operating system, and would differ in every run. Here they see a NumPy of their own, which differs in `RandomState`
    alone. ART 1.20.1, which pyproject.toml pins, and all before it need it. A test fails once they no longer do: then
    this can go.
    """

    def random_state(seed: Any = None) -> np.random.RandomState:
        return np.random.RandomState(np.random.randint(2**31) if seed is None else seed)  # noqa: NPY002

    own_random = SimpleNamespace(**vars(np.random) | {"RandomState": random_state})
    numpy: Any = SimpleNamespace(**vars(np) | {"random": own_random})
    names = (f"art.attacks.evasion.{name}" for name in ("hop_skip_jump", "boundary", "brendel_bethge"))
    modules: list[Any] = [sys.modules[name] for name in names if name in sys.modules]
    try:
        for module in modules:
            module.np = numpy
        yield
    finally:
        for module in modules:
            module.np = np
