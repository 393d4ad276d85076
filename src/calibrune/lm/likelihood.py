"""How likely a model finds a text, token by token: the one place that scores tokens.

The logits of 4,096 tokens over a vocabulary of 262,144 are 4 GB in float32, and none of them is needed twice. So the
model's body runs once, and its head runs on a few positions at a time. The head is the model's own `forward`, with the
body replaced by what it already returned: whatever a model does to its logits (Gemma 2 caps them, Cohere and Granite
scale them) is done here too, without a line about it.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from calibrune.errors import ConfigError
from calibrune.lm.inference import inference
from calibrune.progress import progress_bar

LOGITS_BYTES = 64 * 2**20
"""Logits held at a time, in bytes of float32, unless told otherwise."""
PIECE_BYTES = 8 * 2**20
"""Of them, how much is summed up at a time on a processor: a temporary tensor of this size is memory that was used just
before, a larger one is new memory from the system, which takes longer than the sums."""

_SCORING = threading.RLock()
"""Held while a model is scored, for that changes it: other threads wait."""

Reduction = Callable[[Tensor, Tensor], Tensor]
"""Logits [tokens, vocab] in float32 and targets [tokens] in; a number or a few for each token out."""


def token_log_likelihoods(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch seq"], *, logits_bytes: int = LOGITS_BYTES
) -> Float[Tensor, "batch seq-1"]:
    """log p(token t | tokens before t) in float32, for every token but the first.

    Runs in evaluation mode, without gradients and without a cache; leaves the model as it found it. Threads that score
    take turns; one that calls the model itself meanwhile gets what the model says.

    Args:
        model: a causal language model; on whatever device it is, the ids follow.
        input_ids: sequences of one token or more, without padding, or padded on the right: in a causal model no real
            token looks at what follows it, so values are exact without a mask; those at the padding mean nothing.
        logits_bytes: what the logits of one step may take, as float32. Never less than those of one position of one
            sequence. A model whose `forward` takes no `logits_to_keep`, or whose head is fed by something that is
            neither its `base_model` nor its decoder, is run one sequence at a time with all its logits.
    """
    if input_ids.shape[1] < 2 or not len(input_ids):
        return torch.zeros(len(input_ids), input_ids.shape[1] - 1, device=model.device)
    return _scored(model, input_ids, logits_bytes, _of_targets)


def token_moments(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch seq"], *, logits_bytes: int = LOGITS_BYTES
) -> Float[Tensor, "batch seq-1 3"]:
    """log p of every token but the first, and the mean and the standard deviation of log p over the vocabulary there.

    The mean is over all tokens that could have come, each weighing its own probability: what Min-K%++ (Zhang et al.,
    2024, arXiv 2404.02936) measures a token against. Arguments as of `token_log_likelihoods`; sequences of two tokens
    or more.
    """
    return _scored(model, input_ids, logits_bytes, _with_moments)


def _scored(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch seq"], logits_bytes: int, reduce: Reduction
) -> Float[Tensor, "batch seq-1 *values"]:
    input_ids = input_ids.to(model.device)
    positions_at_a_time = max(1, logits_bytes // (4 * model.config.get_text_config().vocab_size))
    with _SCORING, inference(model):
        if "logits_to_keep" not in inspect.signature(model.forward).parameters:
            return _one_by_one(model, input_ids, reduce)
        return torch.cat(
            [_in_chunks(model, ids, positions_at_a_time, reduce) for ids in torch.split(input_ids, positions_at_a_time)]
        )


def text_log_likelihoods(
    model: PreTrainedModel,
    texts_ids: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 4096,
    description: str = "scoring",
) -> list[Float[Tensor, "_"]]:
    """`token_log_likelihoods` of many sequences of any lengths, in their order, on the CPU.

    A sequence of one token or none has no token to predict: its tensor is empty.

    Args:
        batch_tokens: tokens in one forward, padding included; a longer sequence goes alone.
        description: what the progress bar is called.
    """
    return over_texts(
        lambda ids: token_log_likelihoods(model, ids).cpu(),
        texts_ids,
        batch_tokens=batch_tokens,
        description=description,
    )


def over_texts(
    score: Callable[[Int[Tensor, "batch seq"]], Float[Tensor, "batch seq-1 *values"]],
    texts_ids: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 4096,
    description: str = "scoring",
) -> list[Float[Tensor, "_ *values"]]:
    """What `score` says of every token but the first of each sequence; in batches padded on the right, longest first.

    Arguments and order as of `text_log_likelihoods`; `score` must not mind what the padding holds.
    """
    result = [torch.zeros(0) for _ in texts_ids]
    scored = [i for i, ids in enumerate(texts_ids) if len(ids) > 1]
    with progress_bar(description, total=len(scored), unit="it") as bar:
        for batch in batch_by_length([len(texts_ids[i]) for i in scored], batch_tokens):
            indices = [scored[i] for i in batch]
            # what the padding holds does not matter: nothing real looks at it
            padded = pad_sequence([torch.tensor(texts_ids[i]) for i in indices], batch_first=True)
            for index, values in zip(indices, score(padded), strict=True):
                result[index] = values[: len(texts_ids[index]) - 1].clone()
            bar.update(len(batch))
    return result


def target_log_likelihoods(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    places: Int[Tensor, "tokens 2"],
    targets: Sequence[tuple[int, int]],
    *,
    logits_bytes: int = LOGITS_BYTES,
) -> tuple[Float[Tensor, "_"], Bool[Tensor, "_"]]:
    """log p(token) in float32 at a few places of one forward, and whether the token is the likeliest there; on the CPU.

    Logits are made for these places alone, as many at a time as `logits_bytes` holds.

    Args:
        inputs: what the model's forward is called with; `input_ids` [batch, seq] at least.
        places: row and column in `input_ids`; what follows there is predicted.
        targets: (index into `places`, token id), in the order of the indices; a place may be asked for many tokens.
    """
    asked = torch.tensor([index for index, _ in targets], dtype=torch.long, device=model.device)
    tokens = torch.tensor([token for _, token in targets], dtype=torch.long, device=model.device)
    rows, columns = places.to(model.device).unbind(1)
    size = max(1, logits_bytes // (4 * model.config.get_text_config().vocab_size))
    scores, likeliest = [], []
    with _SCORING, inference(model):
        for start, logits in logits_at(model, inputs, rows, columns, size):
            here = (asked >= start) & (asked < start + len(logits))
            index, token = asked[here] - start, tokens[here]
            sums, best = (torch.cat(of) for of in zip(*map(_sum_and_best, _in_pieces(logits)), strict=True))
            scores.append(logits[index, token].float() - sums[index])
            likeliest.append(best[index] == token)
    return torch.cat(scores).cpu(), torch.cat(likeliest).cpu()


def logits_at(
    model: PreTrainedModel, inputs: Mapping[str, Any], rows: Tensor, columns: Tensor, size: int
) -> Iterator[tuple[int, Float[Tensor, "tokens vocab"]]]:
    """Logits of `size` places at a time, and where in the list of places each portion starts.

    Between two portions the model is as it was. The caller has no gradients on and keeps other threads away.
    """
    chunks = [slice(start, start + size) for start in range(0, len(rows), size)]
    arguments = {"use_cache": False, "return_dict": True, **inputs}
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    # the last position alone would still be one of every row, and a batch can have very many
    none = {"logits_to_keep": torch.zeros(0, dtype=torch.long, device=model.device)} if keeps else {}
    with _recording(_bodies(model)) as recorded:
        logits = model(**arguments, **none).logits
    if not keeps or not recorded:
        if keeps:
            logits = model(**arguments).logits
        yield from ((chunk.start, logits[rows[chunk], columns[chunk]]) for chunk in chunks)
        return
    del logits
    alone = {"input_ids": inputs["input_ids"][:1, :1], "use_cache": False, "return_dict": True}
    for chunk in chunks:
        # the places as one sequence: a head looks at each position by itself
        narrowed = {body: _only(output, rows[chunk], columns[chunk]) for body, output in recorded.items()}
        with _replaying(narrowed):
            here = model(**alone).logits[0]
        yield chunk.start, here
        del here  # else it is held while the next ones are made


def _only(output: Any, rows: Tensor, columns: Tensor) -> Any:
    """What a body returned, with the hidden states of these places alone."""
    return type(output)(last_hidden_state=output[0][rows, columns][None])


def compare_logits(
    first: PreTrainedModel,
    second: PreTrainedModel,
    input_ids: Int[Tensor, "batch seq"],
    compare: Callable[[Float[Tensor, "tokens vocab"], Float[Tensor, "tokens vocab"]], Float[Tensor, "tokens values"]],
    *,
    logits_bytes: int = LOGITS_BYTES,
) -> Float[Tensor, "batch seq-1 values"]:
    """What `compare` says of the next-token logits of two models, for every token of a sequence but the first.

    The bodies run once each; the logits of both, in float32, are there for a few positions at a time.

    Args:
        input_ids: sequences of two tokens or more, as for `token_log_likelihoods`.
        compare: the logits of the first and of the second model at the same positions in, which it may change; a few
            numbers for each position out. Both are on the device of the first.
        logits_bytes: what the logits of both together may take, as float32.
    """
    batch, seq = input_ids.shape
    rows = torch.arange(batch, device=first.device).repeat_interleave(seq - 1)
    columns = torch.arange(seq - 1, device=first.device).repeat(batch)
    size = max(1, logits_bytes // (8 * first.config.get_text_config().vocab_size))
    values = []
    with _SCORING, inference(first), inference(second):
        portions = [
            logits_at(one, {"input_ids": input_ids.to(one.device)}, rows.to(one.device), columns.to(one.device), size)
            for one in (first, second)
        ]
        for (_, a), (_, b) in zip(*portions, strict=True):
            pieces = zip(_in_pieces(a), _in_pieces(b.to(first.device)), strict=True)
            values += [compare(one.float(), other.float()).cpu() for one, other in pieces]
    return torch.cat(values).view(batch, seq - 1, -1)


def batch_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of the sequences in batches that take at most `max_tokens` when padded to their longest.

    Longest first: a batch that does not fit in memory fails at once, and the time left is never underestimated. A
    sequence longer than `max_tokens` is a batch of its own.

    >>> batch_by_length([3, 9, 2, 4], max_tokens=8)
    [[1], [3, 0], [2]]
    """
    if max_tokens < 1:
        raise ConfigError(f"a batch needs at least 1 token, got max_tokens={max_tokens}")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if room == 0:
            batches.append([])
            room = max(1, max_tokens // max(1, lengths[index]))
        batches[-1].append(index)
        room -= 1
    return batches


def _in_chunks(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch seq"], positions_at_a_time: int, reduce: Reduction
) -> Float[Tensor, "batch seq-1 *values"]:
    positions = torch.arange(input_ids.shape[1] - 1, device=input_ids.device)
    chunks = torch.split(positions, max(1, positions_at_a_time // len(input_ids)))

    def score(chunk: Int[Tensor, "seq"]) -> Float[Tensor, "batch seq *values"]:
        return _reduced(_logits(model, input_ids, logits_to_keep=chunk), input_ids[:, chunk + 1], reduce)

    with _recording(_bodies(model)) as recorded:
        first = score(chunks[0])
    if not recorded:
        return _one_by_one(model, input_ids, reduce)
    with _replaying(recorded):
        return torch.cat([first, *map(score, chunks[1:])], dim=1)


def _one_by_one(
    model: PreTrainedModel, input_ids: Int[Tensor, "batch seq"], reduce: Reduction
) -> Float[Tensor, "batch seq-1 *values"]:
    return torch.cat([_reduced(_logits(model, ids)[:, :-1], ids[:, 1:], reduce) for ids in torch.split(input_ids, 1)])


def _logits(model: PreTrainedModel, input_ids: Tensor, **arguments: Any) -> Float[Tensor, "batch seq vocab"]:
    logits: Tensor = model(input_ids=input_ids, use_cache=False, return_dict=True, **arguments).logits
    return logits


def _in_pieces(logits: Float[Tensor, "tokens vocab"]) -> Sequence[Float[Tensor, "_ vocab"]]:
    """The logits, `PIECE_BYTES` of float32 at a time on a processor; an accelerator takes them all at once."""
    whole = logits.device.type != "cpu" or not len(logits)
    return [logits] if whole else torch.split(logits, max(1, PIECE_BYTES // (4 * logits.shape[-1])))


def _sum_and_best(logits: Float[Tensor, "tokens vocab"]) -> tuple[Float[Tensor, "tokens"], Int[Tensor, "tokens"]]:
    return logits.float().logsumexp(-1), logits.argmax(-1)


def _reduced(
    logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch seq"], reduce: Reduction
) -> Float[Tensor, "batch seq *values"]:
    pieces = _in_pieces(logits.flatten(0, 1))
    asked = torch.split(targets.to(logits.device).flatten(), [len(piece) for piece in pieces])
    values = torch.cat([reduce(piece.float(), one) for piece, one in zip(pieces, asked, strict=True)])
    return values.view(*targets.shape, *values.shape[1:])


def _of_targets(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)


def _with_moments(logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, "tokens"]) -> Float[Tensor, "tokens 3"]:
    log_p = logits.log_softmax(dim=-1)
    chosen = log_p.gather(-1, targets[:, None]).squeeze(-1)
    p = log_p.exp()
    # a token that cannot come has log p of -inf and weighs nothing
    log_p = log_p.masked_fill(p == 0, 0.0)
    mean = (p * log_p).sum(dim=-1)
    variance = (p * (log_p - mean[..., None]).square()).sum(dim=-1)
    return torch.stack([chosen, mean, variance.sqrt()], dim=-1)


def _bodies(model: PreTrainedModel) -> set[nn.Module]:
    """The modules that may be what the head gets its hidden states from: OPT's is not its `base_model`."""
    return {model.base_model, model.get_decoder()} - {model}


@contextmanager
def _recording(bodies: set[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """Collect `{body: its output}` for those of the bodies that are called in this thread."""
    recorded: dict[nn.Module, Any] = {}
    here = threading.get_ident()

    def record(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == here:
            recorded[module] = output

    hooks = [body.register_forward_hook(record) for body in bodies]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _replaying(recorded: dict[nn.Module, Any]) -> Iterator[None]:
    """Make each of the modules return its recorded output instead of running, to this thread alone."""
    here = threading.get_ident()

    def returning(output: Any, own: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: output if threading.get_ident() == here else own(*args, **kwargs)

    # in vars where something (a quantizer, a device map) put a forward of its own on this one module
    replaced = {module: vars(module).get("forward") for module in recorded}
    try:
        for module, output in recorded.items():
            module.forward = returning(output, module.forward)
        yield
    finally:
        for module, forward in replaced.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward
