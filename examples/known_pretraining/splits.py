"""Which document is for what: to train a model, to calibrate, or to measure; made again the same from the same data.

python -m examples.known_pretraining.splits --data ../shared/data --out out/known-pretraining
"""

import argparse
import gzip
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from calibrune.corpora.document import Document
from calibrune.corpora.files import FileCorpus
from calibrune.durable import write_whole
from calibrune.errors import CalibruneError
from calibrune.seeds import rank_of, seed_for

HERE = Path(__file__).parent
SEED = 0

DOMAINS = {
    "wikipedia": ("pile_wikipedia_en", "wikipedia_articles"),
    "web": ("pile_cc", "pile_openwebtext2"),
    "pubmed": ("pile_pubmed_abstracts",),
    "patents": ("pile_uspto_backgrounds",),
}
"""Kinds of text, and the files that they are read from."""

OUTSIDE = "c4"
"""What no model is trained on, and most papers calibrate on; as much of it as a model's domains have held back."""

PARTNERS = (("wikipedia", "pubmed"), ("web", "patents"))
"""Domains of which as much is taken of the one as there is of the other, so that no model has more to learn from."""

MODELS: dict[str, tuple[str, ...]] = {
    "wiki-web": ("wikipedia", "web"),
    "pubmed-patents": ("pubmed", "patents"),
    "mixture": ("wikipedia", "web", "pubmed", "patents"),
}
"""What each model is trained on; the mixture on every second document of each."""

Part = Literal["test", "held", "train"]
SHARES: dict[Part, float] = {"test": 0.10, "held": 0.15, "train": 0.75}
"""Of a domain's characters; `held` is held back for calibration."""

LONGEST = 20_000
"""Characters that are used of a document: a few long ones would be much of a part."""
RUN, SEEN = 8, 0.1
"""A document is left out where more than a tenth of its runs of eight words stood in one before it."""

Splits = Mapping[str, Mapping[Part, Sequence[Document]]]


def split_corpora(data: Path) -> Splits:
    """The documents of every domain by part, in a random order that is always the same.

    No document is nearly the same as another, in whatever domain or part: what was seen before is left out, and what is
    to be measured on comes first.

    Args:
        data: the folder that has `corpora/`.
    """
    seen: set[int] = set()
    read = {**DOMAINS, OUTSIDE: (OUTSIDE,)}
    fresh = {name: list(_fresh(_ranked(_documents(data / "corpora", names)), seen)) for name, names in read.items()}
    size = {name: sum(len(one.text) for one in documents) for name, documents in fresh.items()}
    for pair in PARTNERS:
        size |= dict.fromkeys(pair, min(size[name] for name in pair))
    size[OUTSIDE] = sum(size[name] for name in MODELS["wiki-web"])
    return {name: _parts(documents, size[name]) for name, documents in fresh.items()}


def of_model(splits: Splits, model: str, part: Part) -> list[Document]:
    """The documents of a model's domains; of the mixture's training documents every second, so that it has as many."""
    step = 2 if part == "train" and len(MODELS[model]) > 2 else 1
    return [one for name in MODELS[model] for one in splits[name][part][::step]]


def files(splits: Splits) -> dict[str, list[Document]]:
    """What the study reads, by the name of its file."""
    found = {f"{name}-{part}": list(splits[name][part]) for name in DOMAINS for part in ("test", "held")}
    found[f"{OUTSIDE}-held"] = list(splits[OUTSIDE]["held"])
    return found | {f"{name}-{part}": of_model(splits, name, part) for name in MODELS for part in ("held", "train")}


def described(documents: Sequence[Document]) -> dict[str, Any]:
    """What pins a file: how much it is, and the hash of its rows."""
    return {
        "documents": len(documents),
        "characters": sum(len(one.text) for one in documents),
        "sha256": hashlib.sha256(_rows(documents)).hexdigest(),
    }


def write_files(splits: Splits, out: Path) -> None:
    """Write `NAME.jsonl.gz` for each of `files`."""
    for name, documents in files(splits).items():
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
            file.write(_rows(documents))
        write_whole(out / f"{name}.jsonl.gz", packed.getvalue())


def _documents(corpora: Path, names: Iterable[str]) -> Iterator[Document]:
    found = (FileCorpus(path=corpora / f"{name}.jsonl.gz").documents() for name in names)
    for one in chain.from_iterable(found):
        yield Document(one.text[:LONGEST], one.id)


def _ranked(documents: Iterable[Document]) -> list[Document]:
    key = seed_for(SEED, "known pre-training", "splits")
    return sorted(documents, key=lambda one: rank_of(key, one.id))


def _fresh(documents: Iterable[Document], seen: set[int]) -> Iterator[Document]:
    for one in documents:
        words = one.text.lower().split()
        runs = {_hash_of(" ".join(words[i : i + RUN])) for i in range(max(1, len(words) - RUN + 1))}
        if len(runs & seen) <= SEEN * len(runs):
            seen |= runs
            yield one


def _hash_of(text: str) -> int:
    """Eight bytes, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _parts(documents: Sequence[Document], characters: int) -> dict[Part, list[Document]]:
    parts: dict[Part, list[Document]] = {name: [] for name in SHARES}
    ends = [sum(list(SHARES.values())[: i + 1]) * characters for i in range(len(SHARES))]
    begun = 0
    for one in documents:
        name = next((name for name, end in zip(SHARES, ends, strict=True) if begun < end), None)
        if name is None:  # the partner has no more
            break
        parts[name].append(one)
        begun += len(one.text)
    return parts


def _rows(documents: Iterable[Document]) -> bytes:
    rows = (json.dumps({"id": one.id, "text": one.text}, ensure_ascii=False) + "\n" for one in documents)
    return "".join(rows).encode("utf-8", "surrogatepass")


def main(arguments: Sequence[str]) -> int:
    """Write the files; the exit status says whether they are those that the models and the rows were made with."""
    parser = argparse.ArgumentParser(description="Share out the documents of the corpora.")
    parser.add_argument("--data", type=Path, required=True, help="the folder that has corpora/")
    parser.add_argument("--out", type=Path, required=True, help="where the files go")
    given = parser.parse_args(arguments)
    try:
        splits = split_corpora(given.data)
        write_files(splits, given.out)
    except CalibruneError as error:
        print(error, file=sys.stderr)
        return 2
    found = {name: described(documents) for name, documents in files(splits).items()}
    print(json.dumps(found, indent=1))
    known = HERE / "splits.json"
    if known.exists() and json.loads(known.read_text(encoding="utf-8")) != found:
        print(f"these are not the splits of {known.name}: the corpora are others", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
