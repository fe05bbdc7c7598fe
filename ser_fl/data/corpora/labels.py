"""Words of tables to words of ours: sexes and splits."""

from __future__ import annotations

_SEXES = {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}
_SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def sex_of(word: str) -> str | None:
    """The usual spellings to "female" or "male", None for anything else.

    >>> sex_of("F"), sex_of("other")
    ('female', None)
    """
    return _SEXES.get(word.strip().lower())


def split_of(word: str) -> str | None:
    """The usual spellings to "train", "validation" or "test", None for anything else.

    >>> split_of("dev")
    'validation'
    """
    return _SPLITS.get(word.strip().lower())
