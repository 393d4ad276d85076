"""Several sets under every proxy, and which one to take: a ranking with its reason, and what speaks against it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, sqrt
from statistics import stdev
from typing import Any

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import parse_spec
from calibrune.errors import ConfigError
from calibrune.proxies import PROXIES, Context, PerSample, Proxy
from calibrune.proxies.proxy import check_scorable
from calibrune.settings import choose

CRITERION = "min_k_plus_plus"
"""What sets are ranked by, unless told otherwise."""

OWN_SAMPLES = "selfgen:drop_highest=0:among=1"
"""The SPEC of the model's own samples: the study's decoding, nothing filtered."""

RECORD = "compare.json"
"""What a comparison leaves in its folder: every number."""

WRONG_WAY = ("min_k_plus_plus", "min_k", "perplexity", "token_divergence", "activation_distance", "outlier_coverage")
"""Proxies by which sets that prune worse looked better, on all models of docs/evidence.md with a known pre-training."""

REPEATS = 0.2
"""A share of repeated runs of tokens from which on a set is warned of: prose at 2,048 tokens has a few hundredths."""


@dataclass(frozen=True)
class Measured:
    """What the proxies say of one set."""

    name: str
    fingerprint: str
    values: dict[str, float]
    """By the proxy's name."""
    samples: dict[str, list[float]]
    """A number for every sample, of the proxies that have such."""


@dataclass(frozen=True)
class Ranking:
    """Sets from the best to the worst by one proxy."""

    by: str
    order: tuple[str, ...]
    reason: str
    cautions: tuple[str, ...]


def proxy_of(text: str) -> Proxy:
    """The proxy that is called so: NAME[:key=value], or `module:Class`.

    Raises:
        ConfigError: there is none, or a setting is wrong.
    """
    return choose(PROXIES, "proxy", *parse_spec(text), Proxy)


def proxies_with(by: str = CRITERION) -> dict[str, Proxy]:
    """All of the table with their defaults, and the one to rank by, where it is not among them."""
    made: dict[str, Proxy] = {name: kind() for name, kind in PROXIES.items()}
    return made if by in made else made | {by: proxy_of(by)}


def measure(name: str, data: CalibrationSet, context: Context, proxies: Mapping[str, Proxy] | None = None) -> Measured:
    """Measure a set by every proxy (the table's own with their defaults, unless others are given)."""
    chosen = proxies_with() if proxies is None else proxies
    return Measured(
        name,
        data.fingerprint,
        {key: proxy.measure(data, context) for key, proxy in chosen.items()},
        {key: proxy.per_sample(data, context) for key, proxy in chosen.items() if isinstance(proxy, PerSample)},
    )


def of_one_size(sets: Sequence[CalibrationSet]) -> list[CalibrationSet]:
    """The sets cut to as many samples, and as many tokens in each, as all have: several proxies grow with the size.

    Raises:
        CalibrationError: a sample has no token that could be scored.
    """
    n, length = min(one.n_samples for one in sets), min(one.seq_len for one in sets)
    cut = [_cut(one.take(n), length) for one in sets]
    for one in cut:
        check_scorable(one)
    return cut


def check_criterion(by: str) -> None:
    """Raise `ConfigError` unless sets can be ranked by this proxy."""
    if proxy_of(by).better == "unknown":
        raise ConfigError(f"of {by!r} nobody knows whether more is better: rank by another proxy, such as {CRITERION}")


def rank(measured: Sequence[Measured], by: str = CRITERION) -> Ranking:
    """Order the sets by one proxy, and say why, and what the order does not say.

    Raises:
        ConfigError: there is no such proxy, or it points no way.
    """
    check_criterion(by)
    sign = -1 if proxy_of(by).better == "higher" else 1
    # what cannot be told comes last
    ordered = sorted(measured, key=lambda one: _key(one.values[by], sign))
    return Ranking(by, tuple(one.name for one in ordered), _reason(ordered, by), tuple(_cautions(ordered, by)))


def standard_error(samples: Sequence[float] | None) -> float | None:
    """Of the mean over the samples; None for fewer than two, or where one is not finite."""
    if samples is None or len(samples) < 2 or not all(map(isfinite, samples)):
        return None
    return stdev(samples) / sqrt(len(samples))


def _cut(one: CalibrationSet, length: int) -> CalibrationSet:
    if one.seq_len == length:
        return one
    part_of = {"n_samples": one.n_samples, "seq_len": one.seq_len, "fingerprint": one.fingerprint}
    stale = {"real_tokens"}
    if any(len(names) > 1 for names in one.manifest.get("document_ids", ())):
        # nobody recorded where in a sample one document ends and the next begins
        stale |= {"document_ids", "text_sha256", "contamination"}
    manifest = {key: value for key, value in one.manifest.items() if key not in stale} | {"part_of": part_of}
    mask = one.attention_mask
    return CalibrationSet(one.input_ids[:, :length], manifest, None if mask is None else mask[:, :length])


def _key(value: float, sign: int) -> tuple[bool, float]:
    return (not isfinite(value), sign * value if isfinite(value) else 0.0)


def _reason(ordered: Sequence[Measured], by: str) -> str:
    kind, best = proxy_of(by), ordered[0]
    said = f"{best.name} comes first by {by} ({best.values[by]:.4g}; {kind.better} is better): {kind.founded}."
    if len(ordered) < 2:
        return said
    second = ordered[1]
    gap = f"{second.name} follows with {second.values[by]:.4g}"
    spread = _spread(best, second, by)
    if spread is None:
        return f"{said} {gap}."
    far = abs(best.values[by] - second.values[by]) / spread if spread else float("inf")
    verdict = "more than the samples' noise" if far >= 2 else "not told apart: take either"
    return f"{said} {gap}, {far:.1f} standard errors away: {verdict}."


def _spread(one: Measured, other: Measured, by: str) -> float | None:
    """Standard error of the difference of two means over samples."""
    errors = [standard_error(each.samples.get(by)) for each in (one, other)]
    # the median of perplexities is no mean, and has no such error
    if by == "perplexity" or errors[0] is None or errors[1] is None:
        return None
    return sqrt(errors[0] ** 2 + errors[1] ** 2)


def _cautions(ordered: Sequence[Measured], by: str) -> list[str]:
    said = [
        f"Which set is best for the pruned model no such number has told so far{_contradicted(by)}: they say which set "
        "to try first; docs/evidence.md has what was measured.",
        "One draw of each set, with one seed: in the study, draws of one source differ by 0.7 to 1.0 points of "
        "accuracy. Compare again with another seed before you believe a small difference.",
        "Perplexity on WikiText-2 is not among the criteria, and never chooses data: it ranks Wikipedia best where "
        "accuracy ranks it worst.",
    ]
    if by != "perplexity" and len(ordered) > 1 and all("perplexity" in one.values for one in ordered):
        likeliest = min(ordered, key=lambda one: _key(one.values["perplexity"], 1))
        agree = likeliest.name == ordered[0].name
        verdict = "puts the same one first" if agree else f"says otherwise: {likeliest.name} is the most likely text"
        said.insert(0, f"Perplexity {verdict}.")
    if unknown := [one.name for one in ordered if isnan(one.values.get("effective_documents", 0.0))]:
        said.append(
            f"No effective_documents of {', '.join(unknown)}: the documents are not recorded, or samples of several "
            f"were cut shorter, and nothing says which of them are left."
        )
    if narrow := [one.name for one in ordered if _is_narrow(one)]:
        said.append(
            f"Of few documents: {', '.join(narrow)}, with fewer than one for every two samples, so what is said of "
            f"them is said of those documents; windows=long_documents takes each sample from another one."
        )
    for one in ordered:
        if (share := one.values.get("repetition", 0.0)) > REPEATS:
            said.append(
                f"{one.name} repeats itself ({share:.0%} of its runs of tokens): loops look likely to any model."
            )
    return said


def _contradicted(by: str) -> str:
    if by not in WRONG_WAY:
        return ""
    return f", and on three small models whose pre-training is known sets that are better by {by} pruned worse"


def _is_narrow(one: Measured) -> bool:
    samples = max(map(len, one.samples.values()), default=0)
    return one.values.get("effective_documents", float("inf")) < samples / 2


def as_record(measured: Measured) -> dict[str, Any]:
    """As JSON, but for inf and nan."""
    errors = {name: standard_error(samples) for name, samples in measured.samples.items()}
    return {
        "name": measured.name,
        "fingerprint": measured.fingerprint,
        "values": measured.values,
        "standard_errors": errors,
        "samples": measured.samples,
    }
