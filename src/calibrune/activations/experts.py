"""What each expert of a stack sees: only the tokens that were routed to it.

The experts' module runs all of them in a way of its own. Beside it, their inputs are worked out again from what it is
called with; on the probe, that the same steps to the end give the module's own result is checked.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Routed(NamedTuple):
    """The tokens of one expert, and what its matrices are given."""

    expert: int
    tokens: Int[Tensor, "tokens"]
    """Which of the tokens, in their order."""
    inputs: Float[Tensor, "tokens in"]
    """Of the matrices that lead in."""
    activated: Float[Tensor, "tokens hidden"]
    """Of the one that leads out."""


def routed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Routed]:
    """Go through the experts in order, those without a token too, given what their module is called with."""
    hidden, chosen = (*args, *kwargs.values())[:2]
    name = "gate_up_proj" if module.has_gate else "up_proj"
    for expert in range(len(module.down_proj)):  # type: ignore[arg-type]
        tokens = (chosen == expert).any(dim=-1).nonzero().flatten()
        inputs = hidden[tokens]
        middle = _linear(module, name, expert, inputs)
        activated = module._apply_gate(middle) if module.has_gate else module.act_fn(middle)  # type: ignore[operator]
        yield Routed(expert, tokens, inputs, activated)


def slow_result(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Float[Tensor, "tokens hidden"]:
    """What the experts' module should return, by a loop over them."""
    hidden, chosen, weights = (*args, *kwargs.values())[:3]
    total = torch.zeros_like(hidden, dtype=torch.float32)
    for expert, tokens, _, activated in routed(module, args, kwargs):
        result = _linear(module, "down_proj", expert, activated)
        share = (weights[tokens] * (chosen[tokens] == expert)).sum(dim=-1, keepdim=True)
        total[tokens] += (result * share).float()
    return total


def _linear(module: nn.Module, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return nn.functional.linear(x, weight.T if module.is_transposed else weight, bias)
