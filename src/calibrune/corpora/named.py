"""The sources that the field calibrates on, by name: where each lies on the hub, its licence, what to know of it."""

from dataclasses import dataclass, fields
from typing import Any

from calibrune.corpora.hub import HubCorpus

PREFIX = "hub/"
"""`hub/OWNER/NAME`: any other dataset of the hub."""

_RIGHTS = "and Common Crawl's terms; the pages are their authors'"


@dataclass(frozen=True)
class NamedSource:
    """A corpus of the hub and a line on what to know of it."""

    corpus: HubCorpus
    note: str


def _named(name: str, dataset: str, licence: str, note: str, instead: str, **settings: Any) -> NamedSource:
    advice = f"{instead}, another dataset (hub/OWNER/NAME), or a local file of documents"
    corpus = HubCorpus(dataset=dataset, name=name, licence=licence, instead=advice, **settings)
    return NamedSource(corpus, note)


NAMED: dict[str, NamedSource] = {
    source.corpus.name: source
    for source in (
        _named(
            "c4",
            "allenai/c4",
            f"ODC-BY 1.0 {_RIGHTS}",
            "English web pages, cleaned; what most papers calibrate on",
            "fineweb-edu, dclm",
            config="en",
        ),
        _named(
            "wikipedia",
            "wikimedia/wikipedia",
            "CC BY-SA 3.0 and GFDL",
            "English Wikipedia of 2023-11-01, as the study used it; its first rows are old and long articles",
            "wikitext2, c4",
            config="20231101.en",
        ),
        _named(
            "slimpajama",
            "cerebras/SlimPajama-627B",
            "those of its parts: Common Crawl, C4, GitHub, books, arXiv, Wikipedia, StackExchange",
            "RedPajama, deduplicated; reported gone from the hub in February 2026. Its first shard only",
            "hub/DKYoon/SlimPajama-6B (a sample that others made), c4, dclm",
            files="train/chunk1/example_train_0.jsonl.zst",
        ),
        _named(
            "dclm",
            "mlfoundations/dclm-baseline-1.0",
            f"CC BY 4.0 {_RIGHTS}",
            "what DCLM-7B was trained on; one of its 100 folders, for all 27,938 files take minutes to list",
            "fineweb-edu, c4",
            files="global-shard_01_of_10/local-shard_0_of_10/*.jsonl.zst",
        ),
        _named(
            "alpaca",
            "tatsu-lab/alpaca",
            "CC BY-NC 4.0: not for commercial use",
            "instructions with answers in Stanford's prompt; short texts, so windows=packed or one_per_document",
            "hub/vicgalle/alpaca-gpt4:template=alpaca, c4",
            template="alpaca",
        ),
        _named(
            "wikitext2",
            "Salesforce/wikitext",
            "CC BY-SA 3.0 and GFDL",
            "600 articles of Wikipedia, put together from their lines; do not measure WikiText-2 perplexity after it",
            "wikipedia, c4",
            config="wikitext-2-raw-v1",
            article_begins=r"^ = [^=].* = \n$",
            scan=40_000,
        ),
        _named(
            "fineweb-edu",
            "HuggingFaceFW/fineweb-edu",
            f"ODC-BY 1.0 {_RIGHTS}",
            "web pages that a classifier found educational; the sample of 10 billion tokens",
            "c4, dclm",
            config="sample-10BT",
        ),
    )
}

OPTIONS = tuple(f.name for f in fields(HubCorpus) if f.name not in ("dataset", "name", "licence", "instead"))
"""What can be said of a hub source, beside its name."""


def hub_settings(source: str) -> dict[str, Any] | None:
    """The settings of the hub source of this name, or of `hub/OWNER/NAME`; None: it is no such name."""
    if source in NAMED:
        corpus = NAMED[source].corpus
        return {f.name: getattr(corpus, f.name) for f in fields(corpus)}
    return {"dataset": source.removeprefix(PREFIX)} if source.startswith(PREFIX) else None
