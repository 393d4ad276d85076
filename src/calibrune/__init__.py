"""Prune large language models after training, with calibration data you can trust.

>>> from calibrune import CalibrationSet, SelfGeneration, Wanda, load_model, prune_model
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module; imported when first used, so that `import calibrune` and `calibrune --help` do not wait for torch
_EXPORTS = {
    "CalibrationRecipe": "calibrune.calibration.build",
    "CalibrationSet": "calibrune.calibration.calibration_set",
    "CalibruneError": "calibrune.errors",
    "Chat": "calibrune.corpora.chat",
    "CompletionsServer": "calibrune.corpora.engines",
    "FileCorpus": "calibrune.corpora.files",
    "HubCorpus": "calibrune.corpora.hub",
    "LanguageModel": "calibrune.lm.loading",
    "Magnitude": "calibrune.pruners",
    "Mixture": "calibrune.calibration.mixture",
    "PerplexityFilter": "calibrune.calibration.filters",
    "PruneReport": "calibrune.prune",
    "Sampling": "calibrune.lm.generation",
    "SelfGeneration": "calibrune.corpora.generated",
    "SemiStructured": "calibrune.patterns",
    "TextPerplexity": "calibrune.evaluation.perplexity",
    "Unstructured": "calibrune.patterns",
    "Wanda": "calibrune.pruners",
    "WindowPerplexity": "calibrune.evaluation.perplexity",
    "Windows": "calibrune.calibration.windows",
    "apply_mask": "calibrune.sparsity",
    "build_calibration": "calibrune.calibration.spec",
    "check_sparsity": "calibrune.sparsity",
    "load_model": "calibrune.lm.loading",
    "prune_model": "calibrune.prune",
    "stream_blocks": "calibrune.activations",
}

if TYPE_CHECKING:
    from calibrune.activations import stream_blocks
    from calibrune.calibration.build import CalibrationRecipe
    from calibrune.calibration.calibration_set import CalibrationSet
    from calibrune.calibration.filters import PerplexityFilter
    from calibrune.calibration.mixture import Mixture
    from calibrune.calibration.spec import build_calibration
    from calibrune.calibration.windows import Windows
    from calibrune.corpora.chat import Chat
    from calibrune.corpora.engines import CompletionsServer
    from calibrune.corpora.files import FileCorpus
    from calibrune.corpora.generated import SelfGeneration
    from calibrune.corpora.hub import HubCorpus
    from calibrune.errors import CalibruneError
    from calibrune.evaluation.perplexity import TextPerplexity, WindowPerplexity
    from calibrune.lm.generation import Sampling
    from calibrune.lm.loading import LanguageModel, load_model
    from calibrune.patterns import SemiStructured, Unstructured
    from calibrune.prune import PruneReport, prune_model
    from calibrune.pruners import Magnitude, Wanda
    from calibrune.sparsity import apply_mask, check_sparsity

__all__ = [
    "CalibrationRecipe",
    "CalibrationSet",
    "CalibruneError",
    "Chat",
    "CompletionsServer",
    "FileCorpus",
    "HubCorpus",
    "LanguageModel",
    "Magnitude",
    "Mixture",
    "PerplexityFilter",
    "PruneReport",
    "Sampling",
    "SelfGeneration",
    "SemiStructured",
    "TextPerplexity",
    "Unstructured",
    "Wanda",
    "WindowPerplexity",
    "Windows",
    "apply_mask",
    "build_calibration",
    "check_sparsity",
    "load_model",
    "prune_model",
    "stream_blocks",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'calibrune' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
