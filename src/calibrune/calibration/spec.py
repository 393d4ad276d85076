"""What users write for calibration data: `c4.jsonl.gz`, `selfgen:prefix_tokens=2`, a folder, tokens of their own."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.filters import PerplexityFilter
from calibrune.calibration.windows import Windows
from calibrune.corpora.document import Corpus
from calibrune.corpora.files import READERS, FileCorpus
from calibrune.corpora.generated import SelfGeneration
from calibrune.corpora.random_tokens import RandomTokens
from calibrune.errors import CalibrationError, ConfigError
from calibrune.lm.generation import Sampling
from calibrune.lm.loading import LanguageModel
from calibrune.settings import nearest

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
    return source, {name: _value(name, text) for name, text in (option.split("=", 1) for option in options)}


def _value(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of the option {name}={text} cannot be read; put it in quotes") from None


def build_calibration(
    spec: str, lm: LanguageModel, *, n_samples: int | None = None, seq_len: int | None = None, seed: int = 0
) -> CalibrationSet:
    """Make or read the calibration set that a SPEC names, and check that it fits the model.

    Args:
        spec: a folder made by `calibrate`; a `.safetensors` with integer `input_ids`; a file of documents; `selfgen`;
            `random`. Options follow as `:key=value`.
        n_samples: sequences; 128 for text, all that there are for tokens.
        seq_len: tokens in a sequence; 2048 for text (less where the model's context is shorter), else what it is.

    Raises:
        CalibruneError: there is no such source, it cannot be read, or it does not fit.
    """
    source, options = parse_spec(spec)
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix == ".safetensors":
        made = _tokens(path, options, n_samples, seq_len)
    else:
        recipe = _recipe(source, path, options, lm, n_samples, seq_len, seed)
        made = build(recipe, lm.tokenizer, vocab_size=lm.vocab_size, context_length=lm.context_length)
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
    source: str,
    path: Path,
    options: dict[str, Any],
    lm: LanguageModel,
    n_samples: int | None,
    seq_len: int | None,
    seed: int,
) -> CalibrationRecipe:
    length = min(DEFAULT_LENGTH, lm.context_length or DEFAULT_LENGTH) if seq_len is None else seq_len
    if length < 2:
        raise ConfigError(f"sequences of {length} tokens were asked for; at least 2 are needed (--seq-len)")
    windows = Windows(**_taken(options, Windows, rename={"windows": "policy"}))
    filters: tuple[PerplexityFilter, ...] = ()
    corpus: Corpus
    if source == "selfgen":
        filters = (PerplexityFilter(**_taken(options, PerplexityFilter)),)
        corpus = _self_generation(options, lm, length, seed)
        if filters[0].among is None and corpus.n_texts is None:
            raise ConfigError(
                "among=null compares all texts with each other, so it needs their number: add n_texts=..."
            )
    elif source == "random":
        corpus = RandomTokens(tokenizer=lm.tokenizer, length=length, seed=seed)
    else:
        corpus = _file(source, path, options)
    if options:
        known = source_options()[source if source in SOURCES else "FILE"]
        unknown = next(iter(options))
        hint = nearest(unknown, (option.partition("=")[0] for option in known))
        raise ConfigError(f"the source {source!r} has no option {unknown!r}{hint}")
    return CalibrationRecipe(
        corpus=corpus,
        filters=filters,
        windows=windows,
        n_samples=DEFAULT_SAMPLES if n_samples is None else n_samples,
        seq_len=length,
        seed=seed,
    )


def _self_generation(options: dict[str, Any], lm: LanguageModel, seq_len: int, seed: int) -> SelfGeneration:
    sampling = Sampling(**_taken(options, Sampling))
    own = _taken(options, SelfGeneration, without=("model", "sampling", "seed"))
    prompts = own.get("prompts", "random")
    if prompts not in ("bos", "random"):
        path = Path(str(prompts)).expanduser()
        if not path.exists() and not any(ending in path.name for ending in READERS):
            raise ConfigError(
                f"there are no prompts {str(prompts)!r}{nearest(str(prompts), ('bos', 'random'))} or give the path of "
                f"a file of documents ({', '.join(READERS)})"
            )
        own["prompts"] = _file(str(prompts), path, {})
    return SelfGeneration(model=lm, sampling=sampling, seed=seed, **({"max_new_tokens": seq_len} | own))


def _file(source: str, path: Path, options: dict[str, Any]) -> FileCorpus:
    if not path.exists() and not any(ending in path.name for ending in READERS):
        raise ConfigError(
            f"there is no calibration source {source!r}{nearest(source, SOURCES)}; or give the path of a file "
            f"({', '.join(READERS)}; packed with .gz or .zst), of a .safetensors with input_ids, "
            f"or of a folder made by `calibrune calibrate`"
        )
    return FileCorpus(path=path, **_taken(options, FileCorpus, without=("path",)))


def _taken(
    options: dict[str, Any], kind: type, *, rename: dict[str, str] | None = None, without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Take the options that are settings of this class out of `options`."""
    rename = rename or {}
    names = {f.name for f in fields(kind) if f.name not in without and f.name not in rename.values()} | rename.keys()
    return {rename.get(name, name): options.pop(name) for name in names & options.keys()}


def source_options() -> dict[str, list[str]]:
    """For every kind of source its options with their defaults, for `calibrune list sources`."""

    def shown(kind: type, *without: str) -> list[str]:
        # a default with bounds stands inside pydantic's record of the field
        defaults = {f.name: getattr(f.default, "default", f.default) for f in fields(kind) if f.name not in without}
        return [f"{name}={default}" for name, default in defaults.items() if default is not MISSING]

    windows = ["windows=packed", *shown(Windows, "policy")]
    generated = shown(SelfGeneration, "model", "sampling", "seed") + shown(Sampling) + shown(PerplexityFilter)
    return {"selfgen": generated + windows, "random": windows, "FILE": shown(FileCorpus, "path", "name") + windows}
