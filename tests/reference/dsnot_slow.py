"""DSnoT written from its description: one row at a time, one swap at a time, plain lists."""

import torch


def refine_row(
    mask: list[bool], mean: list[float], gain: list[float], score: list[float], cycles: int, threshold: float
) -> tuple[list[bool], list[float]]:
    """The row's mask after the last swap, and its error before and after each swap.

    Candidates are lined up once, at the start: what is regrown is not pruned again, nor the other way round.
    """
    mask = list(mask)
    columns = range(len(mask))
    grow_up = sorted((j for j in columns if not mask[j] and gain[j] > 0), key=lambda j: -gain[j])
    grow_down = sorted((j for j in columns if not mask[j] and gain[j] < 0), key=lambda j: gain[j])
    drop_up = sorted((j for j in columns if mask[j] and mean[j] > 0), key=lambda j: score[j])
    drop_down = sorted((j for j in columns if mask[j] and mean[j] < 0), key=lambda j: score[j])
    error = sum(mean[j] for j in columns if not mask[j])
    errors = [error]
    for _ in range(cycles):
        if abs(error) <= threshold:
            break
        grow, drop = (grow_up, drop_down) if error > 0 else (grow_down, drop_up)
        if not grow or not drop:
            break
        g, r = grow.pop(0), drop.pop(0)
        mask[g], mask[r] = True, False
        error += mean[r] - mean[g]
        errors.append(error)
    return mask, errors


def refine_row_in_groups(
    mask: list[bool], mean: list[float], gain: list[float], score: list[float], cycles: int, threshold: float, m: int
) -> tuple[list[bool], list[float]]:
    """The same for N:M: the swap stays in one group of M, and the error keeps the sign that it began with."""
    mask = list(mask)
    columns = range(len(mask))
    error = sum(mean[j] for j in columns if not mask[j])
    sign = (error > 0) - (error < 0)
    candidates = sorted((j for j in columns if not mask[j] and sign * gain[j] > 0), key=lambda j: -sign * gain[j])
    errors = [error]
    for g in candidates[:cycles]:
        if abs(error) <= threshold:
            break
        group = range(g // m * m, g // m * m + m)
        may_go = [j for j in group if mask[j] and sign * mean[j] < 0]
        if not may_go:
            continue
        r = min(may_go, key=lambda j: score[j])
        after = error + mean[r] - mean[g]
        if (after > 0) - (after < 0) != sign:
            continue
        mask[g], mask[r] = True, False
        error = after
        errors.append(error)
    return mask, errors


def inputs_of(W: torch.Tensor, sequences: list[torch.Tensor], power: float = 1.0):
    """Mean contribution, gain and Wanda's score of every weight, from the sequences themselves."""
    total = sum(x.double().sum(dim=0) for x in sequences) / len(sequences)
    variance = sum(x.double().var(dim=0, correction=0) for x in sequences) / len(sequences)
    rms = (sum(x.double().square().sum(dim=0) for x in sequences) / sum(map(len, sequences))).sqrt()
    mean = W.double() * total
    gain = torch.where(variance > 0, mean / variance.clamp(min=1e-300) ** power, torch.zeros_like(mean))
    return mean, gain, W.double().abs() * rms
