"""The largest cluster of directions, clipped, and noise."""

from ser_fl.errors import UserError
from ser_fl.federation.aggregation.centred_clipping import clip_factors
from ser_fl.federation.aggregation.robust import Gathered, with_noise
from ser_fl.runs.records import State


class FLAME(Gathered):
    """Clients outside HDBSCAN's one cluster of more than half of them, by cosine distance, are dropped; the others'
    changes are cut down to the median norm S of all, averaged, and noise of standard deviation lambda * S is added
    (Nguyen et al., arXiv 2101.02281, algorithm 1).

    Deviations: angles are between changes, there between models, whose angles hardly differ; where HDBSCAN finds no
    cluster nobody is dropped. It needs n >= 2f + 1, keeps all updates, and weighs all clients alike.

    Args:
        noise: lambda; 0 adds none.
        seed: of the noise, with the round.
    """

    name = "flame"

    def __init__(self, hostile_share: float = 0.2, noise: float = 0.001, seed: int = 0) -> None:
        try:
            import sklearn.cluster  # noqa: F401
        except ImportError:
            raise UserError("federation.aggregation=flame needs scikit-learn: pip install scikit-learn") from None
        super().__init__(hostile_share)
        self.noise, self.seed = noise, seed

    def combined(self) -> State:
        from sklearn.cluster import HDBSCAN

        count, norms_N = len(self.states), self.norms
        lengths_N = norms_N.clamp(min=1e-300)
        distances_NN = (1 - self.products / lengths_N[:, None] / lengths_N).clamp(min=0).fill_diagonal_(0)
        least, of = max(2, count // 2 + 1), "precomputed"
        found = HDBSCAN(min_cluster_size=least, min_samples=1, allow_single_cluster=True, metric=of, copy=True)
        kept = [bool(label >= 0) for label in found.fit_predict(distances_NN.numpy())] if count > 1 else [True]
        kept = kept if any(kept) else [True] * count
        factors, bound = clip_factors(norms_N, None).tolist(), float(norms_N.quantile(0.5))
        weights = [factor * is_kept for factor, is_kept in zip(factors, kept, strict=True)]
        return with_noise(self, self.mixture(weights, of=sum(kept)), self.noise * bound, self.seed)
