"""What the studies show, claim by claim, from the rows in results/: the tables of docs/evidence.md.

`python docs/evidence.py --collect studies/known-pretraining` adds a study's finished rows to `results/`, and
`--restore studies/known-pretraining` puts them back, so that `calibrune study run` goes on where they end;
`--compare studies/known-pretraining` says how far rows that were made again are from the committed ones.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from statistics import mean, stdev

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])  # this folder, and the one of examples/

from evidence_fresh import fresh_claims  # noqa: E402
from evidence_pages import pages_list  # noqa: E402, F401  (printed by generate.py)
from evidence_real import OVER_ALL, REAL, asked_of, costs_table, published, real_claims, real_table  # noqa: E402, F401  (also for tests)
from evidence_rows import (  # noqa: E402
    FEWEST,
    REPOSITORY,
    ROUNDING,
    Answer,
    Cells,
    Judged,
    answers,
    collect,
    compared,
    judged,
    least,
    of_models,
    overall,
    restore,
    shown,
    study,
    table,
    told,
)
from evidence_spreads import TRAINED_HERE, growth_claims, spreads_table  # noqa: E402

from calibrune.proxies import PROXIES  # noqa: E402
from calibrune.study.spec import Recipe  # noqa: E402
from calibrune.uncertainty import rank_correlation, t_interval  # noqa: E402
from examples.known_pretraining.claims import OWN_OF_ALL, SOURCES, Claim, How, claims, less, of  # noqa: E402
from examples.known_pretraining.splits import DOMAINS, MODELS  # noqa: E402

KNOWN, ABLATIONS = "known-pretraining", "known-ablations"
TRAINED = REPOSITORY / "examples/known_pretraining/models"
AT_60, AT_70, AT_2_4 = (How("wanda", pattern) for pattern in ("60%", "70%", "2:4"))
ABLATED = [how._replace(propagation="dense") for how in (AT_70, AT_2_4)]

# -- models whose pre-training is known --------------------------------------------------------------------------------


def models_table() -> str:
    """What the models know: their loss on what they read and on what was held back, and perplexity by domain."""
    _, cells = study(KNOWN)
    costs = (AT_60, AT_70, AT_2_4, How("magnitude", "60%", None))
    columns = ["model", "loss: read", "held back", "epochs", *(f"perplexity: {name}" for name in DOMAINS)]
    columns += [f"{how.pruner}, {how.pattern}: costs" for how in costs]
    rows = []
    for name in MODELS:
        if not (TRAINED / name / "training.json").exists():
            continue
        record = json.loads((TRAINED / name / "training.json").read_text(encoding="utf-8"))
        last, dense = record["curve"][-1], cells.dense.get(name, {})
        losses = [f"{last['train_loss']:.2f}", f"{last['held_loss']:.2f}", f"{record['epochs']:.1f}"]
        said = [f"{dense[one]:.1f}" if one in dense else "" for one in DOMAINS]
        marked = [f"**{x}**" if one in MODELS[name] else x for x, one in zip(said, DOMAINS, strict=True)]
        rows.append([name, *losses, *marked, *(_cost(cells, name, how) for how in costs)])
    return table(columns, rows)


def _cost(cells: Cells, model: str, how: How) -> str:
    """How much more perplexity the pruned model has than the dense one, on its own domains."""
    data = None if how.propagation is None else model
    pruned = cells.sum(of(data, how, {model: MODELS[model]}))
    dense = [log(cells.dense[model][domain]) for domain in MODELS[model] if domain in cells.dense.get(model, {})]
    return f"{100 * (exp(mean(pruned) - mean(dense)) - 1):+.0f}%" if pruned and dense else ""


def claims_table(claims: Judged) -> str:
    """Every claim with its verdict, its largest difference, and how many seeds its rows have."""
    rows = []
    for claim, found in claims:
        typical = max(found, key=lambda one: abs(one.estimate.value))
        rows.append([claim.says, overall(claim, found), f"{typical.name}: {told(typical)}", _seeds(found)])
    return table(["claim", "verdict", "where it is largest", "seeds"], rows)


def _seeds(found: Sequence[Answer]) -> str:
    counts = sorted({one.estimate.n for one in found})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def sources_table() -> str:
    """Every source against the model's own held-back text, measured on the model's own domains."""
    _, cells = study(KNOWN)
    ways = [AT_60, AT_70, AT_2_4]
    rows = []
    for name in SOURCES:
        row = [f"`{name}`".replace("{own}", "own")]
        for how in ways:
            for model in MODELS:
                row.append(_cell(cells.sum(less(name, "{own}", how, {model: OWN_OF_ALL[model]}))))
        if any(row[1:]):
            rows.append(row)
    return table(["calibration", *(f"{how.pattern}: {model}" for how in ways for model in MODELS)], rows)


def _cell(values: Sequence[float]) -> str:
    """Of seeds enough; what is the same in all is rounding."""
    if len(values) < FEWEST:
        return ""
    return shown(t_interval(values)) if stdev(values) > ROUNDING else "0"


def details(claims: Judged) -> str:
    """Every claim's sums."""
    parts = []
    for claim, found in claims:
        rows = [[one.name, told(one), str(one.estimate.n), least(one), one.verdict] for one in found]
        parts.append(f"**{claim.says}**\n\n" + table(["", "difference", "seeds", "could be shown", "verdict"], rows))
    return "\n\n".join(parts) or table([], [])


def known_claims() -> Judged:
    """Those of which something is known."""
    return judged(KNOWN, claims())


# -- what in self-generated data matters -------------------------------------------------------------------------------


def ablations_table() -> str:
    """Every change of the recipe against the recipe, over all models and their own domains."""
    plan, cells = study(ABLATIONS)
    columns, ways = [], _ablated(cells)
    for how in ways:
        others = [name for name in cells.calibrations if name != plan.baseline]
        sums = {name: less(name, plan.baseline, how, OWN_OF_ALL) for name in others}
        columns.append({one.name: one for one in answers(Claim(how.pattern, sums), cells, plan.margin)})
    rows = []
    for name in cells.calibrations:
        found = [column.get(name) for column in columns]
        if any(found):
            rows.append([f"`{name}`", *(cell for one in found for cell in _compared(one))])
    return table(["calibration", *(x for how in ways for x in (how.pattern, "seeds", "against `selfgen`"))], rows)


def _ablated(cells: Cells) -> list[How]:
    """The ways to prune of which something is known."""
    return [how for how in ABLATED if len(cells.sum(less("random", "selfgen", how, OWN_OF_ALL))) >= FEWEST]


def proxies_table() -> str:
    """What is known of a set before pruning against what came of it: over sets of one size, and to choose one by."""
    plan, cells = study(ABLATIONS)
    sizes = {one.calibration.name: _size(one.calibration) for one in plan.runs if one.calibration}
    alike = [name for name in cells.calibrations if sizes[name] == sizes["selfgen"]]
    rows, ways = [], _ablated(cells)
    for name, kind in PROXIES.items():
        row = [f"`{name}`", kind.better]
        for how in ways:
            ranks = [_rank(cells, alike, name, model, how) for model in MODELS]
            row += ["; ".join(rank for rank in ranks if rank)]
        if any(row[2:]):
            better, against = kind.better, ("selfgen", "plain")
            rows.append([*row, *(_choosing(cells, alike, name, better, how, one) for how in ways for one in against)])
    ranks = [f"{how.pattern}: rank correlation ({', '.join(MODELS)})" for how in ways]
    chosen = [f"{how.pattern}: chosen by it, beside {one}" for how in ways for one in ("`selfgen`", "`plain`")]
    return table(["proxy", "said to be better", *ranks, *chosen], rows)


def _size(recipe: Recipe) -> tuple[int | None, int | None]:
    return recipe.samples, recipe.seq_len


def _rank(cells: Cells, names: Sequence[str], proxy: str, model: str, how: How) -> str:
    """Over sets, of the means over seeds."""
    x, y = [], []
    for calibration in names:
        of_set = cells.proxies.get((model, calibration), {}).get(proxy, {})
        outcome = cells.sum(of(calibration, how, {model: OWN_OF_ALL[model]}))
        if of_set and len(outcome) >= FEWEST:
            x.append(mean(of_set.values()))
            y.append(mean(outcome))
    if len(x) < 4 or len(set(x)) < 2:
        return ""
    found = rank_correlation(x, y)
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _choosing(cells: Cells, names: Sequence[str], proxy: str, better: str, how: How, always: str) -> str:
    """What it costs to take, draw by draw, the set that the proxy likes best, in place of one and the same always.

    Of a proxy that nobody has called good or bad, the set with the most.
    """
    sign = 1 if better == "lower" else -1
    by_seed: dict[int, list[float]] = {}
    for model, domains in OWN_OF_ALL.items():
        outcomes, liked = {}, {}
        for name in names:
            outcomes[name] = cells.by_seed(less(name, always, how, {model: domains}))
            liked[name] = cells.proxies.get((model, name), {}).get(proxy, {})
        may_be = {
            seed: [name for name in outcomes if seed in outcomes[name] and seed in liked[name]]
            for seed in outcomes[always]
        }
        for seed, may in may_be.items():
            # where all were drawn: among a few that were drawn once more the choice is another one
            if len(may) == max(map(len, may_be.values())) > 1:
                chosen = min(may, key=lambda name: (sign * liked[name][seed], name))
                by_seed.setdefault(seed, []).append(outcomes[chosen][seed])
    values = [mean(found) for found in by_seed.values() if len(found) == len(OWN_OF_ALL)]
    return _cell(values)


def best_text() -> str:
    """The recipe that is best by the first half of the seeds, judged by the other half, which did not choose it."""
    plan, cells = study(ABLATIONS)
    at_70 = ABLATED[0]
    found = {name: cells.by_seed(less(name, "selfgen", at_70, OWN_OF_ALL)) for name in cells.calibrations}
    seeds = sorted({spec.seed for spec in plan.runs if spec.seed is not None})
    early, fresh = seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]
    whole = {name: values for name, values in found.items() if set(early) <= set(values)}
    written = {name: values for name, values in whole.items() if _written(ABLATIONS, name)}
    lines = []
    for of_what, candidates in (("sets that the model wrote, alone or in part", written), ("sets in all", whole)):
        if len(candidates) < FEWEST:
            continue
        chosen = min(candidates, key=lambda name: (mean(candidates[name][seed] for seed in early), name))
        values = [candidates[chosen][seed] for seed in fresh if seed in candidates[chosen]]
        said = f"Of {len(candidates)} {of_what}, `{chosen}` is best by the seeds {early[0]} to {early[-1]}"
        if chosen != "selfgen" and len(values) >= FEWEST:
            said += f"; by {len(values)} others it gives {_cell(values)} perplexity beside the study's recipe"
        lines.append(f"- {said}.")
    return "\n".join(lines) or table([], [])


def _written(name: str, calibration: str) -> bool:
    """Whether the model wrote the set, or some of it."""
    plan, _ = study(name)
    found = (one.calibration for one in plan.runs if one.calibration and one.calibration.name == calibration)
    return "selfgen" in next(found).spec


def _compared(one: Answer | None) -> list[str]:
    if one is None:
        return ["", "", ""]
    better = "better" if one.estimate.value < 0 else "worse"
    alike = "no difference shown" if one.verdict == "cannot be told" else "the same"
    return [told(one), str(one.estimate.n), better if one.differs else alike]


# -- both --------------------------------------------------------------------------------------------------------------


def headline_table() -> str:
    """For the README: the study's claims that were asked here, with the verdict of each kind of model."""
    rows = []
    beside = [*real_claims(), *growth_claims(), *fresh_claims()]
    asked = [("3 models trained here", [*known_claims(), *of_models(beside, TRAINED_HERE)])]
    asked += [(title, of_models(beside, [title])) for title in published()]
    for model, found_of in asked:
        for claim, found in found_of:
            if claim.headline:
                ends = sorted(found, key=lambda one: one.estimate.value)
                said = " to ".join(f"{told(one)} ({_short(one, model)})" for one in (ends[:1] + ends[-1:])[: len(ends)])
                rows.append([claim.headline, model, overall(claim, found), said, _seeds(found)])
    return table(["claim", "on", "verdict", "difference, with 95% interval: lowest to highest", "seeds"], rows)


def _short(one: Answer, model: str) -> str:
    """What a sum is called beside the model's name; Wanda goes without saying."""
    return one.name.replace(f"{model}, ", "").removeprefix("wanda, ")


def main(arguments: Sequence[str]) -> int:
    """Move rows between a study and `results/`, or print the tables."""
    parser = argparse.ArgumentParser(description="The committed rows of studies, and what they say.")
    parser.add_argument("--collect", type=Path, metavar="STUDY", help="add this study's finished rows to results/")
    parser.add_argument("--restore", type=Path, metavar="STUDY", help="put the committed rows into this study's folder")
    parser.add_argument("--compare", type=Path, metavar="STUDY", help="how far rows made again are from the committed")
    given = parser.parse_args(arguments)
    if given.compare:
        print(compared(given.compare))
    elif given.collect:
        print(collect(given.collect))
    elif given.restore:
        print(f"{restore(given.restore)} rows restored to {given.restore}")
    else:
        known, real = known_claims(), [*real_claims(), *growth_claims()]
        print("\n\n".join([models_table(), claims_table(known), sources_table(), details(known)]))
        print("\n\n".join([ablations_table(), proxies_table(), best_text(), claims_table(real), real_table()]))
        print("\n" + spreads_table() + "\n\n" + headline_table())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
