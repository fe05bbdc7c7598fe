"""Training without Lightning's Trainer: the same module through the same steps, to the same bits, and nothing around.

A Trainer costs some milliseconds a client and some tenths of one a batch (``results/bench/trainer.md``): it keeps
books for flags, loggers, schedulers, validation and callbacks, which this loop does not know.
"""

from __future__ import annotations

import torch

from ser_fl.data.datamodule import ClientDataModule
from ser_fl.devices import autocast
from ser_fl.training.client_classifier import ClientClassifier


def fit_in_loop(
    classifier: ClientClassifier, batches: ClientDataModule, *, epochs: int, device: torch.device, bf16: bool
) -> torch.optim.Optimizer:
    """A client's local epochs, as `Trainers.fit` runs them without callbacks.

    With ``bf16`` the training step runs under autocast and the rest does not, as in Lightning's "bf16-mixed".

    Returns:
        The optimiser, with its state.
    """
    watch = classifier.watch
    classifier.to(device)
    with watch.part("optimiser"):
        optimiser = classifier.configure_optimizers()
    classifier.on_train_start()
    for _ in range(epochs):
        with watch.part("data"):
            loader = iter(batches.train_dataloader())
        for number in range(len(batches.batches)):
            with watch.part("data"):
                batch = batches.transfer_batch_to_device(next(loader), device, 0)
            with watch.part("forward"), autocast(device, bf16=bf16):
                loss = classifier.training_step(batch, number)
            with watch.part("optimiser"):
                optimiser.zero_grad()
            with watch.part("backward"):
                torch.autograd.backward(loss)
            with watch.part("optimiser"):
                optimiser.step()
        classifier.score_epoch()
    return optimiser
