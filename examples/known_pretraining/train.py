"""Train one of the models on its documents; killed, the same command goes on, and the weights are the same.

python -m examples.known_pretraining.train wiki-web --data ../shared/data --work out/known-pretraining
"""

import argparse
import hashlib
import io
import json
import logging
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calibrune.checkpoint import versions
from calibrune.corpora.document import Document
from calibrune.durable import to_json, write_whole
from calibrune.errors import CalibruneError, ConfigError
from calibrune.lm.loading import compute, make_readable
from calibrune.seeds import rank_of, seed_for
from calibrune.settings import settings
from examples.known_pretraining.splits import DOMAINS, MODELS, SEED, Part, Splits, of_model, split_corpora

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
END = "<|endoftext|>"
PROBE = 32
"""Windows of a split that the loss is measured on now and then."""
FORMAT = 1
"""Counts changes of what a checkpoint holds."""


@settings
class Training:
    """A model and how it is trained. `tokens` is the budget: with more of it, and of corpora, it is a better model."""

    model: Literal["wiki-web", "pubmed-patents", "mixture"]
    tokens: int = 3_000_000
    vocabulary: int = 4096
    hidden: int = 192
    mlp: int = 512
    layers: int = 6
    heads: int = 6
    seq_len: int = 256
    batch: int = 8
    learning_rate: float = 2e-3
    warm_up: int = 50
    """Steps over which the rate rises; then it stays."""
    cooling: float = 0.3
    """Share of the steps over which it falls in the end. Until then nothing knows of the budget: a training that was
    stopped before can go on with another one."""
    decay: float = 0.1
    """Of the weights, as AdamW has it; norms have none."""
    clip: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the products; weights, gradients and AdamW's moments are float32."""
    every: int = 100
    """Steps between two rows of the curve."""
    seed: int = 0

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return max(1, self.tokens // (self.batch * self.seq_len))

    @property
    def cools_at(self) -> int:
        """The step at which the rate begins to fall."""
        return self.steps - round(self.cooling * self.steps)

    def rate(self, step: int) -> float:
        """The learning rate of a step: up in a line, level, down in a line to nearly 0 (Hu et al., 2024, MiniCPM)."""
        falling = (self.steps - step) / max(1, self.steps - self.cools_at)
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up, falling)


def train_tokenizer(splits: Splits, vocabulary: int, longest: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of as many characters of every domain's training documents: it favours none of them."""
    texts = {name: "\n".join(one.text for one in parts["train"]) for name, parts in splits.items() if name in DOMAINS}
    size = min(map(len, texts.values()))
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator([text[:size] for text in texts.values()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token=END, eos_token=END, model_max_length=longest)


@dataclass(frozen=True)
class Stream:
    """All documents in a row without end, an end mark after each; every epoch has an order of its own."""

    documents: Sequence[np.ndarray]
    """Token ids, uint16."""
    seed: int

    @classmethod
    def of(cls, documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, seed: int) -> "Stream":
        end = tokenizer.eos_token_id
        texts = [one.text for one in documents]
        ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        return cls([np.array([*one, end], dtype=np.uint16) for one in ids], seed)

    @property
    def epoch_tokens(self) -> int:
        return sum(map(len, self.documents))

    def piece(self, begin: int, n: int) -> np.ndarray:
        """The `n` tokens from place `begin`: a function of these alone, so any batch can be made again."""
        size, parts = self.epoch_tokens, []
        while n:
            epoch, place = divmod(begin, size)
            key = seed_for(self.seed, "known pre-training", "epoch", str(epoch))
            order = sorted(range(len(self.documents)), key=lambda i: rank_of(key, str(i)))
            parts.append(np.concatenate([self.documents[i] for i in order])[place : place + n])
            begin, n = begin + len(parts[-1]), n - len(parts[-1])
        return np.concatenate(parts)

    def batch(self, step: int, batch: int, seq_len: int) -> Tensor:
        """Token ids, int64 [batch, seq]."""
        n = batch * seq_len
        return torch.from_numpy(self.piece(step * n, n).astype(np.int64)).view(batch, seq_len)


def train(
    asked: Training,
    splits: Splits,
    work: Path,
    out: Path,
    *,
    save_seconds: float = 180.0,
    stop_at: int | None = None,
) -> bool:
    """Train and write the model's folder; True when it is there.

    Args:
        asked: what to train.
        splits: of `split_corpora`.
        work: where the checkpoint lies from which a run that was killed goes on.
        out: the folder of the finished model, with `training.json`: settings, loss curve, what it was made of.
        save_seconds: between two checkpoints.
        stop_at: end at this step with a checkpoint, as if it had been killed then.

    The checkpoint from before the rate fell stays: with more `tokens`, the training goes on from there.

    Raises:
        ConfigError: the checkpoint is of another training, or further than this one may be when its rate falls.
    """
    tokenizer = train_tokenizer(splits, asked.vocabulary, asked.seq_len)
    streams = {part: _stream(asked, splits, part, tokenizer) for part in ("train", "held")}
    of_what = _record(asked, streams["train"])
    model = _new(asked, tokenizer)
    optimizer = _optimizer(model, asked)
    level, cooling = work / f"{asked.model}.pt", work / f"{asked.model}.{asked.tokens}.pt"
    place = cooling if cooling.exists() else level
    step, curve, seconds = _resumed(place, asked, of_what, model, optimizer)
    probes = {part: streams[part].batch(0, PROBE, asked.seq_len) for part in streams}
    began = saved = time.perf_counter() - seconds
    recent: list[float] = []
    while step < asked.steps and step != stop_at:
        recent.append(_step(model, optimizer, asked, streams["train"], step))
        step += 1
        now = time.perf_counter()
        if step % asked.every == 0 or step == asked.steps:
            losses = {f"{part}_loss": _loss(model, ids, asked) for part, ids in probes.items()}
            curve.append({"step": step, "tokens": step * asked.batch * asked.seq_len, "rate": asked.rate(step - 1)})
            curve[-1] |= {"loss": sum(recent) / len(recent), **losses, "seconds": round(now - began)}
            recent = []
            log.info("%s: %s", asked.model, json.dumps(curve[-1]))
        if now - saved > save_seconds or step in (asked.cools_at, stop_at):
            place = level if step <= asked.cools_at else cooling
            _save(place, asked, of_what, model, optimizer, step, curve, now - began)
            saved = now
    if step < asked.steps:
        return False
    _finish(model, tokenizer, out, {**of_what, "curve": curve, "seconds": round(time.perf_counter() - began)})
    cooling.unlink(missing_ok=True)
    return True


def _stream(asked: Training, splits: Splits, part: Part, tokenizer: PreTrainedTokenizerFast) -> Stream:
    return Stream.of(of_model(splits, asked.model, part), tokenizer, asked.seed)


def _record(asked: Training, stream: Stream) -> dict[str, Any]:
    tokens = hashlib.sha256(b"".join(one.tobytes() for one in stream.documents)).hexdigest()
    said = {"documents": len(stream.documents), "tokens": stream.epoch_tokens, "sha256": tokens, "split_seed": SEED}
    epochs = round(asked.steps * asked.batch * asked.seq_len / stream.epoch_tokens, 2)
    return {"training": asdict(asked), "read": said, "epochs": epochs, "format": FORMAT}


def _new(asked: Training, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=asked.vocabulary,
        hidden_size=asked.hidden,
        intermediate_size=asked.mlp,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.heads,
        num_key_value_heads=asked.heads,
        max_position_embeddings=asked.seq_len,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # transformers draws from the global generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(asked.seed, "known pre-training", "weights"))
        return LlamaForCausalLM(config)


def _optimizer(model: LlamaForCausalLM, asked: Training) -> torch.optim.AdamW:
    matrices = [one for one in model.parameters() if one.ndim > 1]
    others = [one for one in model.parameters() if one.ndim < 2]
    groups = [{"params": matrices, "weight_decay": asked.decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=asked.learning_rate, betas=(0.9, 0.95), fused=True)


def _step(model: LlamaForCausalLM, optimizer: torch.optim.AdamW, asked: Training, stream: Stream, step: int) -> float:
    for group in optimizer.param_groups:
        group["lr"] = asked.rate(step)
    loss = _forward(model, stream.batch(step, asked.batch, asked.seq_len), asked)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), asked.clip)
    optimizer.step()
    return float(loss.detach())


def _forward(model: LlamaForCausalLM, ids: Tensor, asked: Training) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=asked.dtype == "bfloat16"):
        loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


@torch.inference_mode()
def _loss(model: LlamaForCausalLM, ids: Tensor, asked: Training) -> float:
    """Mean over windows, in nats a token."""
    losses = [float(_forward(model, one, asked)) for one in ids.split(asked.batch)]
    return sum(losses) / len(losses)


def _resumed(
    place: Path, asked: Training, of_what: dict[str, Any], model: LlamaForCausalLM, optimizer: torch.optim.AdamW
) -> tuple[int, list[dict[str, Any]], float]:
    if not place.exists():
        return 0, [], 0.0
    kept = torch.load(place, weights_only=True)
    if kept["of"] != _same(asked, of_what):
        raise ConfigError(f"{place} is of another training (settings, corpora or version): remove it to begin anew")
    if kept["step"] > asked.cools_at and kept["tokens"] != asked.tokens:
        raise ConfigError(
            f"{place} is at step {kept['step']}, and with {asked.tokens} tokens the rate falls from step "
            f"{asked.cools_at}: give more tokens, or remove it to begin anew"
        )
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    log.info("goes on at step %d", kept["step"])
    return kept["step"], json.loads(kept["curve"]), kept["seconds"]


def _same(asked: Training, of_what: dict[str, Any]) -> str:
    """What two trainings must have in common for the one to go on where the other is: all but the budget."""
    settings = {name: value for name, value in asdict(asked).items() if name != "tokens"}
    return json.dumps({"training": settings, "read": of_what["read"], "format": FORMAT}, sort_keys=True)


def _save(
    place: Path,
    asked: Training,
    of_what: dict[str, Any],
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    step: int,
    curve: list[dict[str, Any]],
    seconds: float,
) -> None:
    kept = {"of": _same(asked, of_what), "tokens": asked.tokens, "step": step, "seconds": seconds}
    kept |= {"curve": json.dumps(curve), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    packed = io.BytesIO()
    torch.save(kept, packed)
    write_whole(place, packed.getvalue())


def _finish(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, record: dict[str, Any]) -> None:
    """The folder in bfloat16, with the record last: without it the folder is unfinished."""
    record |= {"compute": compute(model), "versions": versions()}
    tokenizer.save_pretrained(out)
    model.to(torch.bfloat16).save_pretrained(out)
    make_readable(out)
    write_whole(out / "training.json", (to_json(record) + "\n").encode())


def main(arguments: Sequence[str]) -> int:
    """Train a model; the exit status."""
    parser = argparse.ArgumentParser(description="Train a small model on documents that are known.")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--data", type=Path, required=True, help="the folder that has corpora/")
    parser.add_argument("--work", type=Path, required=True, help="where the checkpoint lies until it is done")
    parser.add_argument("--out", type=Path, help="the model's folder; models/MODEL beside this file if not said")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of Training: tokens=4000000")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(given.threads)
    try:
        asked = Training(model=given.model, **dict(one.split("=", 1) for one in given.set))
        out = given.out or HERE / "models" / given.model
        train(asked, split_corpora(given.data), given.work, out)
    except CalibruneError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
