"""Every proxy by hand, and what all of them have in common."""

from math import exp, isfinite, isnan, log, log2

import pytest
import torch
from tiny_models import random_ids, tiny_lm

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.errors import CalibrationError
from calibrune.lm.likelihood import token_log_likelihoods, token_moments
from calibrune.proxies import PROXIES, Context, PerSample, Proxy, proxy
from calibrune.proxies.activations import ActivationDistance, OutlierCoverage
from calibrune.proxies.likelihood import MinK, MinKPlusPlus, Perplexity
from calibrune.proxies.tokens import (
    EffectiveDocuments,
    OwnVocabulary,
    Repetition,
    TokenDivergence,
    VocabularyCoverage,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def of(*rows):
    return CalibrationSet.from_ids(torch.tensor(rows))


@pytest.fixture
def context(lm):
    return Context(lm, lambda: CalibrationSet.from_ids(random_ids(seed=9)))


@pytest.fixture
def data():
    return CalibrationSet.from_ids(random_ids())


def test_the_moments_are_those_of_the_distribution_over_the_vocabulary(lm, data):
    with torch.no_grad():
        log_p = lm.model(data.input_ids).logits.double().log_softmax(-1)[:, :-1]
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    deviation = ((p * log_p**2).sum(-1) - mean**2).sqrt()
    found = token_moments(lm.model, data.input_ids).double()
    alone = token_log_likelihoods(lm.model, data.input_ids).double()
    torch.testing.assert_close(found[..., 0], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[..., 1], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[..., 2], deviation, rtol=1e-4, atol=1e-5)
    # in small chunks the same
    small = token_moments(lm.model, data.input_ids, logits_bytes=1000).double()
    torch.testing.assert_close(small, found, rtol=1e-4, atol=1e-5)


class Told(Context):
    """A context whose moments are written down."""

    def __init__(self, moments):
        self._moments = torch.tensor(moments)

    def moments(self, data):
        return self._moments


def test_min_k_is_the_mean_of_the_least_likely_tokens(data):
    log_p = [[-1.0, -4.0, -2.0, -3.0], [-5.0, -5.0, -5.0, -7.0]]
    told = Told([[[value, -1.0, 0.5] for value in row] for row in log_p])
    assert MinK(k=0.5).per_sample(data, told) == [-3.5, -6.0]
    assert MinK(k=0.5).measure(data, told) == -4.75
    assert MinK(k=0.01).per_sample(data, told) == [-4.0, -7.0]
    # (log p + 1) / 0.5
    assert MinKPlusPlus(k=0.5).per_sample(data, told) == [-5.0, -10.0]
    assert Perplexity().per_sample(data, told) == pytest.approx([exp(2.5), exp(5.5)])
    assert Perplexity().measure(data, told) == pytest.approx((exp(2.5) + exp(5.5)) / 2)


@pytest.mark.parametrize("kind", [MinK, MinKPlusPlus, Perplexity])
def test_a_token_without_a_likelihood_leaves_its_sample_without_a_number(kind, data):
    # two in three of the samples: sorting by a nan would give a number nevertheless
    rows = [[-1.0, float("nan"), -2.0, -3.0], [-1.0, -2.0, -2.0, -3.0], [float("nan"), -1.0, -1.0, -1.0]]
    told = Told([[[value, -1.0, 0.5] for value in row] for row in rows])
    assert [isnan(value) for value in kind().per_sample(data, told)] == [True, False, True]
    assert isnan(kind().measure(data, told))


def test_where_the_model_is_certain_min_k_plus_plus_stays_finite(data):
    assert isfinite(MinKPlusPlus().measure(data, Told([[[0.0, 0.0, 0.0]] * 4])))


def test_tokens_are_counted_as_on_paper(lm):
    own = of([5, 5, 6, 7])
    context = Context(lm, lambda: own)
    assert VocabularyCoverage().measure(of([5, 5, 6, 9]), context) == 3 / 96
    assert OwnVocabulary().measure(of([5, 5, 6, 9]), context) == pytest.approx(2 / 3)
    assert Repetition(run_tokens=2).per_sample(of([5, 6, 5, 6, 5], [5, 6, 7, 8, 9]), context) == [0.5, 0.0]
    assert TokenDivergence().measure(own, context) == pytest.approx(0, abs=1e-9)
    assert TokenDivergence(smoothing=0).measure(of([8, 8, 9, 9]), context) == pytest.approx(1)
    # p = (1/2, 1/2), q = (1, 0): H(3/4, 1/4) - 1/2
    half = -(0.75 * log2(0.75) + 0.25 * log2(0.25)) - 0.5
    assert TokenDivergence(smoothing=0).measure(of([5, 6]), Context(lm, lambda: of([5, 5]))) == pytest.approx(half)


def test_as_many_documents_as_if_all_gave_equally_many_tokens(context):
    def documents(*names):
        return CalibrationSet(random_ids(len(names), 8), {"source": {}, "document_ids": [list(one) for one in names]})

    assert EffectiveDocuments().measure(documents("a", "b", "c", "d"), context) == pytest.approx(4)
    assert EffectiveDocuments().measure(documents("a", "a", "a"), context) == pytest.approx(1)
    # a has 1.5 of 2 samples, b the rest
    entropy = -(0.75 * log(0.75) + 0.25 * log(0.25))
    assert EffectiveDocuments().measure(documents("a", "ab"), context) == pytest.approx(exp(entropy))
    assert isnan(EffectiveDocuments().measure(CalibrationSet.from_ids(random_ids()), context))


class Seen(Context):
    """A context whose channels are written down."""

    own = None

    def __init__(self, here, own):
        self._rms = {True: own, False: here}

    def input_rms(self, data):
        return {name: torch.tensor(values) for name, values in self._rms[data is None].items()}


def test_a_factor_that_all_channels_share_is_no_distance(data):
    own = {"a": [1.0, 2.0, 4.0], "b": [1.0, 1.0]}
    doubled = {"a": [2.0, 4.0, 8.0], "b": [3.0, 3.0]}
    assert ActivationDistance().measure(data, Seen(doubled, own)) == pytest.approx(0, abs=1e-7)
    # log ratios 0 and log 4 in b: half of log 4 about their mean; none in a; the mean of both layers
    other = {"a": [1.0, 2.0, 4.0], "b": [1.0, 4.0]}
    assert ActivationDistance().measure(data, Seen(other, own)) == pytest.approx(log(4) / 4)
    assert isfinite(ActivationDistance().measure(data, Seen({"a": [0.0, 1.0, 1.0]}, own)))


def test_outliers_are_counted_over_all_layers(data):
    own = {"a": [1.0, 1.0, 1.0, 9.0, 9.0], "b": [1.0, 1.0, 7.0]}
    here = {"a": [1.0, 1.0, 1.0, 9.0, 1.0], "b": [2.0, 2.0, 14.0]}
    assert OutlierCoverage().measure(data, Seen(here, own)) == pytest.approx(2 / 3)
    assert isnan(OutlierCoverage(times=100).measure(data, Seen(here, own)))


@pytest.mark.parametrize("name", PROXIES)
def test_every_proxy_is_a_number_of_a_set_and_says_what_it_rests_on(name, context, data):
    made = PROXIES[name]()
    assert isinstance(made, Proxy)
    assert isinstance(made.measure(data, context), float)
    assert made.better in ("higher", "lower", "unknown")
    assert made.founded
    assert made.__doc__
    if isinstance(made, PerSample):
        assert len(made.per_sample(data, context)) == data.n_samples


@pytest.mark.parametrize("name", PROXIES)
def test_padding_changes_no_proxy(name, context):
    # whole samples, and the same with padding that would change every number
    plain = random_ids(4, 12, seed=2)
    padded = torch.cat([plain, torch.full((4, 6), 7)], dim=1)
    about = {"source": {}, "document_ids": [["a"], ["b"], ["b"], ["c"]]}
    without = PROXIES[name]().measure(CalibrationSet(plain, about), context)
    mask = torch.arange(18).repeat(4, 1) < 12
    assert PROXIES[name]().measure(CalibrationSet(padded, about, mask), context) == pytest.approx(
        without, rel=1e-4, nan_ok=True
    )


def test_samples_of_different_lengths_are_each_scored_as_if_alone(context):
    ids = random_ids(2, 16, seed=3)
    both = CalibrationSet.from_ids(ids, torch.arange(16) < torch.tensor([[16], [5]]))
    for kind in (Perplexity, MinK, MinKPlusPlus):
        alone = [
            *kind().per_sample(CalibrationSet.from_ids(ids[:1]), context),
            *kind().per_sample(CalibrationSet.from_ids(ids[1:, :5]), context),
        ]
        assert kind().per_sample(both, context) == pytest.approx(alone, rel=1e-4)


def test_a_document_counts_by_its_real_tokens(context):
    mask = torch.arange(16) < torch.tensor([[12], [4]])
    data = CalibrationSet(random_ids(2, 16), {"source": {}, "document_ids": [["a"], ["b"]]}, mask)
    entropy = -(0.75 * log(0.75) + 0.25 * log(0.25))
    assert EffectiveDocuments().measure(data, context) == pytest.approx(exp(entropy))


def test_a_sample_of_a_single_token_is_refused(context):
    data = CalibrationSet.from_ids(random_ids(3, 8), torch.arange(8) < torch.tensor([[8], [1], [8]]))
    with pytest.raises(CalibrationError, match=r"1 of the 3 samples .* number 2\) have fewer than 2 real tokens"):
        Perplexity().measure(data, context)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3-moe"])
def test_a_set_is_no_way_from_itself(kind, data):
    context = Context(tiny_lm(kind), lambda: data)
    assert ActivationDistance().measure(data, context) == pytest.approx(0, abs=1e-9)
    assert TokenDivergence().measure(data, context) == pytest.approx(0, abs=1e-9)
    assert OwnVocabulary().measure(data, context) == 1


def test_the_model_is_asked_once_about_a_set(lm, data, context, monkeypatch, cache):
    before = {name: kind().measure(data, context) for name, kind in PROXIES.items()}

    def never(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(proxy, "token_moments", never)
    monkeypatch.setattr(proxy, "stream_blocks", never)
    after = {name: kind().measure(data, Context(lm, lambda: context.own)) for name, kind in PROXIES.items()}
    assert after == pytest.approx(before, nan_ok=True)
    for file in (cache / "proxies").rglob("moments-*"):
        file.write_bytes(b"half")
    with pytest.raises(AssertionError, match="measured again"):
        Perplexity().measure(data, Context(lm, lambda: context.own))
