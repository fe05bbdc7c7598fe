"""Experiment tracking beside the run folder: Weights & Biases, TensorBoard or nothing.

The run folder is the record; a tracker only shows it elsewhere while it grows, so nothing that goes wrong here may
stop a training: the first failure is one warning, and tracking is then off for the rest of the run.

One W&B run per experiment, written by the server process. What figures are called there is in `metric_names`.
"""

from ser_fl.tracking.tracker import Tracker, open_tracker

__all__ = ["Tracker", "open_tracker"]
