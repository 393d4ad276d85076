"""Wanda from its equations, slowly: plain loops over weights, and a full forward pass from scratch for every block.

It shares no code with the package: the layers are named by the caller, and a mask is True where a weight stays.
"""

import torch
from torch import Tensor, nn


def wanda_slow(model: nn.Module, input_ids: Tensor, layers_of_blocks: list[list[str]], keep: str) -> dict[str, Tensor]:
    """Prune a copy's worth of layers in place, block after block; return the masks [out, in] by layer.

    Args:
        layers_of_blocks: for each block the full names of its linear modules.
        keep: "50%" (of every row the lower half goes) or "2:4" (of every four inputs two stay).
    """
    masks: dict[str, Tensor] = {}
    for names in layers_of_blocks:
        # the blocks before are pruned already, this one and those behind it are not
        norms = input_norms(model, input_ids, names)
        for name in names:
            module = model.get_submodule(name)
            transposed = type(module).__name__ == "Conv1D"
            weight = module.weight.detach().T if transposed else module.weight.detach()
            mask = torch.zeros(weight.shape, dtype=torch.bool)
            for i in range(weight.shape[0]):
                scores = [abs(float(weight[i, j])) * float(norms[name][j]) for j in range(weight.shape[1])]
                for j in stays(scores, keep):
                    mask[i, j] = True
            masks[name] = mask
        for name in names:
            module = model.get_submodule(name)
            mask = masks[name].T if type(module).__name__ == "Conv1D" else masks[name]
            with torch.no_grad():
                module.weight[~mask] = 0.0
    return masks


def stays(scores: list[float], keep: str) -> list[int]:
    """The places of a row's scores that stay; of equal ones the first."""
    if keep == "2:4":
        return [
            4 * block + j for block in range(len(scores) // 4) for j in highest(scores[4 * block : 4 * block + 4], 2)
        ]
    assert keep == "50%"
    return highest(scores, len(scores) - len(scores) // 2)


def highest(scores: list[float], n: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:n]


def input_norms(model: nn.Module, input_ids: Tensor, names: list[str]) -> dict[str, Tensor]:
    """sqrt(sum over all tokens of x_j squared), for every input j of the named layers, in one full forward pass."""
    sums: dict[str, Tensor] = {}

    def hook_for(name: str):
        def hook(_module, args):
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            sums[name] = (x * x).sum(dim=0)

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(hook_for(name)) for name in names]
    with torch.no_grad():
        model(input_ids=input_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: total.sqrt() for name, total in sums.items()}
