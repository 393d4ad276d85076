"""A model runs in evaluation mode, without gradients, and quickly on processors that have no bfloat16."""

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from calibrune.lm import inference as room
from calibrune.lm.inference import inference, quick_products, runs_well

CPU = torch.device("cpu")


@pytest.fixture
def unable(monkeypatch):
    """A processor without arithmetic for bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize("shape", [(9, 20), (3, 5, 20), (2, 2, 2, 20), (4, 20)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("piece", [1, 40, 2**24])
def test_a_product_is_that_of_float32_rounded_once(unable, monkeypatch, shape, biased, piece):
    monkeypatch.setattr(room, "PIECE", piece)
    x, weight, bias = drawn(*shape), drawn(7, 20), drawn(7) if biased else None
    with quick_products(torch.bfloat16, CPU):
        found = nn.functional.linear(x, weight, bias)
    expected = nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert found.dtype == torch.bfloat16
    # the float32 sums are added in another order in pieces; rounded to eight bits, few of them tell
    torch.testing.assert_close(found.float(), expected.bfloat16().float(), rtol=2**-7, atol=1e-3)
    assert (found == expected.bfloat16()).float().mean() > 0.95


@pytest.mark.parametrize(
    "product",
    [
        lambda x: x[0] @ x[1],
        lambda x: x @ x,
        lambda x: torch.matmul(x, x),
        lambda x: torch.bmm(x, x),
        lambda x: torch.addmm(x[0, 0], x[1], x[2]),
        lambda x: torch.addmm(x[0, 0], x[1], x[2], beta=0.5, alpha=2),
        lambda x: torch.baddbmm(x, x, x, beta=2),
    ],
)
def test_every_kind_of_product(unable, product):
    x = drawn(3, 16, 16)
    with quick_products(torch.bfloat16, CPU):
        found = product(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, product(x.float()).bfloat16())


def test_numbers_of_other_kinds_are_left_alone(unable):
    x = torch.randn(8, 16, dtype=torch.float64)
    with quick_products(torch.bfloat16, CPU):
        assert torch.equal(nn.functional.linear(x, x), x @ x.T)
        assert torch.matmul(input=x, other=x.T).dtype == torch.float64
        with pytest.raises(RuntimeError, match="dtype"):
            nn.functional.linear(x, drawn(4, 16))


def test_few_rows_are_not_widened(unable, monkeypatch):
    monkeypatch.setattr(room, "_linear", lambda *_: pytest.fail("widened"))
    with quick_products(torch.bfloat16, CPU):
        nn.functional.linear(drawn(1, 20), drawn(7, 20))
        with pytest.raises(pytest.fail.Exception):
            nn.functional.linear(drawn(4, 20), drawn(7, 20))


@pytest.mark.parametrize(("dtype", "device"), [(torch.float32, CPU), (torch.bfloat16, torch.device("cuda"))])
def test_where_it_does_not_help_nothing_is_done(unable, monkeypatch, dtype, device):
    monkeypatch.setattr(room, "_WideProducts", lambda *_: pytest.fail("widened"))
    with quick_products(dtype, device):
        pass


def test_a_processor_that_has_bfloat16_is_left_to_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(room, "_WideProducts", lambda *_: pytest.fail("widened"))
    assert runs_well(torch.bfloat16, CPU)
    with quick_products(torch.bfloat16, CPU):
        pass


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "bloom", "gemma3"])
def test_a_model_says_what_it_says_in_float32_but_for_rounding(unable, kind):
    model = tiny_model(kind).bfloat16()
    ids = torch.randint(3, 60, (2, 16), generator=torch.Generator().manual_seed(1))
    with inference(model):
        found = model(input_ids=ids).logits
    with torch.no_grad():
        plain = model(input_ids=ids).logits.float()
        exact = model.float()(input_ids=ids).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().mean() < 1.2 * (plain - exact).abs().mean()


def test_the_model_is_afterwards_as_it_was():
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    seen = []

    def look_and_fail(*_):
        seen.append((any(module.training for module in model.modules()), torch.is_grad_enabled()))
        raise KeyError

    model.register_forward_hook(look_and_fail)
    with pytest.raises(KeyError), inference(model):
        model(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
