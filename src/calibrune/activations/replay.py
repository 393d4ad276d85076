"""Running a model block by block, with every block called by the model itself.

What a block is called with (masks, rotary positions, per-layer inputs) is the model's own business: sliding-window
blocks get other arguments than full ones. So nothing is recorded and played back. The model's forward runs as it is,
with stand-ins for all blocks but one: the stand-in just before it returns the hidden states that we kept, the model
hands them on with whatever else the block needs, and the run stops as soon as the block's result is there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from calibrune.activations.experts import routed, slow_result
from calibrune.errors import ModelError
from calibrune.lm.inference import inference
from calibrune.lm.layout import DecoderBlock

PROBE_TOKENS = 8

EXPERTS_TOLERANCE = 0.02
"""How far the experts' own result may be from the one that is worked out here, in bfloat16 too."""

Hook = Callable[[Tensor, Tensor | None], None]


class _Stop(Exception):  # noqa: N818  (a signal, not a failure)
    """Raised inside a forward pass once all that was wanted has been seen."""


class Replay:
    """Runs single blocks of a model on kept hidden states.

    Args:
        model: any causal language model of transformers, in evaluation mode.
        blocks: its decoder blocks, front to back.
        probe: a short sequence, used to see how the blocks are called and to check that running them one by one
            gives what the whole model gives.

    Raises:
        ModelError: the model does not run its blocks in order, each on the result of the one before.
    """

    def __init__(self, model: PreTrainedModel, blocks: Sequence[DecoderBlock], probe: Int[Tensor, "batch seq"]) -> None:
        self._model = model
        self._blocks = blocks
        self._in_tuple: list[bool] = []
        """Which blocks return their hidden states inside a tuple."""
        self.shared_inputs: dict[str, str] = {}
        """Layer -> the layer of its block that is called first with the very same input tensor (itself, if it is)."""
        self.in_call_order: list[str] = []
        """All layers as the model calls them; those that the probe does not reach (experts, maybe) come last."""
        self._observe(probe[:1, :PROBE_TOKENS])

    def run(
        self,
        index: int,
        input_ids: Int[Tensor, "batch seq"],
        before: Float[Tensor, "batch seq hidden"] | None,
        hooks: dict[str, Hook] | None = None,
        *,
        stop_after: int = 0,
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq hidden"] | None:
        """Run block `index` and return its result, or None if it was stopped before.

        Args:
            before: the result of the block before; None for the first block.
            hooks: what to call with the input of a layer, by the layer's name; and for an expert, with the places of
                its tokens among those of the batch (None: all of them).
            stop_after: stop once so many hook calls were made (0: run the block to its end).
            attention_mask: False at padding; None where there is none.
        """
        results: list[Tensor] = []
        calls = 0

        def last(original: Callable[..., Any]) -> Callable[..., Any]:
            def run_and_stop(*args: Any, **kwargs: Any) -> Any:
                results.append(_hidden(original(*args, **kwargs)))
                raise _Stop

            return run_and_stop

        def counted(seen: Hook) -> Hook:
            def call(x: Tensor, tokens: Tensor | None) -> None:
                nonlocal calls
                seen(x, tokens)
                calls += 1
                if calls == stop_after:
                    raise _Stop

            return call

        stand_ins = {i: _returns(before, self._in_tuple[i]) for i in range(index)}
        handles = _watch(self._blocks[index], {name: counted(seen) for name, seen in (hooks or {}).items()})
        try:
            with _forwards_replaced(self._blocks, stand_ins | {index: last}):
                self._forward(input_ids, attention_mask)
        except _Stop:
            return results[0] if results else None
        finally:
            for handle in handles:
                handle.remove()
        raise ModelError(f"{self._blocks[index].name} was never called; this architecture is not supported")

    def _forward(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Bool[Tensor, "batch seq"] | None = None
    ) -> None:
        # a model that is told of no padding takes the faster ways of attention
        given = {} if attention_mask is None else {"attention_mask": attention_mask.long()}
        with inference(self._model):
            self._model(input_ids=input_ids, use_cache=False, **given)

    def _observe(self, probe: Int[Tensor, "batch seq"]) -> None:
        """One plain forward pass: the order and results of the blocks, and which layers share an input."""
        order: list[int] = []
        results: list[Tensor] = []
        inputs: dict[str, Tensor] = {}
        wrong: list[str] = []

        def block_hook(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                order.append(index)
                self._in_tuple.append(isinstance(output, tuple))
                results.append(_hidden(output).clone())

            return hook

        def layer_hook(name: str) -> Hook:
            def hook(x: Tensor, _tokens: Tensor | None) -> None:
                inputs.setdefault(name, x)

            return hook

        def experts_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            off = (slow_result(module, args, kwargs) - output.float()).norm()
            if off > EXPERTS_TOLERANCE * output.float().norm():
                wrong.append(type(module).__name__)

        handles = [block.module.register_forward_hook(block_hook(block.index)) for block in self._blocks]
        for block in self._blocks:
            handles += _watch(block, {layer.name: layer_hook(layer.name) for layer in block.layers})
            for experts in {layer.module for layer in block.layers if layer.expert is not None}:
                handles.append(experts.register_forward_hook(experts_hook, with_kwargs=True))
        try:
            self._forward(probe)
        finally:
            for handle in handles:
                handle.remove()
        if order != list(range(len(self._blocks))):
            raise ModelError(
                f"{type(self._model).__name__} runs its {len(self._blocks)} blocks in the order {order[:6]}...; "
                f"only models that run each once, front to back, are supported"
            )
        if wrong:
            raise ModelError(
                f"the experts of {type(self._model).__name__} ({wrong[0]}) give another result than their matrices one "
                f"by one; what each is given is not known, so this architecture is not supported"
            )
        self.in_call_order = list(dict.fromkeys([*inputs, *(layer.name for b in self._blocks for layer in b.layers)]))
        for block in self._blocks:
            called = [layer for layer in block.layers if layer.name in inputs]
            for layer in block.layers:
                first = next((other for other in called if inputs[other.name] is inputs.get(layer.name)), layer)
                self.shared_inputs[layer.name] = first.name
        self._check(probe, results)

    def _check(self, probe: Int[Tensor, "batch seq"], expected: Sequence[Tensor]) -> None:
        before: Tensor | None = None
        for block, result in zip(self._blocks, expected, strict=True):
            before = self.run(block.index, probe, before)
            if before is None or not torch.allclose(
                before.float(), result.float(), rtol=1e-3, atol=1e-3, equal_nan=True
            ):
                raise ModelError(
                    f"{block.name} of {type(self._model).__name__} gives another result when it is run by itself than "
                    f"inside the model; this architecture passes more between its blocks than hidden states and is "
                    f"not supported"
                )


def _watch(block: DecoderBlock, hooks: dict[str, Hook]) -> list[RemovableHandle]:
    """Call the hooks with the inputs of the layers that they are named after, until the handles are removed."""
    stacks: dict[nn.Module, dict[int, list[tuple[bool, Hook]]]] = {}
    handles = []

    def of_module(seen: Hook) -> Callable[..., None]:
        return lambda _module, args: seen(args[0], None)

    def of_stack(by_expert: dict[int, list[tuple[bool, Hook]]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for share in routed(module, args, kwargs):
                for leads_out, seen in by_expert.get(share.expert, ()):
                    seen(share.activated if leads_out else share.inputs, share.tokens)

        return hook

    for layer in block.layers:
        if layer.name not in hooks:
            continue
        seen = hooks[layer.name]
        if layer.expert is None:
            handles.append(layer.module.register_forward_pre_hook(of_module(seen)))
        else:
            leads_out = layer.key.endswith(".down_proj")
            stacks.setdefault(layer.module, {}).setdefault(layer.expert, []).append((leads_out, seen))
    for module, by_expert in stacks.items():
        handles.append(module.register_forward_pre_hook(of_stack(by_expert), with_kwargs=True))
    return handles


@contextmanager
def _forwards_replaced(
    blocks: Sequence[DecoderBlock], replacements: dict[int, Callable[[Callable[..., Any]], Callable[..., Any]]]
) -> Iterator[None]:
    """Give some blocks another forward for a while."""
    kept = {index: vars(blocks[index].module).get("forward") for index in replacements}
    try:
        for index, replacement in replacements.items():
            module = blocks[index].module
            module.forward = replacement(module.forward)
        yield
    finally:
        for index, forward in kept.items():
            if forward is None:
                vars(blocks[index].module).pop("forward", None)
            else:
                blocks[index].module.forward = forward


def _returns(hidden: Tensor | None, in_tuple: bool) -> Callable[..., Callable[..., Any]]:
    """A stand-in for a block that returns these hidden states, in the form that the block itself returns."""
    return lambda _original: lambda *_args, **_kwargs: (hidden,) if in_tuple else hidden


def _hidden(output: Any) -> Tensor:
    """The hidden states of what a block returns: a tensor, or a tuple that begins with it."""
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor):
        raise ModelError(f"a decoder block returned {type(hidden).__name__}, not hidden states; not supported")
    return hidden
