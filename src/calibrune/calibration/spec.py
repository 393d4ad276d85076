"""What users write for calibration data: `c4.jsonl.gz`, `selfgen:prefix_tokens=2`, a folder, tokens of their own."""

import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.filters import FILTERS, Filter, PerplexityFilter
from calibrune.calibration.scores import DocumentScorer
from calibrune.calibration.windows import Windows
from calibrune.corpora.document import Corpus
from calibrune.corpora.files import READERS, FileCorpus, check_is_file
from calibrune.corpora.generated import SelfGeneration
from calibrune.corpora.random_tokens import RandomTokens
from calibrune.errors import CalibrationError, ConfigError
from calibrune.lm.generation import Sampling
from calibrune.lm.loading import LanguageModel, load_model
from calibrune.settings import defaults, nearest

SOURCES = {
    "selfgen": "text that the model to be pruned writes itself",
    "random": "uniformly random tokens: the control that carries no language",
}
"""Named sources; files, folders and token files are given by their path."""

DEFAULT_SAMPLES, DEFAULT_LENGTH = 128, 2048


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split "selfgen:prompts=bos:drop_highest=0.1" into the source and its options; values are read as YAML.

    >>> parse_spec("c4.jsonl.gz:text_field=body")
    ('c4.jsonl.gz', {'text_field': 'body'})
    """
    # a colon begins an option only where a name and an equals sign follow: C:\\texts is a path
    source, *options = re.split(r":(?=[a-z_]+=)", spec)
    if not source.strip():
        raise ConfigError(f"{spec!r} names no source; give one of {', '.join(SOURCES)}, or a file or folder")
    if "," in source and not Path(source).exists():
        raise ConfigError(f"{spec!r} names several sources; this version takes one: give a single source or file")
    try:
        return source, {name: yaml.safe_load(value) for name, value in (option.split("=", 1) for option in options)}
    except yaml.YAMLError as error:
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"an option of {spec!r} cannot be read ({said}); write :key=value, the value as in YAML"
        ) from None


def build_calibration(
    spec: str, lm: LanguageModel, *, n_samples: int | None = None, seq_len: int | None = None, seed: int = 0
) -> CalibrationSet:
    """Make or read the calibration set that a SPEC names, and check that it fits the model.

    Args:
        spec: a folder made by `calibrate`; a `.safetensors` with integer `input_ids`; a file of documents; `selfgen`;
            `random`. Options follow as `:key=value`.
        lm: the model that is to be calibrated.
        n_samples: sequences; 128 for text, all that there are for tokens.
        seq_len: tokens in a sequence; 2048 for text (less where the model's context is shorter), else what it is.
        seed: of every draw.

    Raises:
        CalibruneError: there is no such source, it cannot be read, or it does not fit.
    """
    return prepare_calibration(spec, n_samples=n_samples, seq_len=seq_len, seed=seed)(lm)


def prepare_calibration(
    spec: str, *, n_samples: int | None = None, seq_len: int | None = None, seed: int = 0
) -> Callable[[LanguageModel], CalibrationSet]:
    """Check all of a SPEC that can be checked without the model; what is returned makes the set, given the model.

    So a typing error is told before a large model is loaded. Arguments and errors are those of `build_calibration`.
    """
    source, options = parse_spec(spec)
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix == ".safetensors":
        tokens = _tokens(path, options, n_samples, seq_len)
        return lambda lm: _fitting(tokens, lm)
    recipe = _recipe(source, path, options, n_samples, seq_len, seed)
    return lambda lm: _fitting(
        build(recipe(lm), lm.tokenizer, vocab_size=lm.vocab_size, context_length=lm.context_length), lm
    )


def _fitting(made: CalibrationSet, lm: LanguageModel) -> CalibrationSet:
    made.check_fits(vocab_size=lm.vocab_size, context_length=lm.context_length)
    return made


def _tokens(path: Path, options: dict[str, Any], n_samples: int | None, seq_len: int | None) -> CalibrationSet:
    if options:
        raise ConfigError(f"{str(path)!r} holds finished tokens and takes no options, got {', '.join(options)}")
    if not path.exists():
        raise CalibrationError(f"there is no file {str(path)!r}; give a .safetensors file with integer input_ids")
    made = CalibrationSet.load(path) if path.is_dir() else CalibrationSet.from_safetensors(path)
    if seq_len is not None and seq_len != made.input_ids.shape[1]:
        raise CalibrationError(
            f"sequences of {seq_len} tokens were asked for, but {str(path)!r} holds sequences of "
            f"{made.input_ids.shape[1]}; leave --seq-len out"
        )
    return made if n_samples is None else made.take(n_samples)


def _recipe(
    source: str, path: Path, options: dict[str, Any], n_samples: int | None, seq_len: int | None, seed: int
) -> Callable[[LanguageModel], CalibrationRecipe]:
    windows = Windows(**_taken(options, Windows, rename={"windows": "policy"}))
    filters = _filters(source, options)
    corpus: Callable[[LanguageModel, int], Corpus]
    if source == "selfgen":
        corpus = _self_generation(options, seed)
    elif source == "random":
        corpus = _random_tokens(seed)
    else:
        corpus = _always(_file(source, path, options))
    if options:
        wrong, known = next(iter(options)), [name for group in options_of(source).values() for name in group]
        raise ConfigError(
            f"the source {source!r} has no option {wrong!r}{nearest(wrong, known)} (see `calibrune list sources`)"
        )

    if seq_len is not None and seq_len < 2:
        raise ConfigError(f"sequences of {seq_len} tokens were asked for; at least 2 are needed")

    def recipe(lm: LanguageModel) -> CalibrationRecipe:
        length = min(DEFAULT_LENGTH, lm.context_length or DEFAULT_LENGTH) if seq_len is None else seq_len
        return CalibrationRecipe(
            corpus=corpus(lm, length),
            filters=tuple(filter(lm) for filter in filters),
            windows=windows,
            n_samples=DEFAULT_SAMPLES if n_samples is None else n_samples,
            seq_len=length,
            seed=seed,
        )

    return recipe


SWITCHES: dict[str, dict[str, Any]] = {
    "length": {"min_chars": None, "max_chars": None},
    "repetition": {"max_repeated": None, "max_compression": None},
    "language": {"language": None},
    "duplicates": {"dedup": None},
    "contamination": {"evals": None},
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


def _filters(source: str, options: dict[str, Any]) -> list[Callable[[LanguageModel], Filter]]:
    """The filters that the options ask for (and where the model writes, the study's), in the order of FILTERS."""
    if source == "random":
        return []
    made: list[Callable[[LanguageModel], Filter]] = []
    for name, kind in FILTERS.items():
        asked = _taken(options, kind, without=OF_THE_SCORER)
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
                made.append(_always_filter(filter))
            continue
        idle = [*scoring, *(key for key, value in asked.items() if key not in off and value != defaults(kind)[key])]
        if idle:
            raise ConfigError(f"{idle[0]} does nothing without one of {', '.join(off)}: add one, or leave it out")
    return made


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
    if source == "selfgen" and prefix == "excluded":
        prompts = options.get("prompts", "random")
        lengths = {"bos": 0, "random": 1}
        asked.setdefault("skip_tokens", lengths.get(prompts, options.get("prefix_tokens", 2)))

    def made(lm: LanguageModel) -> Filter:
        model = lm if by is None else load_model(str(by), device=str(lm.model.device))
        scorer = DocumentScorer(model=model, own_tokens=by is None, **asked)
        return replace(filter, scorer=scorer, rescore=source == "selfgen")

    return made


def _always(corpus: Corpus) -> Callable[[LanguageModel, int], Corpus]:
    return lambda lm, seq_len: corpus


def _random_tokens(seed: int) -> Callable[[LanguageModel, int], Corpus]:
    return lambda lm, seq_len: RandomTokens(tokenizer=lm.tokenizer, length=seq_len, seed=seed)


def _self_generation(options: dict[str, Any], seed: int) -> Callable[[LanguageModel, int], Corpus]:
    sampling = Sampling(**_taken(options, Sampling))
    own = _taken(options, SelfGeneration, without=("model", "sampling", "seed"))
    prompts = own.get("prompts", "random")
    if prompts not in ("bos", "random"):
        path = Path(str(prompts)).expanduser()
        if not path.exists() and not any(ending in path.name for ending in READERS):
            raise ConfigError(
                f"there are no prompts {str(prompts)!r}{nearest(str(prompts), ('bos', 'random'))}; or give the path of "
                f"a file of documents ({', '.join(READERS)})"
            )
        own["prompts"] = _file(str(prompts), path, {})

    def corpus(lm: LanguageModel, seq_len: int) -> Corpus:
        return SelfGeneration(model=lm, sampling=sampling, seed=seed, **({"max_new_tokens": seq_len} | own))

    return corpus


def _file(source: str, path: Path, options: dict[str, Any]) -> FileCorpus:
    if not path.exists() and not any(ending in path.name for ending in READERS):
        raise ConfigError(
            f"there is no calibration source {source!r}, and no such file ({', '.join(READERS)}, packed or not, or a "
            f".safetensors with input_ids), nor a folder made by `calibrune calibrate`{nearest(source, SOURCES)}"
        )
    corpus = FileCorpus(path=path, **_taken(options, FileCorpus, without=("path",)))
    check_is_file(path)
    return corpus


def _taken(
    options: dict[str, Any], kind: type, *, rename: dict[str, str] | None = None, without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Take the options that are settings of this class out of `options`."""
    rename = rename or {}
    names = {f.name for f in fields(kind) if f.name not in without and f.name not in rename.values()} | rename.keys()
    return {rename.get(name, name): options.pop(name) for name in names & options.keys()}


def options_of(source: str) -> dict[str, dict[str, Any]]:
    """The options of a kind of source with their defaults, by what they are about."""
    windows = {"windows": {"windows": Windows().policy} | defaults(Windows, without=("policy",))}
    if source == "random":
        return windows
    filters = {
        f"filter: {n}": _off(source, n) | defaults(k, without=OF_THE_SCORER) | _off(source, n)
        for n, k in FILTERS.items()
    }
    filters["filter: perplexity"] |= SCORING
    if source == "selfgen":
        writing = defaults(SelfGeneration, without=("model", "sampling", "seed"))
        # of a generated text there is no more use than of a whole sequence
        writing["max_new_tokens"] = "the sequence length"
        return {"writing": writing, "sampling": defaults(Sampling)} | filters | windows
    return {"file": defaults(FileCorpus, without=("path", "name"))} | filters | windows
