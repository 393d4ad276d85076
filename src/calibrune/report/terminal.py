"""What the verbs found, as text for a terminal: short, aligned, and no wider than the terminal is."""

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calibrune.evaluation.score import Score
from calibrune.patterns import Unstructured, parse_pattern, percent
from calibrune.report.layers import Layer, by_kind, one_by_one, remarks, worst
from calibrune.report.tables import Table
from calibrune.sparsity import kernels, stored_bytes

WIDEST = 110
"""Lines longer than this are hard to read, however wide the terminal."""


def columns() -> int:
    """How many columns a line may take."""
    return max(40, min(WIDEST, shutil.get_terminal_size().columns))


def set_text(manifest: Mapping[str, Any]) -> str:
    """A calibration set: its name and size, and how it came to be."""
    dropped = manifest.get("dropped") or {}
    source = manifest["source"]
    parts = {f"part {i}": _part(part) for i, part in enumerate(source.get("parts", ()), 1)}
    nested = {key: _facts(value) for key, value in source.items() if isinstance(value, Mapping)}
    alone = ("parts", "licence", *nested)
    about = {
        "source": _facts({key: value for key, value in source.items() if key not in alone}),
        **nested,
        **parts,
        "licence": source.get("licence") or "",
        "documents": _documents(manifest),
        "windows": _facts(manifest.get("windows") or {}),
        "filters": "; ".join(_facts(one) for one in manifest.get("filters") or []),
        "dropped": ", ".join(f"{n:,} {reason}" for reason, n in dropped.items()),
        "seed": str(manifest.get("seed", "")),
    }
    head = f"calibration set {manifest['fingerprint']}: {_sequences(manifest)}"
    return "\n".join([head, *_named(about)])


def checkpoint_text(manifest: Mapping[str, Any], *, every_layer: bool = False) -> str:
    """A pruned model: what was asked, what came of it, on which data, and its layers by kind or one by one."""
    request, report, calibration = manifest["request"], manifest["report"], manifest["calibration"]
    settings = {key: value for key, value in request["pruner"].items() if key != "name"}
    about = {
        "method": request["pruner"]["name"] + (f" ({_facts(settings)})" if settings else ""),
        "zeros": f"{report['sparsity']:.2%} of the weights of {len(report['layers'])} layers, which are "
        f"{report['coverage']:.1%} of the model{_of_decoder(report)}{_rounding(report['layers'])}",
        **_not_covered(report),
        "calibration": _calibration(calibration),
        **remarks(report["layers"]),
        "allocation": f"{_facts(request['allocation'], first='name')}; propagation {request['propagate']}",
        "on disk": _on_disk(request, report),
        "speed": _speed(request, report["layers"]),
        "took": f"{report['seconds']:.0f} s for the pruning",
    }
    head = f"{request['model']['name']}, pruned to {percent(request['pattern'])} (run {manifest['key']})"
    return "\n".join([head, *_named(about), *_layers(report["layers"], every_layer)])


def model_text(found: Mapping[str, Any], *, every_layer: bool = False) -> str:
    """A model: its size, what of it can be pruned, and its layers by kind or one by one."""
    context = found["context_length"]
    about = {
        "parameters": f"{found['parameters']:,} in {found['dtype']}",
        "prunable": f"{found['coverage']:.1%} of them{_of_decoder(found)}, in {len(found['layers'])} layers of "
        f"{found['blocks']} blocks",
        **_not_covered(found),
        "context": f"{context:,} tokens" if context else "not known",
        "vocabulary": f"{found['vocab_size']:,} tokens",
    }
    head = f"{found['source']['name']} ({found['architecture']})"
    return "\n".join([head, *_named(about), *_layers(found["layers"], every_layer)])


def _of_decoder(found: Mapping[str, Any]) -> str:
    """The share of the decoder blocks, where it is recorded."""
    share = found.get("decoder_coverage")
    return "" if share is None else f" and {share:.1%} of its decoder blocks"


def _not_covered(found: Mapping[str, Any]) -> dict[str, str]:
    """What of the decoder is left alone and why, and what looks like several matrices but is pruned as one."""
    reasons: dict[str, list[int]] = {}
    for weight in found.get("skipped", ()):
        reasons.setdefault(weight["reason"], []).append(weight["size"])
    said = {}
    if reasons:
        said["left alone"] = "; ".join(
            f"{len(sizes)} matrices of {sum(sizes):,} weights: each {reason}" for reason, sizes in reasons.items()
        )
    if unsplit := found.get("unsplit"):
        said["one or several"] = (
            f"{len(unsplit)} matrices look like several stored as one, and are pruned as one: {unsplit[0]}, ..."
        )
    return said


def scores_text(scores: Sequence[Score]) -> str:
    """Scores in a table, and under it the protocol of each: everything that can change the number."""
    rows = [[s.protocol["dataset"], s.metric, s.value, s.stderr, s.n] for s in scores]
    protocols: dict[str, str] = {}
    for score in scores:
        said = {key: value for key, value in score.protocol.items() if key not in _IN_JSON_ONLY}
        protocols[score.protocol["dataset"]] = _facts(said, first="protocol")
        if tasks := score.protocol.get("tasks"):
            protocols[score.protocol["dataset"]] += f"; {len(tasks)} tasks, each in --json"
        if note := score.protocol["source"].get("note"):
            protocols[score.protocol["dataset"]] += f". {note}"
    column = "task" if all("harness" in score.protocol for score in scores) else "text"
    return "\n".join([Table([column, "metric", "value", "std. error", "n"], rows).text(), "", *_named(protocols)])


_IN_JSON_ONLY = (
    *("dataset", "source", "average", "tasks", "documents", "requests_sha256", "metric_key", "metric_keys", "preset"),
)
"""What is too long, or said already."""


def choices_text(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Names to choose from, each with what it is, and with its options by what they are about."""
    lines: list[str] = []
    for name, entry in entries.items():
        lines += [name, *_wrapped(entry["summary"], "    ")]
        if "command" in entry:  # to be copied, so in one line
            lines.append(f"      {entry['command']}")
        groups = {
            group: ", ".join(f"{option}={_shown(default)}" for option, default in options.items())
            for group, options in entry["options"].items()
        }
        lines += _named(groups, indent="    ")
    return "\n".join(lines)


def _documents(manifest: Mapping[str, Any]) -> str:
    """How many documents are in the samples, which are few where long ones are cut into many samples."""
    used = {name for names in manifest.get("document_ids") or () for name in names}
    looked = manifest.get("documents_looked_at")
    return f"{len(used):,} in the samples" + (f", of {looked:,} looked at" if looked else "") if used else ""


def _part(part: Mapping[str, Any]) -> str:
    """Of a mixture: what it is of, how much it weighs, and what only its own documents meet."""
    said = f"{_facts(part['source'])}; weight={_shown(part.get('weight', 1.0))}"
    return "; ".join([said, *(_facts(one) for one in part.get("filters") or ())])


def _calibration(manifest: Mapping[str, Any] | None) -> str:
    if manifest is None:
        return "none; the method needs none"
    source = manifest["source"]
    name = source.get("name") or source.get("file") or source["kind"]
    return f"{_sequences(manifest)}; source {name}, fingerprint {manifest['fingerprint']}"


def _sequences(manifest: Mapping[str, Any]) -> str:
    padded = f" ({manifest['real_tokens']:,} real ones, the rest is padding)" if "real_tokens" in manifest else ""
    return f"{manifest['n_samples']:,} sequences of {manifest['seq_len']:,} tokens{padded}"


def _on_disk(request: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What the zeros would save where they were packed, which they are not."""
    sizes = stored_bytes(report["layers"], report["parameters"], request["model"].get("dtype", "float32"))
    mb = {name: f"{number / 1e6:,.1f} MB" for name, number in sizes.items()}
    said = f"{mb['dense']}, dense, zeros included: no smaller than before. Packed, which no mainstream engine loads: "
    said += f"{mb['bitmask']} as a bit mask and values, {mb['coded']} with the mask coded"
    return said + (f", {mb['2:4']} in PyTorch's 2:4 format" if "2:4" in mb else "")


def _speed(request: Mapping[str, Any], layers: Sequence[Layer]) -> str:
    """What will run faster, and what will not."""
    asked = {layer["asked"] for layer in layers}
    if "2:4" not in asked:
        kind = "N:M other than 2:4" if all(":" in one for one in asked) else "unstructured sparsity"
        return f"as before: no mainstream engine runs {kind} faster"
    dtype = request["model"].get("dtype", "float32")
    taken = sum(layer["asked"] == "2:4" and bool(kernels(layer["shape"], dtype)) for layer in layers)
    said = "as before in any engine that loads the folder as it is; PyTorch's to_sparse_semi_structured takes "
    said += (
        f"{taken} of the {len(layers)} layers in {dtype}, on CUDA from compute capability 8.0 on, and those may gain"
    )
    return said + ("" if dtype != "float32" else " (more do in bfloat16)")


def _layers(layers: Sequence[Layer], every_layer: bool) -> list[str]:
    """A table of kinds, and one of the layers that lost most of their output; or one of all layers."""
    if every_layer:
        return ["", one_by_one(layers).text()]
    shown = ["", by_kind(layers).text()]
    if (most := worst(layers)) and len(most) < len(layers):
        shown += ["", f"the {len(most)} of {len(layers)} layers whose output changed most (--layers shows all):"]
        shown += ["", one_by_one(most).text()]
    return shown


def _rounding(layers: Sequence[Layer]) -> str:
    """Why a layer has fewer zeros than were asked for, by the first that has; where all were asked for the same."""
    for layer in layers if len({layer["asked"] for layer in layers}) == 1 else ():
        (n_out, n_in), pattern = layer["shape"], parse_pattern(layer["asked"])
        if isinstance(pattern, Unstructured) and layer["pruned"] == n_out * pattern.n_pruned(n_in):
            exact = pattern.sparsity * n_in
            if not exact.is_integer():
                asked = f"{percent(layer['asked'])} of {n_in:,} is {exact:,.1f}"
                return f" (rounded down in each row: {asked}, so {pattern.n_pruned(n_in):,} go)"
    return ""


def _facts(facts: Mapping[str, Any], first: str = "kind") -> str:
    """A record in one line: "wanda, power=0.5"; what is not known is left out, hashes are cut to twelve digits."""
    said = [f"{name}={_shown(value)}" for name, value in _flat(facts) if name != first]
    return ", ".join([*([str(facts[first])] if first in facts else []), *said])


def _flat(facts: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{under}{name}.")
        elif value is not None:
            yield f"{under}{name}", value


def _shown(value: Any) -> str:
    """As it is written in a SPEC."""
    if isinstance(value, str):
        is_hash = len(value) == 64 and not set(value) - set("0123456789abcdef")
        return value[:12] if is_hash else repr(value) if "\n" in value or value != value.strip() else value
    return json.dumps(value, default=str)


def _named(facts: Mapping[str, str], indent: str = "  ") -> list[str]:
    """A line for each fact that there is, its name before it; long ones go on under their own beginning."""
    there = {name: text for name, text in facts.items() if text}
    width = max(map(len, there), default=0)
    return [
        line
        for name, text in there.items()
        for line in _wrapped(text, f"{indent}{name:<{width}}  ", " " * (len(indent) + width + 2))
    ]


def _wrapped(text: str, first: str, rest: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        width=columns(),
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
