"""How far corpora are apart, and whether they are further at higher sparsity: part of docs/evidence.md."""

from collections.abc import Iterator, Sequence
from math import exp, log
from statistics import mean

from evidence_real import CORPORA, REAL, TEXTS, WAYS, called
from evidence_rows import FEWEST, Cells, Judged, judge, shown, study, table

from calibrune.uncertainty import t_interval
from examples.known_pretraining.claims import AFTER, OWN_OF_ALL, Claim, How, On, of
from examples.known_pretraining.claims import CORPORA as DOMAINS

KNOWN = "known-pretraining"
STEPS = {
    f"Which corpus it is matters more at higher sparsity {AFTER}": (("60%", "50%"), ("70%", "60%")),
    f"Which corpus it is matters more under N:M than at 50% {AFTER}": (("2:4", "50%"), ("4:8", "50%")),
}
"""Claims, and the ways to prune that each compares."""
TRAINED_HERE = [f"`{model}`" for model in OWN_OF_ALL]
Spread = dict[int, float]


def spreads(cells: Cells, names: Sequence[str], ways: Sequence[How], on: On) -> tuple[list[str], list[Spread]]:
    """How far the worst calibration is from the best, by way to prune and seed, and which calibrations were compared.

    They and the seeds are those that all ways have. Which is the worst and which the best is decided for each half of
    the seeds by the other half: the largest of several means that scatter is further from the smallest than any two
    sources need be. Without three calibrations of six seeds nothing is said.
    """
    measured = [{name: cells.by_seed(of(name, how, on)) for name in names} for how in ways]
    kept = [name for name in names if all(len(by_name[name]) >= 2 * FEWEST for by_name in measured)]
    if len(kept) < FEWEST:
        return [], []
    seeds = sorted(set.intersection(*(set(by_name[name]) for by_name in measured for name in kept)))
    if len(seeds) < 2 * FEWEST:
        return [], []
    halves = (seeds[::2], seeds[1::2])
    found = []
    for by_name in measured:
        spread = {}
        for half, other in (halves, halves[::-1]):
            means = {name: mean(by_name[name][seed] for seed in other) for name in kept}
            worst, best = (by_name[pick(means, key=means.__getitem__)] for pick in (max, min))
            spread |= {seed: worst[seed] - best[seed] for seed in half}
        found.append(dict(sorted(spread.items())))
    return kept, found


def spreads_table() -> str:
    """What could be gained by the right choice of a corpus."""
    rows = []
    for title, text, cells, names, ways, on in _asked():
        for how in ways:
            kept, found = spreads(cells, names, [how], on)
            for values in map(list, map(dict.values, found)):
                apart = [str(len(kept)), shown(t_interval(values)), str(len(values)), _cost(cells, kept, how, on)]
                rows.append([title, called(how), text or "its own domains", *apart])
    columns = ["model", "pruned by", "measured on", "corpora", "highest less lowest", "seeds", "pruning costs"]
    return table(columns, rows)


def _cost(cells: Cells, names: Sequence[str], how: How, on: On) -> str:
    """How much perplexity, on average over calibrations."""
    pruned = mean(mean(cells.sum(of(name, how, on))) for name in names)
    dense = mean(log(cells.dense[model][domain]) for model, domains in on.items() for domain in domains)
    return f"{100 * (exp(pruned - dense) - 1):+.0f}%"


def growth_claims() -> Judged:
    """Whether corpora are further apart where more is pruned, or in blocks; all models together."""
    sums: dict[str, dict[str, list[float]]] = {says: {} for says in STEPS}
    for title, text, cells, names, ways, on in _asked():
        by_pattern = {how.pattern: how for how in ways if how.pruner == "wanda"}
        for says, steps in STEPS.items():
            for high, low in steps:
                if high in by_pattern and low in by_pattern:
                    kept, found = spreads(cells, names, [by_pattern[high], by_pattern[low]], on)
                    if found:
                        more = [found[0][seed] - found[1][seed] for seed in found[0]]
                        name = ", ".join(filter(None, (title, f"{high} less {low}", text, f"{len(kept)} corpora")))
                        sums[says][name] = more
    margin = study(KNOWN)[0].margin
    judged = [(Claim(says, {}, "higher", says), judge(found, "higher", margin)) for says, found in sums.items()]
    return [(claim, found) for claim, found in judged if found]


def _asked() -> Iterator[tuple[str, str, Cells, Sequence[str], Sequence[How], On]]:
    """Model, text, cells, corpora and ways, of each kind of model."""
    known = [How("wanda", pattern) for pattern in ("50%", "60%", "70%", "2:4")]
    for title, (model, domains) in zip(TRAINED_HERE, OWN_OF_ALL.items(), strict=True):
        yield title, "", study(KNOWN)[1], DOMAINS, known, {model: domains}
    ways = [how for how in WAYS if how.propagation == "dense"]
    for name, asked in REAL.items():
        for text in asked.texts if asked.texts == TEXTS else ():
            yield asked.head, text, study(name)[1], CORPORA, ways, {asked.model: (text,)}
