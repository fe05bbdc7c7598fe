"""The built-in corpus: synthetic emotional "speech" by a source-filter synthesiser, made on the fly."""

from ser_fl.data.synthetic.corpus import SyntheticCorpus

__all__ = ["SyntheticCorpus"]
