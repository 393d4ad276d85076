"""How good is a calibration set for a model? Numbers that are known before anything is pruned."""

from calibrune.proxies.activations import ActivationDistance, OutlierCoverage
from calibrune.proxies.likelihood import MinK, MinKPlusPlus, Perplexity
from calibrune.proxies.proxy import Context, PerSample, Proxy
from calibrune.proxies.tokens import (
    Compression,
    EffectiveDocuments,
    OwnVocabulary,
    Repetition,
    TokenDivergence,
    VocabularyCoverage,
)

PROXIES: dict[str, type[Proxy]] = {
    "min_k_plus_plus": MinKPlusPlus,
    "min_k": MinK,
    "perplexity": Perplexity,
    "repetition": Repetition,
    "compression": Compression,
    "vocabulary": VocabularyCoverage,
    "own_vocabulary": OwnVocabulary,
    "token_divergence": TokenDivergence,
    "activation_distance": ActivationDistance,
    "outlier_coverage": OutlierCoverage,
    "effective_documents": EffectiveDocuments,
}

__all__ = ["PROXIES", "Context", "PerSample", "Proxy"]
