"""The statistics of comparisons: what a difference is worth, and how much of it could be chance.

docs/statistics.md says which of these is for what. They rest on scipy (extra `study`), imported where it is needed.
Numbers go in as plain sequences, none of them nan or infinite; what is not known is None, never 0.
"""

from calibrune.uncertainty.estimate import (
    CONFIDENCE,
    Estimate,
    bootstrap_interval,
    check_installed,
    t_interval,
    t_of_mean,
)
from calibrune.uncertainty.groups import SeedsAndItems, groups_differ, range_over_groups, seeds_and_items
from calibrune.uncertainty.pairs import (
    Equivalence,
    McNemar,
    equivalence,
    holm,
    mcnemar,
    paired_bootstrap,
    rank_correlation,
    sign_flip_test,
    smallest_difference,
)

__all__ = [
    "CONFIDENCE",
    "Equivalence",
    "Estimate",
    "McNemar",
    "SeedsAndItems",
    "bootstrap_interval",
    "check_installed",
    "equivalence",
    "groups_differ",
    "holm",
    "mcnemar",
    "paired_bootstrap",
    "range_over_groups",
    "rank_correlation",
    "seeds_and_items",
    "sign_flip_test",
    "smallest_difference",
    "t_interval",
    "t_of_mean",
]
