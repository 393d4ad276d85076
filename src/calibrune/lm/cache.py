"""What a model keeps of earlier tokens: under which name it takes it, and a kind that is made for generation."""

from inspect import signature

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from calibrune.errors import ConfigError

NAMES = ("cache", "past_key_values", "cache_params")
"""Of the argument: transformers from 5.24 on, before that, and before that of models without keys and values."""


def taking_cache(model: nn.Module, cache: DynamicCache) -> dict[str, object]:
    """Arguments of the forward of a model, or of its body, that make it read this cache and add to it.

    Raises:
        ConfigError: it takes none of this kind, so it would forget all earlier tokens.
    """
    accepted = signature(model.forward).parameters
    # a state that is no cache of transformers has that name in older versions
    for name in NAMES[:2] if attends(cache) else NAMES:
        if name in accepted:
            return {name: cache, "use_cache": True}
    raise ConfigError(
        f"{type(model).__name__} takes no cache of earlier tokens, so it cannot write texts token by token; calibrate "
        "it with texts of a corpus"
    )


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values in a buffer that doubles when full, instead of a new tensor at every token."""

    def __init__(self, longest: int) -> None:
        super().__init__()
        self._longest = longest
        self._buffers: list[Tensor] = []
        self._start, self._end = 0, 0
        """The columns of the buffers that hold something."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            # transformers 4 wants the keys alone
            states = (key_states, value_states)
            self.lazy_initialization(*states[: len(signature(self.lazy_initialization).parameters)])
        new = key_states.shape[-2]
        if not self._buffers or self._end + new > self._buffers[0].shape[-2]:
            self._move((key_states, value_states), self._end - self._start + new)
        self._end += new
        self._buffers[0][..., self._end - new : self._end, :] = key_states
        self._buffers[1][..., self._end - new : self._end, :] = value_states
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show()

    def put(self, rows: Tensor, other: "GrowingLayer") -> None:
        """Other keys and values in the last columns of these rows."""
        for buffer, states in zip(self._buffers, (other.keys, other.values), strict=True):
            buffer[rows, :, self._end - states.shape[-2] : self._end] = states

    def forget(self, columns: int) -> None:
        """The first columns."""
        self._start += columns
        self._show()

    def _move(self, states: tuple[Tensor, Tensor], needed: int) -> None:
        """Into larger buffers, or to the beginning of new ones."""
        # a little more than the longest text: what is forgotten at the beginning makes room only now and then
        room = max(min(max(2 * needed, 64), self._longest + 64), needed)
        kept = [(buffer[..., self._start : self._end, :]) for buffer in self._buffers]
        self._buffers = [one.new_empty(*one.shape[:-2], room, one.shape[-1]) for one in states]
        self._start, self._end = 0, self._end - self._start
        for new, old in zip(self._buffers, kept, strict=False):
            new[..., : self._end, :] = old

    def _show(self) -> None:
        self.keys, self.values = (buffer[..., self._start : self._end, :] for buffer in self._buffers)


def growing_cache(model: PreTrainedModel, longest: int) -> DynamicCache:
    """The model's own kind of cache, its plain layers replaced by ones that do not copy all at every token."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer(longest) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def attends(cache: DynamicCache) -> bool:
    """Whether any layer keeps a column for every token, or for the last ones."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def can_begin_anew(model: PreTrainedModel) -> bool:
    """Whether all of its layers keep every column, so that a row of a batch can be given to another text."""
    layers = growing_cache(model, 1).layers
    return bool(layers) and all(type(layer) is GrowingLayer for layer in layers)
