"""What must hold at both ends of the supported range; `make oldest` runs it with the oldest versions."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURES, random_ids, tiny_lm

from calibrune.checkpoint import save_pruned
from calibrune.lm.generation import Sampling, generate
from calibrune.lm.likelihood import token_log_likelihoods
from calibrune.lm.loading import load_model, weights_fingerprint
from calibrune.lm.streaming import load_streamed
from calibrune.patterns import parse_pattern
from calibrune.prune import prune_model
from calibrune.pruners import Wanda
from calibrune.sparsity import check_sparsity
from calibrune.verbs import request_for

REPOSITORY = Path(__file__).resolve().parents[2]

STORED_APART = ("mixtral", "qwen2-moe", "qwen3-moe")
"""transformers 5 stacks their experts, and stores them one by one."""


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_model_is_pruned_saved_loaded_scored_and_writes(kind, tmp_path):
    lm = tiny_lm(kind)
    report = prune_model(lm.model, random_ids(), pattern="2:4")
    assert report.sparsity == 0.5
    save_pruned(lm, report, request_for(lm, "0" * 12, "wanda", Wanda(), parse_pattern("2:4"), None), tmp_path / "out")
    again = load_model(tmp_path / "out")
    assert weights_fingerprint(again.model) == weights_fingerprint(lm.model)
    assert [one.deviates for one in check_sparsity(tmp_path / "out") if one.deviates] == []
    scores = token_log_likelihoods(again.model, random_ids())
    assert scores.isfinite().all()
    if kind not in STORED_APART:
        assert torch.equal(token_log_likelihoods(load_streamed(tmp_path / "out").model, random_ids()), scores)
    (text,) = generate(again.model, [[0, 5, 6]], [1], max_new_tokens=8, sampling=Sampling(), end_ids=[1])
    assert 1 <= len(text.token_ids) - 3 <= 8


def test_the_oldest_versions_are_the_lower_bounds():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in project["dependencies"])
    lines = [line for line in (REPOSITORY / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    oldest = dict(line.split("==") for line in lines)
    for name, bound in bounds.items():
        assert oldest[name.replace("huggingface-hub", "huggingface_hub")].startswith(bound), name
