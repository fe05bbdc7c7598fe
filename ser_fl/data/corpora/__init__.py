"""Corpora of audio files: a declaration each (in `named_files` or `tables`), one registry, one way to open them."""

from ser_fl.data.corpora.info import CorpusInfo, PublishedCounts, balanced_counts
from ser_fl.data.corpora.named_files import named_files
from ser_fl.data.corpora.registry import CORPORA, FileCorpus, open_corpus

__all__ = ["CORPORA", "CorpusInfo", "FileCorpus", "PublishedCounts", "balanced_counts", "named_files", "open_corpus"]
