"""Models beside a reference, item by item: what pruning changed, and whether that is more than chance.

Two scores are compared only where all that can change them, but the model, is the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import exp, isclose, isfinite, nan
from pathlib import Path
from statistics import mean
from typing import Any, Literal, cast

from calibrune.durable import parsed, unsealed
from calibrune.errors import ConfigError
from calibrune.evaluation.averages import MIN_BLOCKS, of_neighbours
from calibrune.evaluation.perplexity import MEAN_PERPLEXITY
from calibrune.evaluation.score import Score
from calibrune.uncertainty import CONFIDENCE, Estimate, holm, mcnemar, paired_bootstrap, sign_flip_test, t_of_mean

Scale = Literal["value", "logarithm", "share"]
Verdict = Literal["better", "worse", "no difference shown", "not compared"]

RIGHT_OR_WRONG = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics of the harness, less their filters, whose items are 1 or 0 because an answer is right or wrong. What happens
to be 0 or 1 (the divergence of equal models, a window where they agree on every token) is not."""

FEW_WINDOWS = "windows taken for independent, for there are fewer than " + str(MIN_BLOCKS**2)
"""Said of a test of neighbours that are too few for blocks: it finds a difference a little too easily."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one model."""

    model: str
    """As it was asked for."""
    scores: tuple[Score, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what measured them; empty where nobody wrote them down."""
    command: str = ""
    """The command line that measured them."""

    def as_json(self) -> dict[str, Any]:
        """What `evaluate --json` prints of one model, and `--out` writes."""
        return {
            "model": self.model,
            "scores": list(map(asdict, self.scores)),
            "versions": dict(self.versions),
            "command": self.command,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One score of a model beside the same score of the reference."""

    dataset: str
    metric: str
    reference: str
    model: str
    reference_value: float
    value: float
    higher_is_better: bool
    scale: Scale
    """`logarithm`: the items' mean is the logarithm of the value, as a perplexity's is, and so is the difference.
    `share`: the mean is the value, of which the change is a share, as of a mean of perplexities."""
    difference: Estimate | None
    """The model's mean over the items less the reference's, paired; None where items cannot be paired."""
    p_value: float | None
    """Of "no difference", by itself."""
    p_holm: float | None
    """The same, raised for all comparisons that were made at once."""
    discordant: tuple[int, int] | None
    """Of items that are right or wrong: those that only the reference, and only the model, got right."""
    test: str
    """How the p-value was made, or why there is none."""
    verdict: Verdict

    @property
    def change(self) -> float | None:
        """The difference; of a logarithm or a share, the relative change of the value: 0.1 is 10% more."""
        return None if self.difference is None else self._shown(self.difference.value)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the interval of `change`."""
        found = self.difference
        if found is None or found.low is None or found.high is None:
            return None
        return self._shown(found.low), self._shown(found.high)

    def _shown(self, value: float) -> float:
        if self.scale == "share":
            return value / self.reference_value
        return exp(min(value, 700.0)) - 1 if self.scale == "logarithm" else value


def compare(evaluations: Sequence[Evaluation], *, seed: int = 0, confidence: float = CONFIDENCE) -> list[Comparison]:
    """Every score that the first has, of every other one: paired differences, with Holm's correction over all of them.

    McNemar's test where the items are right or wrong; blocks of neighbours and Student's t where they are windows of
    one text (25 at least); else the paired bootstrap and sign flips. A difference is shown where its interval leaves
    out zero and its corrected p-value is below 1 - `confidence`.

    Raises:
        ConfigError: fewer than two, two scores were not measured in the same way, or none is of the same thing.
    """
    if len(evaluations) < 2:
        raise ConfigError(f"a comparison needs two models or more, got {len(evaluations)}")
    reference, *others = evaluations
    pairs = [(other.model, *pair) for other in others for pair in _pairs(reference, other)]
    found = [_compared(reference.model, *pair, seed, confidence) for pair in pairs]
    tested = [i for i, one in enumerate(found) if one.p_value is not None]
    adjusted = holm([cast(float, found[i].p_value) for i in tested])
    for i, p_holm in zip(tested, adjusted, strict=True):
        found[i] = _judged(found[i], p_holm, 1 - confidence)
    return found


def read_evaluations(path: Path) -> list[Evaluation]:
    """What `evaluate --out` wrote: of one model, or of several that were compared.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        found = unsealed(parsed(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error}); give a file of `evaluate --out`") from None
    parts: list[Any] = found.get("evaluations", [found]) if isinstance(found, dict) else []
    try:
        if not parts:
            raise KeyError("scores")
        return [
            Evaluation(
                str(part["model"]),
                tuple(map(_score, part["scores"])),
                dict(part.get("versions", {})),
                str(part.get("command", "")),
            )
            for part in parts
        ]
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
        raise ConfigError(f"{str(path)!r} holds no scores; give a file that `evaluate --out` wrote") from None


def named_apart(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The same, with a prime behind each name that was there before."""
    named: list[Evaluation] = []
    for one in evaluations:
        name = one.model
        while name in [other.model for other in named]:
            name += "'"
        named.append(replace(one, model=name))
    return named


def left_out(evaluations: Sequence[Evaluation]) -> list[str]:
    """What only some of the models have a score of, for the reader to know: "piqa acc_norm"."""
    everywhere = set.intersection(*({_of(score) for score in one.scores} for one in evaluations))
    return sorted({" ".join(_of(score)) for one in evaluations for score in one.scores if _of(score) not in everywhere})


def _score(record: dict[str, Any]) -> Score:
    # JSON knows no infinity and no nan: both were written as null
    value = nan if record["value"] is None else float(record["value"])
    items = tuple(nan if item is None else float(item) for item in record["items"])
    stderr = None if record["stderr"] is None else float(record["stderr"])
    protocol, kinds = record["protocol"], {"metric": str, "n": int, "higher_is_better": bool}
    if not all(isinstance(record[name], kind) for name, kind in kinds.items()) or not isinstance(record["items"], list):
        raise TypeError
    if not isinstance(protocol.get("dataset"), str) or not isinstance(protocol.get("source", {}), dict):
        raise TypeError
    return Score(**{**record, "value": value, "stderr": stderr, "items": items})


def _of(score: Score) -> tuple[str, str]:
    return score.protocol["dataset"], score.metric


def _pairs(reference: Evaluation, other: Evaluation) -> Iterator[tuple[Score, Score]]:
    """The scores of the same thing, after checking that they were measured alike."""
    matched = False
    for score in reference.scores:
        same = [one for one in other.scores if _of(one) == _of(score)]
        if not same:
            continue
        differing = [_differing(score.protocol, one.protocol) for one in same]
        if {} not in differing:
            what = " ".join(_of(score))
            names = [f"{name} ({_brief(a)}, {_brief(b)})" for name, (a, b) in differing[0].items()]
            raise ConfigError(
                f"{reference.model} and {other.model} were not measured alike: {what} differs in {', '.join(names)}; "
                f"measure both with the same options"
            )
        partner = same[differing.index({})]
        if len(partner.items) != len(score.items):
            raise ConfigError(
                f"{' '.join(_of(score))} has {len(score.items)} items of {reference.model} and {len(partner.items)} of "
                f"{other.model}, so they do not pair; measure both anew"
            )
        matched = True
        yield score, partner
    if not matched:
        raise ConfigError(
            f"{reference.model} and {other.model} have no score of the same thing: "
            f"{_all(reference)} there, {_all(other)} here; measure both on the same texts or tasks"
        )


def _all(evaluation: Evaluation) -> str:
    return ", ".join(sorted({score.protocol["dataset"] for score in evaluation.scores})) or "nothing"


_OUTCOMES = ("source", "note", "cut")
"""Of a protocol, what does not tell how a number was measured: where the text lay, whose hash is compared; and how
many requests a model's context cut. In the parts of a group, what was measured."""


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    one, other = dict(_flat(a)), dict(_flat(b))
    return {name: (one.get(name), other.get(name)) for name in one | other if one.get(name) != other.get(name)}


def _flat(facts: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if name in (("value", "stderr") if under else _OUTCOMES):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{under}{name}.")
        else:
            yield f"{under}{name}", list(value) if isinstance(value, tuple) else value


def _brief(value: Any) -> str:
    said = str(value)
    return said if len(said) <= 16 else f"{said[:12]}..."


def _compared(name: str, model: str, reference: Score, score: Score, seed: int, confidence: float) -> Comparison:
    dataset, metric = _of(score)
    unjudged = Comparison(
        dataset=dataset,
        metric=metric,
        reference=name,
        model=model,
        reference_value=reference.value,
        value=score.value,
        higher_is_better=score.higher_is_better,
        scale="value",
        difference=None,
        p_value=None,
        p_holm=None,
        discordant=None,
        test="",
        verdict="not compared",
    )
    a, b = reference.items, score.items
    if not all(map(isfinite, (reference.value, score.value, *a, *b))):
        return replace(unjudged, test="a value is not finite")
    scales = {scale_of(one.value, one.items) for one in (reference, score)}
    scale = scales.pop() if len(scales) == 1 else None
    if scale is None:
        return replace(unjudged, test="the metric is no mean over items")
    scale = "share" if scale == "value" and metric == MEAN_PERPLEXITY else scale
    label = f"{dataset} {metric}"
    # in a group whose tasks count the same, an item weighs more than 1
    if metric.partition(" (")[0] in RIGHT_OR_WRONG and set(a) | set(b) <= {0.0, 1.0}:
        found = mcnemar(a, b, confidence=confidence)
        return replace(
            unjudged,
            scale=scale,
            difference=found.difference,
            p_value=found.p_value,
            discordant=(found.only_a, found.only_b),
            test=found.method,
        )
    windows = "windows" in score.protocol
    differences = [y - x for x, y in zip(a, b, strict=True)]
    error = of_neighbours(differences, "windows") if windows else None
    if error is not None and error.value is not None and error.blocks is not None:
        difference, p_value = t_of_mean(
            mean(differences), error.value, error.blocks - 1, len(a), confidence=confidence, method=f"t, {error.how}"
        )
        return replace(unjudged, scale=scale, difference=difference, p_value=p_value, test=difference.method)
    return replace(
        unjudged,
        scale=scale,
        difference=paired_bootstrap(a, b, name=label, seed=seed, confidence=confidence),
        p_value=sign_flip_test(a, b, name=label, seed=seed),
        test="sign flips of the items' differences" + (f", {FEW_WINDOWS}" if windows else ""),
    )


def scale_of(value: float, items: Sequence[float]) -> Scale | None:
    """What the mean of a score's items is: its value, or the logarithm of it; None: neither, or there are no items."""
    if not items:
        return None
    middle = mean(items)
    if isclose(middle, value, rel_tol=1e-6, abs_tol=1e-12):
        return "value"
    return "logarithm" if middle < 700 and isclose(exp(middle), value, rel_tol=1e-6) else None


def _judged(one: Comparison, p_holm: float, alpha: float) -> Comparison:
    difference = cast(Estimate, one.difference)
    if difference.holds(0.0) or p_holm >= alpha:
        return replace(one, p_holm=p_holm, verdict="no difference shown")
    return replace(one, p_holm=p_holm, verdict="better" if (difference.value > 0) == one.higher_is_better else "worse")
