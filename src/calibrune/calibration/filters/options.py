"""The filters that a SPEC asks for, by their options: `drop_highest=0.2:min_chars=200:dedup=0.8`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from calibrune.calibration.filters import FILTERS, Filter, PerplexityFilter, describe_filter
from calibrune.calibration.scores import DocumentScorer
from calibrune.errors import ConfigError
from calibrune.lm.loading import LanguageModel, load_model
from calibrune.settings import choose, defaults, taken

SWITCHES: dict[str, dict[str, Any]] = {
    "length": {"min_chars": None, "max_chars": None},
    "repetition": {"max_repeated": None, "max_compression": None},
    "language": {"language": None},
    "duplicates": {"dedup": None},
    "contamination": {"evals": None},
    "variety": {"drop_alike": 0.0},
    "perplexity": {"drop_highest": 0.0, "drop_lowest": 0.0, "min_perplexity": None, "max_perplexity": None},
}
"""The options that put each filter to work in a SPEC, with the values that do not."""

SCORING = {
    "by": None,
    "prefix": "excluded",
    "skip_tokens": None,
    **defaults(DocumentScorer, without=("model", "skip_tokens", "own_tokens")),
}
"""Options that say how documents get their perplexity; by=None is the model to be pruned."""

OF_THE_SCORER = ("scorer", "rescore")

OWN = "filter"
"""The option that names filters of one's own, `module:Class` or `{name: module:Class, setting: ...}`, or a list."""


def filters_of(source: str, options: dict[str, Any]) -> list[Callable[[LanguageModel], Filter]]:
    """The filters that the options ask for (and where the model writes, the study's), in the order of FILTERS.

    Those of one's own come before the perplexity, which costs most.
    """
    if source == "random":
        return []
    made: list[Callable[[LanguageModel], Filter]] = []
    own = [_always_filter(one) for one in _own(options.pop(OWN, None))]
    for name, kind in FILTERS.items():
        made += own if name == "perplexity" else []
        asked = taken(options, kind, without=OF_THE_SCORER)
        off = _off(source, name)
        scoring = {key: options.pop(key) for key in SCORING if key in options} if name == "perplexity" else {}
        scoring = {key: value for key, value in scoring.items() if value != SCORING[key]}
        values = off | asked
        if name == "perplexity" and source == "selfgen":
            made.append(_scoring(_of_generated(values, options), source, scoring, options))
            continue
        if any(values[switch] != nothing for switch, nothing in SWITCHES[name].items()):
            filter = kind(**values)
            if isinstance(filter, PerplexityFilter):
                made.append(_scoring(filter, source, scoring, options))
            else:
                describe_filter(filter)  # a library or file that is missing is told before the model is loaded
                made.append(_always_filter(filter))
            continue
        idle = [*scoring, *(key for key, value in asked.items() if key not in off and value != defaults(kind)[key])]
        if idle:
            raise ConfigError(f"{idle[0]} does nothing without one of {', '.join(off)}: add one, or leave it out")
    return made


def _own(given: Any) -> list[Filter]:
    filters = []
    for one in given if isinstance(given, list) else [] if given is None else [given]:
        settings = dict(one) if isinstance(one, dict) else {"name": one}
        name = str(settings.pop("name", ""))
        filters.append(choose({}, "filter", name, settings, Filter))
        describe_filter(filters[-1])
    return filters


def _off(source: str, name: str) -> dict[str, Any]:
    """What the switches of a filter are where nobody says; the study drops a fifth of what the model wrote."""
    study = {"drop_highest": PerplexityFilter().drop_highest} if (source, name) == ("selfgen", "perplexity") else {}
    return SWITCHES[name] | study


def _of_generated(values: dict[str, Any], options: dict[str, Any]) -> PerplexityFilter:
    filter = PerplexityFilter(**values)
    if filter.among is None and options.get("n_texts") is None:
        raise ConfigError("among=null compares all texts with each other, so their number is needed: add n_texts=...")
    return filter


def _always_filter(filter: Filter) -> Callable[[LanguageModel], Filter]:
    return lambda lm: filter


def _scoring(
    filter: PerplexityFilter, source: str, scoring: dict[str, Any], options: dict[str, Any]
) -> Callable[[LanguageModel], Filter]:
    """The filter with its scorer, given the model: the recorded perplexities of generated text need none."""
    if source == "selfgen" and not scoring:
        return _always_filter(filter)
    asked, by, prefix = dict(scoring), scoring.get("by"), scoring.get("prefix", "excluded")
    asked.pop("by", None)
    asked.pop("prefix", None)
    if prefix not in ("excluded", "included"):
        raise ConfigError(f"prefix cannot be {prefix!r}; choose one of: excluded, included")
    if source != "selfgen" and prefix == "included":
        raise ConfigError(f"prefix=included does nothing for {source!r}, whose texts have no prompt: leave it out")
    if source == "selfgen" and prefix == "excluded":
        prompts = options.get("prompts", "random")
        if prompts == "chat":
            raise ConfigError(
                f"{next(iter(scoring))} has chats scored anew, which cannot leave out the template's tokens as the "
                f"recorded perplexities do: add prefix=included to count them, or leave it out"
            )
        lengths = {"bos": 0, "random": 1}
        asked.setdefault("skip_tokens", lengths.get(prompts, options.get("prefix_tokens", 2)))

    def made(lm: LanguageModel) -> Filter:
        model = lm if by is None else _loaded(str(by), str(lm.model.device))
        scorer = DocumentScorer(model=model, own_tokens=by is None, **asked)
        return replace(filter, scorer=scorer, rescore=source == "selfgen")

    return made


_LOADED: WeakValueDictionary[tuple[str, str], LanguageModel] = WeakValueDictionary()


def _loaded(name: str, device: str) -> LanguageModel:
    """The model that scores, loaded once for all parts of a mixture, and held no longer than they need it."""
    model = _LOADED.get((name, device))
    if model is None:
        model = _LOADED[name, device] = load_model(name, device=device)
    return model


def filter_options(source: str) -> dict[str, dict[str, Any]]:
    """The options of the filters with their defaults, by filter; a source of random tokens has none."""
    if source == "random":
        return {}
    filters = {
        f"filter: {name}": _off(source, name) | defaults(kind, without=OF_THE_SCORER) | _off(source, name)
        for name, kind in FILTERS.items()
    }
    filters["filter: perplexity"] |= SCORING
    return filters | {"filter: your own": {OWN: None}}
