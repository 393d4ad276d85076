"""Calibration sets side by side: a table for the terminal, and a page with pictures."""

import textwrap
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from calibrune.proxies.compare import CRITERION, proxies_with
from calibrune.report.page import Grid, Heading, Page, Paragraph, Picture, Section
from calibrune.report.plots import bar_chart, histograms
from calibrune.report.tables import Cell, Table
from calibrune.report.terminal import columns

BARS = {
    "min_k_plus_plus": "Min-K%++",
    "perplexity": "median perplexity",
    "token_divergence": "token divergence from the model's own samples (bits)",
    "activation_distance": "distance of activations from the model's own samples",
    "repetition": "share of repeated runs of tokens",
}
"""Proxies that have a picture, and what their axis says."""

HISTOGRAMS = {"perplexity": "perplexity of a sample", "min_k_plus_plus": "Min-K%++ of a sample"}


def proxies_table(sets: Sequence[Mapping[str, Any]], by: str = CRITERION) -> Table:
    """A row for every proxy, also for one of anybody's that sets are ranked by, and a column for every set."""
    columns = ["proxy", "better", *(one["name"] for one in sets)]
    return Table(columns, [[name, kind.better, *_values(sets, name)] for name, kind in proxies_with(by).items()])


def comparison_text(found: Mapping[str, Any]) -> str:
    """The table; and, of several sets, the order, its reason and what speaks against it."""
    size, sets = found["size"], found["sets"]
    head = f"{size['samples']} sequences of {size['seq_len']} tokens of each set, under {found['model']['name']}"
    lines = [head]
    if ranking := found.get("ranking"):
        sets = _in_order(found)
        lines += _filled(f"From left to right as ranked by {ranking['by']}.")
    by = ranking["by"] if ranking else CRITERION
    for some in _that_fit(sets, by):
        lines += ["", proxies_table(some, by).text()]
    if ranking:
        lines += ["", *_filled(f"Ranking: {' > '.join(ranking['order'])}"), "", *_filled(ranking["reason"])]
        lines += [line for caution in ranking["cautions"] for line in _filled(caution, "- ")]
    return "\n".join(lines)


def comparison_page(found: Mapping[str, Any]) -> Page:
    """The page of a comparison: the order and its reason, the table, bars, histograms, and what each proxy is."""
    ranking, sets, size = found["ranking"], _in_order(found), found["size"]
    own = found["own_samples"]
    asked = [[one["name"], one["fingerprint"], one["spec"]] for one in sets]
    sections: list[Section] = [
        Heading("Which set to try first"),
        Paragraph(ranking["reason"]),
        *(Paragraph(caution) for caution in ranking["cautions"]),
        Heading("Every proxy"),
        Grid(
            proxies_table(sets, ranking["by"]),
            "From left to right in the order of the ranking. A dash: the set does not say what the proxy needs, or the "
            "model's own samples give it nothing to compare with (no outlier channel).",
        ),
        Heading("Side by side"),
        *(_bars(sets, name, title) for name, title in BARS.items()),
        Heading("How the samples are spread"),
        *_histograms(sets),
        Heading("What the proxies are"),
        Grid(_meanings(ranking["by"])),
        Heading("The sets"),
        Grid(Table(["set", "fingerprint", "asked for"], asked)),
    ]
    return Page(
        title="Which calibration data suits this model?",
        lede="Measured before anything is pruned.",
        facts=[
            ("model", found["model"]["name"]),
            ("sets", str(len(sets))),
            ("samples of each", f"{size['samples']} of {size['seq_len']} tokens"),
            ("ranked by", ranking["by"]),
            ("seed", str(found["seed"])),
        ],
        sections=sections,
        footer=f"calibrune {found['versions']['calibrune']}; weights {found['model']['weights']}; the model's own "
        f"samples {own['fingerprint']} ({own['spec']}); every number is in compare.json.",
    )


def _in_order(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sets from the first to the last of the ranking."""
    by_name = {one["name"]: one for one in found["sets"]}
    return [by_name[name] for name in found["ranking"]["order"]]


def _that_fit(sets: Sequence[Mapping[str, Any]], by: str) -> list[list[Mapping[str, Any]]]:
    """The sets shared out over tables that are no wider than the terminal; one set is in each at the least."""
    tables: list[list[Mapping[str, Any]]] = [[]]
    for one in sets:
        lines = proxies_table([*tables[-1], one], by).text().splitlines()
        if tables[-1] and max(map(len, lines)) > columns():
            tables.append([])
        tables[-1].append(one)
    return tables


def _bars(sets: Sequence[Mapping[str, Any]], proxy: str, title: str) -> Picture:
    rows = [
        {"set": one["name"], "value": one["values"][proxy], "error": one["standard_errors"].get(proxy)} for one in sets
    ]
    # perplexity is shown by its median, which the error of the mean says nothing of
    error = None if proxy == "perplexity" else "error"
    values = [row["value"] for row in rows if row["value"] is not None and isfinite(row["value"])]
    log = proxy == "perplexity" and bool(values) and min(values) > 0
    svg = bar_chart(
        rows, "set", "value", error=error, title=title, y_title=proxies_with()[proxy].better + " is better", log=log
    )
    has_lines = error is not None and any(row["error"] for row in rows)
    caption = "Lines: one standard error over the samples to either side." if has_lines else ""
    return Picture(svg, alt=f"{title} of every set", caption=caption)


def _histograms(sets: Sequence[Mapping[str, Any]]) -> list[Picture]:
    pictures = []
    for name, title in HISTOGRAMS.items():
        spread = [(one["name"], one["samples"].get(name, ())) for one in sets]
        if any(isfinite(value) for _, samples in spread for value in samples):
            svg = histograms(spread, x_title=title, y_title="samples", log=name == "perplexity")
            pictures.append(Picture(svg, alt=f"{title}, a strip for every set"))
    return pictures


def _values(sets: Sequence[Mapping[str, Any]], proxy: str) -> list[Cell]:
    found = (one["values"][proxy] for one in sets)
    return [value if value is not None and isfinite(value) else None for value in found]


def _meanings(by: str) -> Table:
    rows = [[name, (kind.__doc__ or "").partition("\n")[0], kind.founded] for name, kind in proxies_with(by).items()]
    return Table(["proxy", "what it is", "what it rests on"], rows)


def _filled(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(text, columns(), initial_indent=bullet, subsequent_indent=" " * len(bullet))
