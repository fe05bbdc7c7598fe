"""Training without Lightning's Trainer: the same module, the same hooks of it, the same bits, and nothing around them.

A Trainer costs some milliseconds a client and half a millisecond a batch: bookkeeping for callbacks, loggers, schedulers
and validation that a client does not have. It stays where somebody hooks into it.
"""

from __future__ import annotations

import torch

from ser_fl.data.datamodule import ClientDataModule
from ser_fl.models.classifier import EmotionClassifier


def fit_in_loop(
    classifier: EmotionClassifier, batches: ClientDataModule, *, epochs: int, device: torch.device, low_precision: bool
) -> torch.optim.Optimizer:
    """Local epochs of a client, as `pl.Trainer.fit` would run them with one device and no callbacks.

    The module's hooks are called in the Trainer's order. With ``low_precision`` the training step runs under autocast
    to bfloat16 and the rest does not, which is Lightning's "bf16-mixed".

    Returns:
        The optimiser, with its state.
    """
    classifier.to(device)
    torch.set_grad_enabled(True)
    optimiser = classifier.configure_optimizers()
    classifier.on_train_start()
    for _ in range(epochs):
        for number, given in enumerate(batches.batches):
            batch = batches.transfer_batch_to_device(given, device, 0)
            with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
                loss = classifier.training_step(batch, number)
            optimiser.zero_grad()
            loss.backward()
            classifier.on_after_backward()
            optimiser.step()
        classifier.on_train_epoch_end()
    return optimiser
