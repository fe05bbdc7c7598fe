"""Experiment tracking beside the run folder: Weights & Biases (one run per experiment), TensorBoard or nothing.

The run folder is the record; a tracker only shows it elsewhere, so nothing that goes wrong here may stop a training:
the first failure is one warning, and tracking is then off for the rest of the run. What figures are called is in
`metric_names`.
"""

from ser_fl.tracking.tracker import Tracker, open_tracker

__all__ = ["Tracker", "open_tracker"]
