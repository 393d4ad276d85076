"""SparseGPT written from its equations: an explicit inverse, one column at a time, no blocks of updates."""

import torch


def sparsegpt(W: torch.Tensor, H: torch.Tensor, sparsity: float | tuple[int, int], block: int, damping: float):
    """W [out, in] and H [in, in] in float64; sparsity a fraction or (n, m) with n the weights that stay."""
    W, H = W.double().clone(), H.double().clone()
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    H += damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    inverse = torch.linalg.inv(H)
    mask = torch.ones_like(W, dtype=torch.bool)
    n_in = W.shape[1]
    for start in range(0, n_in, block):
        end = min(start + block, n_in)
        # the inverse Hessian of the inputs that are left, as optimal brain surgeon has it after each elimination
        ahead = inverse.clone()
        diagonals = []
        for j in range(start, end):
            diagonals.append(ahead[j, j].clone())
            ahead = ahead - torch.outer(ahead[:, j], ahead[j, :]) / ahead[j, j]
        if not isinstance(sparsity, tuple):
            cost = W[:, start:end] ** 2 / torch.stack(diagonals)
            order = cost.flatten().argsort(stable=True)[: int(sparsity * cost.numel())]
            gone = torch.zeros(cost.numel(), dtype=torch.bool)
            gone[order] = True
            mask[:, start:end] = ~gone.reshape(cost.shape)
        for j in range(start, end):
            if isinstance(sparsity, tuple) and j % sparsity[1] == 0:
                n, m = sparsity
                cost = W[:, j : j + m] ** 2 / torch.stack(diagonals[j - start : j - start + m])
                kept = cost.argsort(dim=1, descending=True)[:, :n]
                mask[:, j : j + m] = torch.zeros_like(cost, dtype=torch.bool).scatter_(1, kept, True)
            error = torch.where(mask[:, j], 0.0, W[:, j]) / inverse[j, j]
            W -= torch.outer(error, inverse[j, :])
            W[:, j] = torch.where(mask[:, j], W[:, j], 0.0)
            inverse = inverse - torch.outer(inverse[:, j], inverse[j, :]) / inverse[j, j]
    return W, mask
