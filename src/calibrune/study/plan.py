"""A study as data: choices of calibration and of pruning, and seeds. It can be listed before it is run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from calibrune.activations.stream import BATCH_TOKENS, Propagate
from calibrune.calibration.spec import is_finished, parse_spec, parts_of, prepare_calibration
from calibrune.errors import ConfigError
from calibrune.evaluation.texts import DATASETS
from calibrune.patterns import parse_target, percent
from calibrune.prune import MIN_EXPERT_TOKENS, check_pattern, needs_data
from calibrune.settings import settings
from calibrune.study.plan_file import placed
from calibrune.study.spec import Evaluation, Model, Recipe, RunSpec, is_remote, located, texts_of

MARGIN = 0.01


@settings
class Grid:
    """Choices, every combination of which is a run."""

    models: tuple[Model, ...]
    calibration: tuple[Recipe, ...] = ()
    pruners: tuple[str, ...]
    patterns: tuple[str, ...]
    allocators: tuple[str, ...] = ("uniform",)
    propagation: tuple[Propagate, ...] = ("pruned",)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Selection:
    """Runs of which all of this is true."""

    where: str
    """File and line, or what it was said with."""
    values: Mapping[str, tuple[str, ...]]

    def matches(self, said: Mapping[str, set[str]]) -> bool:
        """Whether a run that says this of itself is one of them."""
        return all(said.get(name, set()) & set(values) for name, values in self.values.items())


@dataclass(frozen=True)
class StudyPlan:
    """What a study asks, and of which runs it consists."""

    name: str
    grids: tuple[Grid, ...]
    evaluations: tuple[Evaluation, ...]
    proxies: tuple[str, ...] = ()
    title: str = ""
    about: str = ""
    batch_tokens: int = BATCH_TOKENS
    min_expert_tokens: int = MIN_EXPERT_TOKENS
    exclude: tuple[Selection, ...] = ()
    """Runs that are left out."""
    baseline: str | None = None
    """The calibration that all others are compared with; None: each with each."""
    margin: float = MARGIN
    """The smallest difference that would matter, for "they are the same": of an accuracy 0.01 is one point, of a
    perplexity one percent."""
    values: Mapping[str, Any] | None = None
    """As it was read, for the study's folder."""

    @property
    def models(self) -> tuple[Model, ...]:
        """In the order of the plan."""
        return tuple(dict.fromkeys(model for grid in self.grids for model in grid.models))

    @cached_property
    def runs(self) -> tuple[RunSpec, ...]:
        """All runs, a model's dense one first; what differs only in what cannot change the result is one run.

        Raises:
            ConfigError: a combination is impossible, or an exclusion leaves nothing out.
        """
        found: dict[RunSpec, None] = {}
        hits = [0] * len(self.exclude)
        for model in self.models:
            found[self._spec(model=model)] = None
            for grid in self.grids:
                for spec in self._combinations(grid, model):
                    said = what_it_says(spec)
                    out = [i for i, one in enumerate(self.exclude) if one.matches(said)]
                    for i in out:
                        hits[i] += 1
                    if not out:
                        found[_without_idle(spec)] = None
        for one, n in zip(self.exclude, hits, strict=True):
            if not n:
                raise placed(one.where, ConfigError("no run is like this, so nothing is left out; see --dry-run"))
        if len(found) == len(self.models) and self.exclude:
            raise placed(self.exclude[-1].where, ConfigError("every run is left out but the dense one; see --dry-run"))
        return tuple(found)

    def chosen(self, only: Selection | None) -> tuple[RunSpec, ...]:
        """The runs that a selection is of, and the dense ones that they are compared with; None: all.

        Raises:
            ConfigError: no run is like this.
        """
        if only is None:
            return self.runs
        pruned = {spec for spec in self.runs if spec.pruner and only.matches(what_it_says(spec))}
        if not pruned:
            raise ConfigError(f"{only.where}: no run of {self.name} is all of this; see --dry-run")
        models = {spec.model for spec in pruned}
        return tuple(spec for spec in self.runs if spec in pruned or (not spec.pruner and spec.model in models))

    def check(self, data: Path | None, *, fetch: bool = False) -> None:
        """Raise a `CalibruneError` for all that can be known without a model; what is on the hub only if `fetch`."""
        for recipe in dict.fromkeys(spec.calibration for spec in self.runs if spec.calibration):
            spec = located(recipe.spec, data)
            if fetch or not is_remote(spec):
                try:
                    prepare_calibration(spec, n_samples=recipe.samples, seq_len=recipe.seq_len)
                except Exception as error:
                    error.add_note(f"in the calibration {recipe.name!r}; --data DIR names the folder of its files")
                    raise
        for text in dict.fromkeys(text for one in self.evaluations for text in one.texts):
            if data is not None or parse_spec(text)[0] not in DATASETS:
                texts_of(text, data)

    def _spec(self, **choices: Any) -> RunSpec:
        return RunSpec(
            evaluations=self.evaluations,
            proxies=self.proxies,
            batch_tokens=self.batch_tokens,
            min_expert_tokens=self.min_expert_tokens,
            **choices,
        )

    def _combinations(self, grid: Grid, model: Model) -> Iterator[RunSpec]:
        if model not in grid.models:
            return
        recipes: tuple[Recipe | None, ...] = grid.calibration or (None,)
        # a set of data and seed serves the runs that come one after another
        axes = (grid.seeds, recipes, grid.propagation, grid.pruners, grid.allocators, grid.patterns)
        for seed, recipe, propagation, pruner, allocator, pattern in product(*axes):
            yield self._spec(
                model=model,
                calibration=recipe,
                pruner=pruner,
                pattern=pattern,
                allocator=allocator,
                propagation=propagation,
                seed=seed,
            )


def what_it_says(spec: RunSpec) -> dict[str, set[str]]:
    """What an exclusion can go by, each in all the ways in which it can be written."""
    said = {
        "model": {spec.model.name},
        "pruner": {str(spec.pruner), parse_spec(str(spec.pruner))[0]},
        "pattern": {str(spec.pattern), percent(str(spec.pattern))},
        "allocator": {str(spec.allocator), parse_spec(str(spec.allocator))[0]},
        "propagation": {str(spec.propagation)},
        "seed": {str(spec.seed)},
    }
    if recipe := spec.calibration:
        sources = [parse_spec(part) for part in parts_of(recipe.spec)]
        for _, options in sources:
            said |= {name: {str(value)} for name, value in options.items()}
        said |= {name: {str(getattr(recipe, name))} for name in ("samples", "seq_len", "pool")}
        said |= {"source": {recipe.source, *(name for name, _ in sources)}, "calibration": {recipe.name, recipe.spec}}
    return said


def _without_idle(spec: RunSpec) -> RunSpec:
    """The run without what cannot change its result; a `ConfigError` if it cannot be done."""
    pruner, allocator, target = spec.method, spec.sharing, parse_target(str(spec.pattern))
    assert pruner is not None
    assert allocator is not None
    try:
        check_pattern(pruner, target, allocator)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; or leave it out: exclude: [{{pruner: {spec.pruner}, allocator: {spec.allocator}, pattern: "
            f"{percent(target)!r}}}]"
        ) from None
    reader = needs_data(pruner, allocator)
    if reader is None:
        return replace(spec, calibration=None, seed=None, propagation=None, proxies=())
    if spec.calibration is None:
        raise ConfigError(f"{reader} needs calibration data, and the plan names none: add `calibration: [...]`")
    # finished tokens are the same for every seed, unless they are a pool to draw from
    is_fixed = is_finished(spec.calibration.spec) and spec.calibration.pool is None
    return replace(
        spec, propagation=spec.propagation if pruner.requires else None, seed=None if is_fixed else spec.seed
    )


def as_yaml(plan: StudyPlan) -> str:
    """The plan in one file, with all that it extends and that was said on the command line."""
    return yaml.safe_dump(dict(plan.values or {}), sort_keys=False, allow_unicode=True)
