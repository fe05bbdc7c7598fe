"""Text as it is compared: two names that look the same are the same."""

import unicodedata

_BLANK_BY_DESIGN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def plain(text: str) -> str:
    """A text in Unicode's composed form (NFC, where macOS writes NFD), every run of blanks of any kind a single one,
    none at the ends, and without what cannot be seen: zero-width characters, soft hyphens, marks of direction or order.

    >>> plain(" wu\u0308tend\u200b ") == "wütend"
    True
    """
    if not (text.isascii() and text.isprintable()):
        text = composed("".join(filter(_is_seen, text)))
    return " ".join(text.split())


def composed(text: str) -> str:
    """A text in NFC. Bytes of a file name that are no UTF-8, which Python keeps as surrogates, are written out, since
    nothing could be written with them.
    """
    return unicodedata.normalize("NFC", text.encode("utf-8", "backslashreplace").decode())


def has_unseen(text: str) -> bool:
    """Whether a text has characters that cannot be told from others or from none: odd blanks, or none to be seen."""
    return not all(map(_is_seen, text)) or any(char.isspace() and char not in " \n\r\t" for char in text)


def _is_seen(character: str) -> bool:
    if character.isspace():
        return True
    is_variation = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return not (is_variation or unicodedata.category(character) in ("Cc", "Cf") or character in _BLANK_BY_DESIGN)
