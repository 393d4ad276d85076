"""One run of a study: what it is, as a value, and its key: a hash of everything that can change its result."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge

from calibrune.activations.stream import BATCH_TOKENS, Propagate
from calibrune.allocators import ALLOCATORS, Allocator
from calibrune.calibration.spec import PROMPTS, SOURCES, parse_spec, parts_of
from calibrune.checkpoint import versions
from calibrune.corpora.named import hub_settings
from calibrune.errors import ConfigError
from calibrune.evaluation.perplexity import Bos
from calibrune.evaluation.tasks import harness_version
from calibrune.evaluation.texts import DATASETS, EvaluationTexts, evaluation_texts, protocol_of
from calibrune.evaluation.word_perplexity import WordPerplexity
from calibrune.lm.loading import DtypeName
from calibrune.patterns import percent
from calibrune.prune import MIN_EXPERT_TOKENS
from calibrune.pruners import PRUNERS, Pruner
from calibrune.settings import choose, record, settings

FORMAT = 1
"""Counts changes of the runner that change a result."""


@settings
class Model:
    """A model of a study, as `load_model` takes it."""

    name: str
    """Hub id, folder, .gguf file, or package:NAME."""
    revision: str | None = None
    dtype: DtypeName = "auto"


@settings
class Recipe:
    """One choice of calibration data; the seed is the run's."""

    name: str
    """What it is called in tables: the source, and what else varies."""
    source: str
    """The source alone, for tables."""
    spec: str
    """As for `calibrune prune --calibration`; files in the data folder without that folder."""
    samples: Annotated[int, Ge(1)] | None = None
    """Sequences; None: 128, or all of a token file."""
    seq_len: Annotated[int, Ge(2)] | None = None
    """Tokens in a sequence; None: 2048, or the model's context."""
    pool: Annotated[int, Ge(1)] | None = None
    """Draw the samples, by the seed, from a set of so many that is the same for every seed; None: from the corpus."""


@settings
class Evaluation:
    """One measurement of every model: perplexities, or tasks."""

    perplexity: str | None = None
    """Texts as for `calibrune evaluate`, NAME[:key=value] with commas."""
    tasks: str | None = None
    """Of lm-evaluation-harness, with commas; `study`: seven of them."""
    limit: Annotated[int, Ge(1)] | None = None
    """The first so many texts or windows; of tasks, so many documents of each, drawn once for the whole study."""
    seq_len: Annotated[int, Ge(2)] | None = None
    """Tokens in a window, as `bos` where the text does not say."""
    bos: Bos | None = None
    against: Literal["dense"] | None = None
    """Of perplexities: also the KL divergence from the dense model, and the top-1 agreement with it."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The single texts; none where tasks are measured."""
        return tuple(parts_of(self.perplexity)) if self.perplexity is not None else ()

    def __post_init__(self) -> None:
        if (self.perplexity is None) == (self.tasks is None):
            raise ConfigError("an evaluation measures either `perplexity: TEXTS` or `tasks: NAMES`")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: a model, how it is pruned, and what is measured. None: of no account for this run."""

    model: Model
    calibration: Recipe | None = None
    pruner: str | None = None
    """NAME[:key=value]; None: the dense model."""
    pattern: str | None = None
    allocator: str | None = None
    propagation: Propagate | None = None
    seed: int | None = None
    """Of the calibration data: nothing else in a run is drawn."""
    evaluations: tuple[Evaluation, ...] = ()
    proxies: tuple[str, ...] = ()
    batch_tokens: int = BATCH_TOKENS
    min_expert_tokens: int = MIN_EXPERT_TOKENS
    weights: str | None = None
    """Fingerprint of the dense weights, and their dtype; None: the model was not loaded yet."""
    inputs: str | None = None
    """Hash of what is read, by content: the calibration source (files, a hub's commit, ...), texts and tasks of the
    evaluations; None: as above."""

    @property
    def id(self) -> str:
        """Twelve hex digits of what the plan says of this run: known without the model."""
        return hash_of(self._asked())

    @property
    def key(self) -> str:
        """Twelve hex digits of everything that can change the result but rounding: where files lie is not in it."""
        asked = self._asked() | {
            "model": self.weights or asdict(self.model),
            "weights": self.weights,
            "inputs": self.inputs,
            "methods": [record(one) if one else None for one in (self.method, self.sharing)],
            "versions": _versions_of(self),
            "format": FORMAT,
        }
        return hash_of(asked)

    @property
    def method(self) -> Pruner | None:
        """The pruner; None for the dense model."""
        return None if self.pruner is None else pruner_of(self.pruner)

    @property
    def sharing(self) -> Allocator | None:
        """The allocator; None for the dense model."""
        return None if self.allocator is None else allocator_of(self.allocator)

    def __str__(self) -> str:
        model = Path(self.model.name).name
        if self.pruner is None:
            return f"{model}, dense"
        parts = [model, self.pruner, percent(str(self.pattern))]
        parts += [self.allocator] if self.allocator not in (None, "uniform") else []
        parts += ["dense propagation"] if self.propagation == "dense" else []
        parts += [self.calibration.name] if self.calibration else []
        return ", ".join(filter(None, parts)) + ("" if self.seed is None else f", seed {self.seed}")

    def pinned(self, weights: str, inputs: str) -> "RunSpec":
        """The same run, of these weights and this content."""
        return replace(self, weights=weights, inputs=inputs)

    def to_json(self) -> dict[str, Any]:
        """All fields, for a row."""
        return asdict(self)

    def _asked(self) -> dict[str, Any]:
        asked = asdict(self)
        # names are for tables; weights and inputs are found, not asked for
        for name in ("weights", "inputs"):
            del asked[name]
        for evaluation in asked["evaluations"]:
            if evaluation["against"] is None:  # so that rows keep their ids which are older than this setting
                del evaluation["against"]
        asked["model"]["trust_remote_code"] = False  # no plan may say so any more; the rows of before it know it
        if asked["calibration"]:
            asked["calibration"] = {k: v for k, v in asked["calibration"].items() if k not in ("name", "source")}
        if self.calibration is None:
            asked["proxies"] = ()
        return asked


def _versions_of(spec: RunSpec) -> dict[str, str]:
    kept = {name: version for name, version in versions().items() if name != "python"}
    texts = [text for one in spec.evaluations for text in one.texts]
    by_harness = any(one.tasks for one in spec.evaluations) or any(
        isinstance(protocol_of(text)[0], WordPerplexity) for text in texts
    )
    return kept | ({"lm_eval": harness_version()} if by_harness else {})


def pruner_of(text: str) -> Pruner:
    """The method that a plan names: NAME[:key=value]."""
    return choose(PRUNERS, "method", *parse_spec(text), Pruner)


def allocator_of(text: str) -> Allocator:
    """The allocator that a plan names: NAME[:key=value]."""
    return choose(ALLOCATORS, "allocator", *parse_spec(text), Allocator)


def render(name: str, options: Mapping[str, Any]) -> str:
    """What `parse_spec` reads: the options in the order of their names.

    >>> render("selfgen", {"prompts": "bos", "prefix_tokens": 2})
    'selfgen:prefix_tokens=2:prompts=bos'
    """
    return ":".join([name, *(f"{key}={_value(options[key])}" for key in sorted(options))])


def _value(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[\w./+-]+", value) and yaml.safe_load(value) == value
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def located(spec: str, data: Path | None) -> str:
    """A calibration SPEC in which the files that are in the data folder have their path."""
    parts = []
    for source, options in map(parse_spec, parts_of(spec)):
        found = {key: _in_folder(value, data) if isinstance(value, str) else value for key, value in options.items()}
        named = source in SOURCES or hub_settings(source) is not None
        parts.append(render(source if named else _in_folder(source, data), found))
    return ",".join(parts)


def texts_of(spec: str, data: Path | None) -> EvaluationTexts:
    """What a perplexity is measured on, wherever it is: in the data folder, at its path, or on the hub.

    Raises:
        ConfigError, CorpusError: as `evaluation_texts`.
    """
    name = parse_spec(spec)[0]
    place = name if name in DATASETS else _in_folder(name, data)
    return evaluation_texts(place + spec.removeprefix(name), data)


def is_remote(spec: str) -> bool:
    """Whether a SPEC reads from the hub, so that to check it whole is to fetch it."""
    named = [name for source, options in map(parse_spec, parts_of(spec)) for name in (source, options.get("prompts"))]
    return any(isinstance(name, str) and hub_settings(name) is not None for name in named if name not in PROMPTS)


def _in_folder(name: str, data: Path | None) -> str:
    if data is None or not name.strip("./") or name in PROMPTS:
        return name
    path = data / name
    return str(path) if path.exists() else name


def hash_of(value: Any) -> str:
    """Twelve hex digits of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
