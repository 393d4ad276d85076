"""What users write for calibration data: `c4.jsonl.gz`, `selfgen:prefix_tokens=2`, a folder, tokens of their own."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrune.calibration.build import CalibrationRecipe, build
from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.filters import Filter
from calibrune.calibration.filters.options import filter_options, filters_of
from calibrune.calibration.mixture import Mixture, Part
from calibrune.calibration.tokenizers import describe_tokenizer
from calibrune.calibration.windows import Windows
from calibrune.corpora.chat import Chat
from calibrune.corpora.document import Corpus
from calibrune.corpora.engines import ENGINES, Engine
from calibrune.corpora.files import READERS, FileCorpus
from calibrune.corpora.generated import SelfGeneration
from calibrune.corpora.hub import HubCorpus
from calibrune.corpora.named import NAMED, OPTIONS, hub_settings
from calibrune.corpora.random_tokens import RandomTokens
from calibrune.errors import CalibrationError, ConfigError
from calibrune.lm.generation import Sampling
from calibrune.lm.loading import LanguageModel
from calibrune.settings import (
    choose,
    class_named,
    defaults,
    home_path,
    is_outside,
    nearest,
    setting_names,
    taken,
    yaml_value,
)

SOURCES = {
    "selfgen": "text that the model to be pruned writes itself",
    "random": "uniformly random tokens: the control that carries no language",
}
"""Sources that need no text of anybody's; those of the hub are in `NAMED`; files and folders are given by path."""

PRESETS: dict[str, dict[str, Any]] = {
    "study": {"n_texts": 5000, "max_new_tokens": 2048, "prefix_tokens": 2, "among": 5000, "drop_highest": 0.2},
    "plain": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "drop_highest": 0.0},
}
"""`selfgen:preset=study`: the scale of the study's scripts (Ji et al., 2025), whose sampling is the default anyway.
`selfgen:preset=plain`: sampled as the model's probabilities say, with nothing dropped (docs/evidence.md)."""

NO_CORPORA: dict[str, type[Corpus]] = {}
"""Those of this package are made each in its own way; only classes of one's own are chosen by name alone."""

DEFAULT_SAMPLES, DEFAULT_LENGTH = 128, 2048

# a colon begins an option only where a name and an equals sign follow: C:\\texts is a path
_OPTION = r":(?=[a-z_]+=)"
_FOLDERS = r"[^=,'\" \[\]]*/"


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split "selfgen:prompts=bos:drop_highest=0.1" into the source and its options; values are read as YAML.

    >>> parse_spec("c4.jsonl.gz:text_field=body")
    ('c4.jsonl.gz', {'text_field': 'body'})
    """
    source, *options = re.split(_OPTION, spec)
    if not source.strip():
        raise ConfigError(f"{spec!r} names no source; give one of {', '.join((*SOURCES, *NAMED))}, or a file or folder")
    try:
        return source, {name: yaml_value(value) for name, value in (option.split("=", 1) for option in options)}
    except ConfigError as error:
        raise ConfigError(f"an option of {spec!r}: {error}") from None


def parts_of(spec: str) -> list[str]:
    """The parts of a mixture, which commas part; one in quotes, brackets or the name of a file that is there does not.

    >>> parts_of("c4:weight=3,hub/org/name:template='{q}, {a}'")
    ['c4:weight=3', "hub/org/name:template='{q}, {a}'"]
    """
    source = re.split(_OPTION, spec)[0]
    if "," in source and home_path(source).exists():
        return [spec]
    # each comma ends a part, but for those that the quotes and brackets before it have swallowed
    return [part[1:] for part in re.findall(r""",(?:'[^']*'|"[^"]*"|\[[^]]*\]|\{[^}]*\}|[^,])*""", f",{spec}")]


def is_finished(spec: str) -> bool:
    """Whether a SPEC names finished tokens, whose number and length are their own."""
    parts = parts_of(spec)
    return len(parts) == 1 and _holds_tokens(parse_spec(spec)[0])


def short_name(spec: str) -> str:
    """What to call a set in a table: its parts, each with its options, without folders and the endings of files.

    >>> short_name("texts/c4.jsonl.gz:weight=2,texts/wiki.jsonl.gz")
    'c4:weight=2 + wiki'
    """
    parts = [re.split(_OPTION, part) for part in parts_of(spec)]
    return " + ".join(
        ":".join([_short(source), *(re.sub(_FOLDERS, "", one) for one in options)]) for source, *options in parts
    )


def _short(source: str) -> str:
    return source.partition(":")[2] if _is_class(source) else Path(source).name.partition(".")[0] or source


def _is_class(source: str) -> bool:
    return is_outside(source) and not Path(source).exists()


def _corpus_class(source: str) -> type:
    return class_named(NO_CORPORA, "source", source)


def build_calibration(
    spec: str, lm: LanguageModel, *, n_samples: int | None = None, seq_len: int | None = None, seed: int = 0
) -> CalibrationSet:
    """Make or read the calibration set that a SPEC names, and check that it fits the model.

    Args:
        spec: a folder made by `calibrate`; a `.safetensors` with integer `input_ids`; a file of documents; `selfgen`;
            `random`; a dataset of the hub by its name in `NAMED`, or `hub/OWNER/NAME`; a corpus of one's own,
            `module:Class`. Options follow as `:key=value`.
            Several with commas are a mixture, each with its `:weight=` (1 if not given); see `Mixture`.
            A name wins over a file that is called so: write `./c4` for that.
        lm: the model that is to be calibrated.
        n_samples: sequences; 128 for text, all that there are for tokens.
        seq_len: tokens in a sequence; 2048 for text (less where the model's context is shorter), else what it is.
        seed: of every draw.

    Raises:
        CalibruneError: there is no such source, it cannot be read, or it does not fit.
    """
    return prepare_calibration(spec, n_samples=n_samples, seq_len=seq_len, seed=seed)(lm)


@dataclass(frozen=True)
class PreparedCalibration:
    """A SPEC that was checked: called with the model, it makes the set."""

    made: CalibrationSet | Callable[[LanguageModel], CalibrationRecipe]
    """Finished tokens, or how the recipe follows from the model."""

    def __call__(self, lm: LanguageModel) -> CalibrationSet:
        """Make the set, and check that it fits."""
        if isinstance(self.made, CalibrationSet):
            return _fitting(self.made, lm)
        recipe = self.made(lm)
        return _fitting(build(recipe, lm.tokenizer, vocab_size=lm.vocab_size, context_length=lm.context_length), lm)

    def describe(self, lm: LanguageModel) -> dict[str, Any]:
        """All that can change the tokens but the tokenizer, as JSON: known before the set is made."""
        if isinstance(self.made, CalibrationSet):
            return {"tokens": self.made.fingerprint}
        return self.made(lm).describe()


def prepare_calibration(
    spec: str, *, n_samples: int | None = None, seq_len: int | None = None, seed: int = 0
) -> PreparedCalibration:
    """Check all of a SPEC that can be checked without the model; what is returned makes the set, given the model.

    So a typing error is told before a large model is loaded. Arguments and errors are those of `build_calibration`.
    """
    if is_finished(spec):
        source, options = parse_spec(spec)
        return PreparedCalibration(_tokens(home_path(source), options, n_samples, seq_len))
    return PreparedCalibration(_recipe(parts_of(spec), n_samples, seq_len, seed))


def check_options(spec: str) -> None:
    """Raise `ConfigError` for an option that its source does not know; nothing is opened or fetched."""
    for source, options in map(parse_spec, parts_of(spec)):
        known = {"weight", *(name for group in options_of(source).values() for name in group)}
        if source == "selfgen" and "engine" in options:
            known |= setting_names(class_named(ENGINES, "engine", str(options["engine"])))
        for name in options:
            if name not in known:
                raise _no_such_option(source, name, known)


def _no_such_option(source: str, name: str, known: Iterable[str]) -> ConfigError:
    return ConfigError(
        f"the source {source!r} has no option {name!r}{nearest(name, known)} (see `calibrune list sources`)"
    )


def _holds_tokens(source: str) -> bool:
    path = home_path(source)
    is_named = source in SOURCES or hub_settings(source) is not None
    return not is_named and (path.is_dir() or path.suffix == ".safetensors")


def _fitting(made: CalibrationSet, lm: LanguageModel) -> CalibrationSet:
    made.check_fits(vocab_size=lm.vocab_size, context_length=lm.context_length)
    # tokens of one's own say not whose they are
    tokenizer = made.manifest.get("tokenizer", {}).get("sha256")
    if tokenizer and tokenizer != (own := describe_tokenizer(lm.tokenizer)["sha256"]):
        raise CalibrationError(
            f"the calibration set {made.fingerprint} was made with another tokenizer ({tokenizer[:12]}) than this "
            f"model's ({own[:12]}): make it anew for this model, or give its calibration.safetensors if you know that "
            f"the ids mean the same"
        )
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


_MadePart = tuple[Callable[[LanguageModel, int], Corpus], float, list[Callable[[LanguageModel], Filter]]]


def _part(source: str, options: dict[str, Any], seed: int) -> _MadePart:
    """How to make a corpus, its weight and its filters; all options must be used up."""
    weight = options.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ConfigError(f"the weight of {source!r} cannot be {weight!r}: give a number above 0")
    if source == "selfgen" and (preset := options.pop("preset", None)) is not None:
        if str(preset) not in PRESETS:
            raise ConfigError(f"there is no preset {preset!r}{nearest(str(preset), PRESETS)}")
        options = PRESETS[str(preset)] | options
    filters = filters_of(source, options)
    corpus: Callable[[LanguageModel, int], Corpus]
    if source == "selfgen":
        corpus = _self_generation(options, seed)
    elif source == "random":
        corpus = _random_tokens(seed)
    elif _holds_tokens(source):
        raise ConfigError(f"{source!r} holds finished tokens, which cannot be a part of a mixture: name its source")
    else:
        corpus = _always(_text(source, home_path(source), options))
    if options:
        known = [name for group in options_of(source).values() for name in group]
        raise _no_such_option(source, next(iter(options)), known)
    return corpus, float(weight), filters


def _recipe(
    specs: list[str], n_samples: int | None, seq_len: int | None, seed: int
) -> Callable[[LanguageModel], CalibrationRecipe]:
    sources = [parse_spec(spec) for spec in specs]
    # one policy for the whole set, wherever it is said
    said: dict[str, Any] = {}
    for _, options in sources:
        for name, value in taken(options, Windows, rename={"windows": "policy"}).items():
            if said.setdefault(name, value) != value:
                raise ConfigError(
                    f"the parts of a mixture are cut alike, but {name} is {said[name]!r} for one and {value!r} for "
                    f"another: say it once"
                )
    windows = Windows(**said)
    if len(sources) == 1 and "weight" in sources[0][1]:
        raise ConfigError(f"{specs[0]!r} is a single source: a weight is for mixtures, as in c4:weight=2,wikipedia")
    parts = [_part(source, options, seed) for source, options in sources]
    if seq_len is not None and seq_len < 2:
        raise ConfigError(f"sequences of {seq_len} tokens were asked for; at least 2 are needed")

    def recipe(lm: LanguageModel) -> CalibrationRecipe:
        length = min(DEFAULT_LENGTH, lm.context_length or DEFAULT_LENGTH) if seq_len is None else seq_len
        made = [
            Part(corpus=corpus(lm, length), weight=weight, filters=tuple(one(lm) for one in filters))
            for corpus, weight, filters in parts
        ]
        return CalibrationRecipe(
            corpus=Mixture(parts=tuple(made)) if len(made) > 1 else made[0].corpus,
            filters=() if len(made) > 1 else made[0].filters,
            windows=windows,
            n_samples=DEFAULT_SAMPLES if n_samples is None else n_samples,
            seq_len=length,
            seed=seed,
        )

    return recipe


def _always(corpus: Corpus) -> Callable[[LanguageModel, int], Corpus]:
    return lambda lm, seq_len: corpus


def _random_tokens(seed: int) -> Callable[[LanguageModel, int], Corpus]:
    return lambda lm, seq_len: RandomTokens(tokenizer=lm.tokenizer, length=seq_len, seed=seed)


PROMPTS = ("bos", "random", "chat")
"""Prompts that need no file."""

_NOT_IN_A_SPEC = ("model", "sampling", "seed", "chat", "engine", "reader")


def _self_generation(options: dict[str, Any], seed: int) -> Callable[[LanguageModel, int], Corpus]:
    sampling = Sampling(**taken(options, Sampling))
    chat = Chat(**taken(options, Chat))
    own = taken(options, SelfGeneration, without=_NOT_IN_A_SPEC)
    name = str(options.pop("engine", "transformers"))
    engine = choose(ENGINES, "engine", name, taken(options, class_named(ENGINES, "engine", name)), Engine)
    prompts = own.get("prompts", "random")
    if prompts not in PROMPTS:
        path = home_path(str(prompts))
        is_named = hub_settings(str(prompts)) is not None or _is_class(str(prompts))
        if not is_named and not path.exists() and not any(ending in path.name for ending in READERS):
            raise ConfigError(
                f"there are no prompts {str(prompts)!r}{nearest(str(prompts), (*PROMPTS, *NAMED))}; or give the "
                f"path of a file of documents ({', '.join(READERS)})"
            )
        own["prompts"] = _text(str(prompts), path, {})

    def corpus(lm: LanguageModel, seq_len: int) -> Corpus:
        given = {"max_new_tokens": seq_len} | own
        return SelfGeneration(model=lm, sampling=sampling, seed=seed, chat=chat, engine=engine, **given)

    return corpus


def _text(source: str, path: Path, options: dict[str, Any]) -> Corpus:
    """The hub's dataset of this name, else the file; its rows are fetched, or it is checked that it is there."""
    if (preset := hub_settings(source)) is not None:
        given = {name: options.pop(name) for name in OPTIONS if name in options}
        # another column is asked for by name: then no template stands before it
        own = {"template": ""} if "text_field" in given else {}
        hub = HubCorpus(**(preset | own | given))
        if not options:
            _ = hub.kept
        return hub
    return _file(source, path, options)


def _file(source: str, path: Path, options: dict[str, Any]) -> Corpus:
    if _is_class(source):
        return choose(NO_CORPORA, "source", source, taken(options, _corpus_class(source)), Corpus)
    if not path.exists() and not any(ending in path.name for ending in READERS):
        raise ConfigError(
            f"there is no calibration source {source!r}, and no such file ({', '.join(READERS)}, packed or not, or a "
            f".safetensors with input_ids), nor a folder made by `calibrune calibrate`, nor a class `module:Class`"
            f"{nearest(source, (*SOURCES, *NAMED))}"
        )
    corpus = FileCorpus(path=path, **taken(options, FileCorpus, without=("path",)))
    corpus.check()
    return corpus


def options_of(source: str) -> dict[str, dict[str, Any]]:
    """The options of a kind of source with their defaults, by what they are about."""
    windows = {"windows": {"windows": Windows().policy} | defaults(Windows, without=("policy",))}
    if source == "random":
        return windows
    if source == "selfgen":
        writing = defaults(SelfGeneration, without=_NOT_IN_A_SPEC) | {"engine": "transformers", "preset": None}
        # of a generated text there is no more use than of a whole sequence
        writing["max_new_tokens"] = "the sequence length"
        said = {"writing": writing, "sampling": defaults(Sampling), "chat": defaults(Chat)}
    elif (preset := hub_settings(source)) is not None:
        plain = defaults(HubCorpus, without=("name", "licence", "instead"))
        said = {"dataset": {name: preset.get(name, default) for name, default in plain.items()}}
    elif _is_class(source):
        said = {"yours": dict.fromkeys(sorted(setting_names(_corpus_class(source))))}
    else:
        said = {"file": defaults(FileCorpus, without=("path", "name"))}
    return said | filter_options(source) | windows
