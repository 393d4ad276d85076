"""KL divergence and top-1 agreement: by hand, against whole distributions, in any chunks, and what is refused."""

import math

import pytest
import torch
from tiny_models import tiny_lm

from calibrune.errors import ConfigError
from calibrune.evaluation.agreement import KL, TOP1, agreement, check_comparable, kl_and_top1
from calibrune.evaluation.averages import of_neighbours
from calibrune.evaluation.perplexity import TextPerplexity, WindowPerplexity
from calibrune.evaluation.texts import evaluation_texts
from calibrune.evaluation.word_perplexity import WordPerplexity
from calibrune.lm import likelihood
from calibrune.lm.loading import LanguageModel

TEXTS = ["the first text of a few", "and the second one, which is longer than it", "x", "a third"]


def pruned_lm() -> LanguageModel:
    lm = tiny_lm()
    with torch.no_grad():
        for name, weight in lm.model.named_parameters():
            if "proj" in name:
                weight.mul_(weight.abs() > weight.abs().median())
    return lm


@torch.no_grad()
def plainly(dense: LanguageModel, pruned: LanguageModel, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence and agreement at every position but the last, from whole distributions in double precision."""
    p, q = (one.model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1) for one in (dense, pruned))
    return (p.exp() * (p - q)).sum(-1), (p.argmax(-1) == q.argmax(-1)).double()


def logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_by_hand():
    dense, pruned = logits(0.5, 0.25, 0.25), logits(0.25, 0.5, 0.25)
    kl, same = kl_and_top1(dense.clone() + 3, pruned.clone())[0].tolist()  # a constant changes no distribution
    assert kl == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), abs=1e-6)
    assert same == 0
    assert kl_and_top1(dense.clone(), dense.clone())[0].tolist() == [0, 1]
    # the other way round it is another number
    there, back = kl_and_top1(logits(0.9, 0.1), logits(0.5, 0.5)), kl_and_top1(logits(0.5, 0.5), logits(0.9, 0.1))
    assert float(there[0, 0]) == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)
    assert float(back[0, 0]) == pytest.approx(0.5 * math.log(1 / 1.8) + 0.5 * math.log(5), abs=1e-6)


def test_what_cannot_come():
    # both rule the token out: it counts for nothing; only the pruned model does: there is no bound
    assert kl_and_top1(logits(0.5, 0.5, 0.0), logits(0.5, 0.5, 0.0))[0].tolist() == [0, 1]
    assert kl_and_top1(logits(0.5, 0.5), logits(1.0, 0.0))[0, 0] == math.inf
    assert kl_and_top1(logits(1.0, 0.0), logits(0.5, 0.5))[0, 0] == pytest.approx(math.log(2))
    assert kl_and_top1(logits(0.5, 0.5), torch.full((1, 2), math.nan))[0, 0].isnan()


@pytest.mark.parametrize("at_a_time", [1, 3, 1000])
def test_windows_are_compared_wherever_their_perplexity_is_measured(at_a_time, monkeypatch):
    dense, pruned = tiny_lm(), pruned_lm()
    monkeypatch.setattr(likelihood.compare_logits, "__kwdefaults__", {"logits_bytes": 8 * dense.vocab_size * at_a_time})
    protocol = WindowPerplexity(seq_len=9, stride=4)
    pieces = protocol.pieces(dense, TEXTS)
    kl, top1 = agreement(pruned, dense, TEXTS, protocol)
    found = [plainly(dense, pruned, ids) for ids in pieces.ids]
    for score, column in ((kl, 0), (top1, 1)):
        rows = [one[column][-n:] for one, n in zip(found, pieces.scored, strict=True)]
        assert score.value == pytest.approx(float(torch.cat(rows).mean()), abs=1e-6)
        typical = sum(pieces.scored) / len(rows)
        assert score.items == pytest.approx([float(row.sum()) / typical for row in rows], abs=1e-6)
        assert sum(score.items) / score.n == pytest.approx(score.value)
    assert (kl.metric, kl.higher_is_better, top1.metric, top1.higher_is_better) == (KL, False, TOP1, True)
    assert kl.value > 1e-4
    assert top1.value < 1
    assert kl.protocol["divergence"] == "KL(against || model), in nats a token"
    assert kl.protocol["text_sha256"] == protocol.score(pruned, TEXTS).protocol["text_sha256"]


def test_texts_are_compared_each_by_itself_with_tokens_weighing_the_same():
    dense, pruned = tiny_lm(), pruned_lm()
    kl, _ = agreement(pruned, dense, TEXTS, TextPerplexity(), limit=2)
    rows = [plainly(dense, pruned, ids)[0] for ids in TextPerplexity().pieces(dense, TEXTS, 2).ids]
    assert kl.value == pytest.approx(float(torch.cat(rows).mean()), abs=1e-6)
    assert (kl.n, kl.protocol["standard_error"]) == (2, "from texts taken for independent")


def test_standard_errors_are_by_blocks_of_windows():
    dense, pruned = tiny_lm(), pruned_lm()
    kl, _ = agreement(pruned, dense, TEXTS * 2, WindowPerplexity(seq_len=5))
    assert kl.n > 25
    assert kl.stderr == pytest.approx(of_neighbours([item - kl.value for item in kl.items], "windows").value)
    assert agreement(pruned, dense, TEXTS, WindowPerplexity(seq_len=9), limit=3)[0].stderr is None


def test_a_model_agrees_with_itself_and_is_left_as_it_was():
    lm = tiny_lm()
    lm.model.train()
    kl, top1 = agreement(lm, lm, TEXTS, WindowPerplexity(seq_len=8))
    assert (kl.value, top1.value) == (pytest.approx(0, abs=1e-6), 1)
    assert lm.model.training
    assert "forward" not in vars(lm.model.model)


def test_models_that_mean_other_tokens_are_refused():
    lm = tiny_lm()
    with pytest.raises(ConfigError, match=r"have different tokenizers .*compare a model with the one that it was"):
        check_comparable(lm, tiny_lm(adds_bos=True))
    larger = tiny_lm()
    larger.model.resize_token_embeddings(lm.vocab_size + 8)
    with pytest.raises(ConfigError, match=r"gives 96 logits and .* 104, so they cannot be compared"):
        agreement(lm, larger, TEXTS)


def test_what_has_neither_windows_nor_texts_is_refused():
    with pytest.raises(ConfigError, match="word_perplexity has neither; use protocol=windows or protocol=texts"):
        agreement(tiny_lm(), tiny_lm(), TEXTS, WordPerplexity())


def test_texts_know_how_to_compare_what_they_measure():
    dense, pruned = tiny_lm(), pruned_lm()
    texts = evaluation_texts("python-docs:seq_len=32:limit=3")
    kl, top1 = texts.agreement(pruned, dense)
    (perplexity,) = texts.scores(pruned)
    assert (kl.n, top1.n, perplexity.n) == (3, 3, 3)
    assert kl.protocol["dataset"] == perplexity.protocol["dataset"] == "python-docs:seq_len=32:limit=3"
