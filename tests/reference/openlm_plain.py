"""open_lm from its equations: a dict of tensors under the published names, one sequence at a time, no cache.

With LN_g(x) = g · (x − mean x) / sqrt(var x + ε), for every token t:
  q, k, v = W_in LN(x);  q <- LN(q), k <- LN(k) over all heads at once;  then by head, the pair (j, j + d/2) of q and k
  is the complex number q_j + i q_{j+d/2}, and is multiplied by exp(i t 10000^(−2j/d));
  x <- x + W_out Σ_{s ≤ t} softmax_s(q_t · k_s / sqrt(d)) v_s;   x <- x + W_3 (silu(gate) · up), gate, up = W_12 LN(x).
"""

import math

import torch
from torch import Tensor

EPS = 1e-5


def tensors(dim: int, n_layers: int, vocab: int, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a model with qk-norm, under the names of a published checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    hidden = 256 * math.ceil(math.floor(8 * dim / 3) / 256)

    def matrix(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    def gain() -> Tensor:
        return 1 + 0.3 * torch.randn(dim, generator=generator)

    result = {"model.tok_embeddings.weight": matrix(vocab, dim), "model.output.weight": matrix(vocab, dim)}
    result["model.norm.weight"] = gain()
    for layer in range(n_layers):
        at = f"model.layers.{layer}"
        result |= {f"{at}.attention.in_proj.weight": matrix(3 * dim, dim)}
        result |= {f"{at}.attention.out_proj.weight": matrix(dim, dim)}
        result |= {f"{at}.feed_forward.w12.weight": matrix(2 * hidden, dim)}
        result |= {f"{at}.feed_forward.w3.weight": matrix(dim, hidden)}
        names = ("attention.q_norm", "attention.k_norm", "attention_norm", "ffn_norm")
        result |= {f"{at}.{name}.weight": gain() for name in names}
    return result


def layer_norm(x: Tensor, gain: Tensor) -> Tensor:
    centred = x - x.mean()
    return gain * centred / torch.sqrt((centred**2).mean() + EPS)


def turned(x: Tensor, position: int) -> Tensor:
    """One head's query or key at one position."""
    half = len(x) // 2
    theta = torch.tensor([10000 ** (-2 * j / len(x)) for j in range(half)], dtype=x.dtype)
    z = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(theta), position * theta)
    return torch.cat([z.real, z.imag])


def attention(xs: list[Tensor], w: dict[str, Tensor], at: str, n_heads: int) -> list[Tensor]:
    dim = len(xs[0])
    d = dim // n_heads
    projected = [w[f"{at}.in_proj.weight"] @ x for x in xs]
    queries = [layer_norm(p[:dim], w[f"{at}.q_norm.weight"]) for p in projected]
    keys = [layer_norm(p[dim : 2 * dim], w[f"{at}.k_norm.weight"]) for p in projected]
    values = [p[2 * dim :] for p in projected]
    results = []
    for t in range(len(xs)):
        heads = []
        for start in range(0, dim, d):
            part = slice(start, start + d)
            q = turned(queries[t][part], t)
            scores = torch.stack([q @ turned(keys[s][part], s) / math.sqrt(d) for s in range(t + 1)])
            shares = scores.exp() / scores.exp().sum()
            heads.append(sum(share * values[s][part] for s, share in enumerate(shares)))
        results.append(w[f"{at}.out_proj.weight"] @ torch.cat(heads))
    return results


def feed_forward(x: Tensor, w: dict[str, Tensor], at: str) -> Tensor:
    both = w[f"{at}.w12.weight"] @ x
    gate, up = both[: len(both) // 2], both[len(both) // 2 :]
    return w[f"{at}.w3.weight"] @ (gate / (1 + torch.exp(-gate)) * up)


def logits(ids: list[int], w: dict[str, Tensor], n_layers: int, n_heads: int) -> Tensor:
    """Logits [seq, vocab] of one sequence, in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}
    xs = [w["model.tok_embeddings.weight"][token] for token in ids]
    for layer in range(n_layers):
        at = f"model.layers.{layer}"
        normed = [layer_norm(x, w[f"{at}.attention_norm.weight"]) for x in xs]
        xs = [x + a for x, a in zip(xs, attention(normed, w, f"{at}.attention", n_heads), strict=True)]
        xs = [x + feed_forward(layer_norm(x, w[f"{at}.ffn_norm.weight"]), w, f"{at}.feed_forward") for x in xs]
    return torch.stack([w["model.output.weight"] @ layer_norm(x, w["model.norm.weight"]) for x in xs])
