"""Looking at a corpus before trusting it: does it hold what its authors published, and is the audio sound?"""

from __future__ import annotations

from ser_fl.data.inspection.corpus_check import Finding, check, not_published
from ser_fl.data.inspection.description import Description, DurationRow, describe

__all__ = ["Description", "DurationRow", "Finding", "check", "describe", "not_published"]
