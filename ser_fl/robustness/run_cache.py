"""Where the benchmark of a run folder is written."""

from __future__ import annotations

from ser_fl.config.robustness import BenchmarkConfig
from ser_fl.robustness.attack_metrics import merged
from ser_fl.robustness.result_cache import Archive, Folder
from ser_fl.robustness.test_set import TestSet, digest_of, digest_of_weights
from ser_fl.runs.folder import RunFolder
from ser_fl.runs.records import AttackRecord

BEFORE = "attacks.before.json"
"""Records that were put aside."""


class RunCache:
    """``attacks.json`` and the outcomes below ``attacks/``, beside those of earlier benchmarks of the same model.

    Nothing moves before there is something to write: a benchmark that is refused leaves the run folder as it was.
    """

    def __init__(self, run: RunFolder, test_set: TestSet, config: BenchmarkConfig) -> None:
        self._run = run
        self._challenge = test_set
        self._config = config
        self._earlier: list[AttackRecord] | None = None

    def open(self) -> Folder:
        """The folder of outcomes; records of another model, and with ``fresh`` all, are put aside first."""
        archive, weights = Archive(self._run.outcomes), digest_of_weights(self._challenge.model)
        if self._config.fresh or not archive.knows(weights):
            if self._run.attacks.exists():
                self._run.attacks.replace(self._run.root / BEFORE)
            archive.clear()
        self._earlier = self._run.read_attacks()
        return archive.open(
            digest_of(self._challenge),
            weights,
            device=self._challenge.features_NFL.device,
            shape_FL=tuple(self._challenge.features_NFL.shape[1:]),
            keeps_adversarials=self._config.keep_adversarials,
        )

    def write(self, records: list[AttackRecord]) -> list[AttackRecord]:
        """Write ``attacks.json``: these records, and earlier ones that say something else.

        Returns:
            All that is in the file now.
        """
        if self._earlier is None:
            self.open()
        together = merged(self._earlier or [], records)
        self._run.write_attacks(together)
        return together
