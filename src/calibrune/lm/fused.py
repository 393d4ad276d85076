"""Matrices stored as one: q, k and v, or gate and up. They are pruned as the separate matrices that they are.

That a weight is several is seen in the shapes. How their rows lie in it is not: it is said here, by architecture.
"""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

Rows = slice | Int[Tensor, "out"]

BLOCKED = frozenset({"dbrx", "gpt2", "gpt_bigcode", "mpt", "openlm", "phi3"})
"""`model_type`s with all queries first, then all keys, then all values: [(heads + 2 kv heads) * head_dim]."""

GROUPED = frozenset({"bloom", "falcon", "gpt_neox", "gpt_neox_japanese", "persimmon"})
"""With the queries of a key-value head, its key and its value, then those of the next head: [kv heads, queries + 2,
head_dim]. Each head has a key of its own but in Falcon, which has one for all, for each, or for each group; so it is in
GPTBigCode where it is told to have no single key for all."""

GATE_FIRST = frozenset({"glm", "glm4", "openlm", "phi3"})
"""With all rows of the gate (what the activation is applied to), then all of up."""


def parts_of(config: Any, shape: tuple[int, int], others: list[tuple[int, int]]) -> dict[str, Rows] | None:
    """The rows of each matrix in a weight [out, in], by name: empty where it is one, None where nobody knows.

    Args:
        config: the text model's.
        shape: of the weight.
        others: shapes of the other weights of the same module: one that takes what attention or gating gives.
    """
    if len(others) != 1 or others[0][0] != shape[1]:
        return {}
    heads, head_dim = _heads(config)
    n_in = others[0][1]
    per_group = _queries_per_key(shape[0], heads, head_dim) if heads and n_in == heads * head_dim else None
    is_gated = shape[0] == 2 * n_in and n_in == (getattr(config, "intermediate_size", None) or n_in)
    kind = getattr(config, "model_type", None)
    if per_group and not (is_gated and _is_like_gating(config, n_in, heads // per_group)):
        if kind in BLOCKED and getattr(config, "multi_query", True):
            return _blocked(heads * head_dim, heads // per_group * head_dim)
        return _grouped(shape[0], per_group, head_dim) if kind in GROUPED | {"gpt_bigcode"} else None
    if is_gated:
        return {"gate": slice(0, n_in), "up": slice(n_in, 2 * n_in)} if kind in GATE_FIRST else None
    return {}


def _heads(config: Any) -> tuple[int, int]:
    """Query heads and the size of each; (0, 0) where the config does not say."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0, 0
    return heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def _queries_per_key(n_out: int, heads: int, head_dim: int) -> int | None:
    """Query heads that share a key, if `n_out` is that of all queries, keys and values."""
    keys, rest = divmod(n_out - heads * head_dim, 2 * head_dim)
    return heads // keys if not rest and keys > 0 and heads % keys == 0 else None


def _is_like_gating(config: Any, n_in: int, kv_heads: int) -> bool:
    """Whether the shapes fit gate and up better: the feed-forward is as wide as attention, the keys are not as many."""
    return n_in == getattr(config, "intermediate_size", None) and kv_heads != getattr(
        config, "num_key_value_heads", kv_heads
    )


def _blocked(queries: int, keys: int) -> dict[str, Rows]:
    return {
        "q": slice(0, queries),
        "k": slice(queries, queries + keys),
        "v": slice(queries + keys, queries + 2 * keys),
    }


def _grouped(n_out: int, per_group: int, head_dim: int) -> dict[str, Rows]:
    rows = torch.arange(n_out).reshape(-1, per_group + 2, head_dim)
    return {"q": rows[:, :-2].flatten(), "k": rows[:, -2].flatten(), "v": rows[:, -1].flatten()}
