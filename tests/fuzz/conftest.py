"""The fixture that tries the cases."""

from __future__ import annotations

from harness import explore

__all__ = ["explore"]
