"""Whether the one set that did better than the study's recipe on both texts does so again: part of docs/evidence.md.

It was chosen by the first draws of `smollm2.yaml`. Here are the draws that did not choose it: on the same texts, by
other measures, and on texts of other kinds (`smollm2-fresh.yaml`).
"""

from collections.abc import Sequence

from evidence_real import REAL, SMOLLM2
from evidence_rows import DIVERGENCE, Cells, Judged, judge, study

from examples.known_pretraining.claims import Claim, How, less

CHATS = "chat-half-c4"
CHOSE = (0, 1, 2)
"""The seeds that chose it."""
FRESH = {
    "dolly": "instructions of people",
    "pile_openwebtext2": "web pages",
    "tinystories": "children's stories",
    "gsm8k_train": "arithmetic",
}
"""Texts that had no part in it, by their files."""
AGAINST = {"selfgen": "the study's recipe", "c4": "C4", "instructions-half-c4": "half real instructions, half C4"}
HALF_CHATS = "Half chats that the model writes, half C4, is better than"
FRESHLY = "by draws that did not choose it"
RECIPE = "The study's recipe is better than C4, on texts of other kinds (asked when the rows had been seen)"
ALL_FOUR = "four texts of other kinds, KL"


def fresh_claims() -> Judged:
    """Those of which something is known; the sums that chose it, by fresh draws, are beside those that did not."""
    plan = study("smollm2-fresh")[0]
    asked = []
    for other, called in AGAINST.items():
        sums: dict[str, list[float]] = {}
        for name in ("smollm2", "smollm2-tasks"):
            sums |= {text: _differences(study(name)[1], CHATS, other, [text]) for text in REAL[name].texts}
        asked.append((f"{HALF_CHATS} {called}, {FRESHLY}", sums | _on_fresh_texts(CHATS, other)))
    asked.append((RECIPE, _on_fresh_texts("selfgen", "c4")))
    found = []
    for says, sums in asked:
        named = {f"{SMOLLM2.title}, 60%, {text}": values for text, values in sums.items()}
        found.append((Claim(says, {}, headline=says), judge(named, "lower", plan.margin)))
    return [(claim, answers) for claim, answers in found if answers]


def _on_fresh_texts(one: str, other: str) -> dict[str, list[float]]:
    """On each, and on average."""
    _, cells = study("smollm2-fresh")
    by_text = {f"{file}, {DIVERGENCE}": f"{called}, {DIVERGENCE}" for file, called in FRESH.items()}
    sums = {called: _differences(cells, one, other, [text]) for text, called in by_text.items()}
    return sums | {ALL_FOUR: _differences(cells, one, other, list(by_text))}


def _differences(cells: Cells, one: str, other: str, texts: Sequence[str]) -> list[float]:
    terms = less(one, other, How("wanda", "60%", "dense"), {SMOLLM2.model: texts})
    return [value for seed, value in cells.by_seed(terms).items() if seed not in CHOSE]
