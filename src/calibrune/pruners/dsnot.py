"""DSnoT: another method's mask, refined without training by swapping pruned and kept weights row by row."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from pydantic import BeforeValidator
from torch import Tensor

from calibrune.activations.statistics import InputMoments, InputNorm, InputStatistic, LayerStats
from calibrune.patterns import SemiStructured, SparsityPattern
from calibrune.pruners.alps import ALPS
from calibrune.pruners.magnitude import Magnitude
from calibrune.pruners.pruner import ChecksPattern, PrunedWeight, Pruner
from calibrune.pruners.ria import RIA
from calibrune.pruners.sparsegpt import SparseGPT
from calibrune.pruners.wanda import Wanda
from calibrune.settings import choose, settings

INITIAL: dict[str, type[Pruner]] = {
    "wanda": Wanda, "magnitude": Magnitude, "ria": RIA, "sparsegpt": SparseGPT, "alps": ALPS,
}  # fmt: skip
"""Methods to start from, by name; in Python any pruner will do."""


def _by_name(given: Any) -> Any:
    """`sparsegpt`, or `{name: sparsegpt, damping: 0.1}`."""
    if isinstance(given, Mapping) and "name" in given:
        options = {key: value for key, value in given.items() if key != "name"}
        return choose(INITIAL, "initial method", str(given["name"]), options, Pruner)
    return choose(INITIAL, "initial method", given, {}, Pruner) if isinstance(given, str) else given


@settings
class DSnoT:
    """Dynamic sparse no training on all layers: regrow and prune by expected error (Zhang et al., 2024, 2310.08915).

    The error of a row is what its pruned weights would have given on average: the sum of weight x mean input over them.
    A swap brings back the pruned weight that lowers its size most for its input's variance, and takes away the least
    important kept weight (by Wanda's score) that lowers it too.
    """

    initial: Annotated[Pruner, BeforeValidator(_by_name)] = Wanda()
    """Whose mask is refined; the weights stay the dense ones, whatever it makes of them."""
    max_cycles: Annotated[int, Ge(0)] = 50
    """Swaps in a row, at most."""
    threshold: Annotated[float, Ge(0)] = 0.1
    """A row whose error is no larger is left alone; in the unit of the released code: activations summed over a
    sequence, which is 2048 times the paper's mean for its sequences."""
    variance_power: Annotated[float, Ge(0)] = 1.0
    """Exponent of the input's variance, which a regrown weight's gain is divided by."""
    keep_best: bool = True
    """Undo the swaps after the one that left the smallest error; the released code keeps the last."""

    @property
    def requires(self) -> tuple[type[InputStatistic], ...]:
        return tuple(dict.fromkeys((InputMoments, InputNorm, *self.initial.requires)))

    def prune(self, weight: Float[Tensor, "out in"], stats: LayerStats, pattern: SparsityPattern) -> PrunedWeight:
        """Refine the initial mask; no weight that stays is changed. Each row keeps as many weights as it had."""
        start = self.initial.prune(weight, stats, pattern)
        W = weight.float()
        mean = W * stats[InputMoments].sum_per_sequence
        variance = stats[InputMoments].variance
        # an input that never varies says nothing of what its weight would bring; 0/0 must not attract the regrowth
        alive = variance > 0
        gain = mean / variance.clamp(min=torch.finfo(torch.float32).tiny) ** self.variance_power
        gain = gain.masked_fill(~alive, 0.0)
        score = W.abs() * stats[InputNorm].rms
        if isinstance(pattern, SemiStructured):
            swaps = self._swaps_in_groups(start.mask, mean, gain, score, pattern.m)
        else:
            swaps = self._swaps(start.mask, mean, gain, score)
        mask = self._apply(start.mask, *swaps)
        return PrunedWeight(weight.masked_fill(~mask, 0), mask, start.damping)

    def check_pattern(self, pattern: SparsityPattern) -> None:
        """Raise `ConfigError` for a pattern that the initial method cannot give."""
        if isinstance(self.initial, ChecksPattern):
            self.initial.check_pattern(pattern)

    def _swaps(
        self,
        mask: Bool[Tensor, "out in"],
        mean: Float[Tensor, "out in"],
        gain: Float[Tensor, "out in"],
        score: Float[Tensor, "out in"],
    ) -> tuple[Int[Tensor, "out cycles"], Int[Tensor, "out cycles"], Float[Tensor, "out errors"]]:
        """For every row and cycle what is regrown and what is pruned (-1: nothing), and the error before and after."""
        # only the first `max_cycles` candidates of each kind can ever be used: no sort of whole rows
        grow = {sign: _first(~mask & (sign * gain > 0), sign * gain, self.max_cycles) for sign in (1, -1)}
        drop = {sign: _first(mask & (sign * mean > 0), -score, self.max_cycles) for sign in (1, -1)}
        error = (mean * ~mask).sum(dim=1)
        used = torch.zeros(4, len(mask), dtype=torch.long, device=mask.device)
        active = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        grown, dropped, errors = [], [], [error]
        for _ in range(min(self.max_cycles, mask.shape[1])):
            active = active & (error.abs() > self.threshold)
            too_much = error > 0
            # bring back what has the error's sign, take away what has the other
            g = torch.where(too_much, _at(grow[1], used[0]), _at(grow[-1], used[1]))
            r = torch.where(too_much, _at(drop[-1], used[2]), _at(drop[1], used[3]))
            swapped = active = active & (g >= 0) & (r >= 0)
            change = _value(mean, r) - _value(mean, g)
            error = torch.where(swapped, error + change, error)
            for place, mine in enumerate((too_much, ~too_much, too_much, ~too_much)):
                used[place] += swapped & mine
            grown.append(torch.where(swapped, g, -1))
            dropped.append(torch.where(swapped, r, -1))
            errors.append(error)
            if not active.any():
                break
        return _stacked(grown, mask), _stacked(dropped, mask), torch.stack(errors, dim=1)

    def _swaps_in_groups(
        self,
        mask: Bool[Tensor, "out in"],
        mean: Float[Tensor, "out in"],
        gain: Float[Tensor, "out in"],
        score: Float[Tensor, "out in"],
        m: int,
    ) -> tuple[Int[Tensor, "out cycles"], Int[Tensor, "out cycles"], Float[Tensor, "out errors"]]:
        """The same where both weights of a swap lie in one group of M, and the error must not change its sign."""
        mask = mask.clone()
        rows = torch.arange(len(mask), device=mask.device)
        error = (mean * ~mask).sum(dim=1)
        sign = error.sign()
        candidates = _first(~mask & (sign[:, None] * gain > 0), sign[:, None] * gain, self.max_cycles)
        active = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        grown, dropped, errors = [], [], [error]
        for cycle in range(candidates.shape[1]):
            active = active & (error.abs() > self.threshold)
            g = candidates[:, cycle]
            group = (g.clamp(min=0) // m * m)[:, None] + torch.arange(m, device=mask.device)
            may_go = mask.gather(1, group) & (sign[:, None] * mean.gather(1, group) < 0)
            least, place = score.gather(1, group).masked_fill(~may_go, torch.inf).min(dim=1)
            r = group.gather(1, place[:, None]).squeeze(1)
            after = error + _value(mean, r) - _value(mean, g)
            swapped = active & (g >= 0) & least.isfinite() & (after.sign() == sign)
            error = torch.where(swapped, after, error)
            mask[rows[swapped], g[swapped]] = True
            mask[rows[swapped], r[swapped]] = False
            grown.append(torch.where(swapped, g, -1))
            dropped.append(torch.where(swapped, r, -1))
            errors.append(error)
            if not active.any():
                break
        return _stacked(grown, mask), _stacked(dropped, mask), torch.stack(errors, dim=1)

    def _apply(
        self,
        mask: Bool[Tensor, "out in"],
        grown: Int[Tensor, "out cycles"],
        dropped: Int[Tensor, "out cycles"],
        errors: Float[Tensor, "out errors"],
    ) -> Bool[Tensor, "out in"]:
        n_swaps = errors.abs().argmin(dim=1) if self.keep_best else torch.full_like(errors[:, 0], errors.shape[1])
        mask = mask.clone()
        rows = torch.arange(len(mask), device=mask.device)
        # in order: with N:M a weight can be regrown and go again
        for cycle in range(grown.shape[1]):
            done = (grown[:, cycle] >= 0) & (cycle < n_swaps)
            mask[rows[done], grown[done, cycle]] = True
            mask[rows[done], dropped[done, cycle]] = False
        return mask


def _as_published(given: Any) -> Any:
    """`{initial: magnitude}`: with the last swap kept, unless told otherwise."""
    return DSnoT(**{"keep_best": False, **given}) if isinstance(given, dict) else given


@settings
class DSnoTPublished:
    """DSnoT as its released code runs it: only layers whose name lacks `skip` are refined, the last swap is kept.

    With LLaMA's names that is the attention alone, with DCLM-7B's (`feed_forward`) all layers: so the published results
    of the two are of two methods.
    """

    refine: Annotated[DSnoT, BeforeValidator(_as_published)] = DSnoT(keep_best=False)
    """The refinement, and by its `initial` what the other layers get."""
    skip: str = "mlp"
    """Layers with this in their name keep the initial mask."""

    @property
    def requires(self) -> tuple[type[InputStatistic], ...]:
        return self.refine.requires

    def for_layer(self, name: str) -> Pruner:
        """The initial method for a skipped layer, the refinement for all others."""
        return self.refine.initial if self.skip in name else self.refine

    def prune(self, weight: Float[Tensor, "out in"], stats: LayerStats, pattern: SparsityPattern) -> PrunedWeight:
        """As for a layer that is not skipped."""
        return self.refine.prune(weight, stats, pattern)

    def check_pattern(self, pattern: SparsityPattern) -> None:
        """Raise `ConfigError` for a pattern that the initial method cannot give."""
        self.refine.check_pattern(pattern)


def _first(allowed: Bool[Tensor, "out in"], order: Float[Tensor, "out in"], count: int) -> Int[Tensor, "out cycles"]:
    """Of each row, the places of the highest `order` among the allowed ones; -1 where there are no more."""
    count = min(count, order.shape[1])
    found = order.masked_fill(~allowed, -torch.inf).topk(count, dim=1)
    return found.indices.masked_fill(found.values == -torch.inf, -1)


def _at(candidates: Int[Tensor, "out cycles"], used: Int[Tensor, "out"]) -> Int[Tensor, "out"]:
    """Each row's next candidate; -1 where all are used up."""
    if not candidates.shape[1]:
        return torch.full_like(used, -1)
    last = candidates.shape[1] - 1
    following = candidates.gather(1, used.clamp(max=last)[:, None]).squeeze(1)
    return following.masked_fill(used > last, -1)


def _value(of: Float[Tensor, "out in"], places: Int[Tensor, "out"]) -> Float[Tensor, "out"]:
    return of.gather(1, places.clamp(min=0)[:, None]).squeeze(1)


def _stacked(cycles: list[Tensor], mask: Bool[Tensor, "out in"]) -> Int[Tensor, "out cycles"]:
    if not cycles:
        return torch.empty(len(mask), 0, dtype=torch.long, device=mask.device)
    return torch.stack(cycles, dim=1)
