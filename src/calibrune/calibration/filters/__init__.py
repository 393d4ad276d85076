"""Filters take documents and yield those that stay, in the order they came; what goes is counted, with its reason."""

from calibrune.calibration.filters.contamination import ContaminationFilter
from calibrune.calibration.filters.duplicates import DuplicateFilter
from calibrune.calibration.filters.filter import ByGroup, Filter, Remark, describe_filter
from calibrune.calibration.filters.language import LanguageFilter
from calibrune.calibration.filters.length import LengthFilter
from calibrune.calibration.filters.perplexity import PerplexityFilter
from calibrune.calibration.filters.repetition import RepetitionFilter
from calibrune.calibration.filters.variety import VarietyFilter

FILTERS: dict[str, type[Filter]] = {
    "length": LengthFilter,
    "repetition": RepetitionFilter,
    "language": LanguageFilter,
    "duplicates": DuplicateFilter,
    "contamination": ContaminationFilter,
    "variety": VarietyFilter,
    "perplexity": PerplexityFilter,
}
"""In the order in which documents of a SPEC meet them: what costs most comes last."""

__all__ = [
    "FILTERS",
    "ByGroup",
    "ContaminationFilter",
    "DuplicateFilter",
    "Filter",
    "LanguageFilter",
    "LengthFilter",
    "PerplexityFilter",
    "Remark",
    "RepetitionFilter",
    "VarietyFilter",
    "describe_filter",
]
