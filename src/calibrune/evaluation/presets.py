"""Ways to measure perplexity by name, and how one is read from the options of a SPEC."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from calibrune.errors import ConfigError
from calibrune.evaluation.perplexity import Perplexity, TextPerplexity, WindowPerplexity
from calibrune.evaluation.word_perplexity import WordPerplexity
from calibrune.settings import nearest, taken

KINDS: dict[str, type[WindowPerplexity] | type[TextPerplexity]] = {
    "windows": WindowPerplexity,
    "texts": TextPerplexity,
}
"""Protocols whose settings are chosen: `protocol=windows:seq_len=1024:stride=512`."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A protocol of which nothing is left to choose, so that its name says what a number is."""

    make: Callable[[Mapping[str, str]], Perplexity]
    """The protocol; what is left open is how texts are joined, which is the text's (none: the default)."""
    summary: str
    reads: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By the name of a text: how much of it belongs to the protocol, as settings of `Reading`."""


def _papers(seq_len: int) -> Preset:
    return Preset(
        make=lambda join: WindowPerplexity(seq_len=seq_len, stride=None, bos="tokenizer", **join),
        summary=f"Windows of {seq_len:,} tokens that do not overlap, BOS where the tokenizer puts it (the first window "
        f"at most): what the papers on SparseGPT, Wanda and their successors report. Of C4, the first 256 windows of "
        f"the first 1,100 documents.",
        reads={"c4": {"records": 1100, "limit": 256}},
    )


PRESETS = {
    "pruning-papers-2048": _papers(2048),
    "pruning-papers-4096": _papers(4096),
    "harness-word": Preset(
        make=lambda join: WordPerplexity(),
        summary="Word perplexity of whole, detokenised documents: the task `wikitext` of lm-evaluation-harness, which "
        "must be installed. No number of the pruning papers can be compared with it.",
    ),
    "self-generation-study": Preset(
        make=lambda join: TextPerplexity(average="mean_of_perplexities", max_tokens=None),
        summary="Each text by itself, as long as the model's context takes, and the arithmetic mean of their "
        "perplexities; of Alpaca, the first 10,000 records.",
        reads={"alpaca": {"records": 10_000}},
    ),
}
"""By the name that a SPEC asks for: `protocol=harness-word`."""


def take_protocol(options: dict[str, Any], own: Perplexity, text: str) -> tuple[Perplexity, Preset | None]:
    """The protocol that a SPEC's options ask for, which are taken out of them; and the preset, where one was named.

    Args:
        options: settings without a `protocol` change those of the text's own protocol.
        own: the text's own protocol, of one of the `KINDS`.
        text: what the text is called in errors.

    Raises:
        ConfigError: there is no such protocol, a setting is wrong, or a preset was to be changed.
    """
    name = options.pop("protocol", None)
    # how texts are joined belongs to the text
    join = {"join": own.join} if isinstance(own, WindowPerplexity) else {}
    if name is None:
        kind, given = type(own), asdict(own)  # type: ignore[call-overload]
    elif name in KINDS:
        kind, given = KINDS[name], join if name == "windows" else {}
    elif name in PRESETS:
        preset = PRESETS[name]
        if fixed := next((setting for one in KINDS.values() for setting in taken(dict(options), one)), None):
            raise ConfigError(
                f"{text}: {name} is the name of one way to measure, so {fixed} cannot be chosen too; leave it out, or "
                f"name a kind ({' or '.join(f'protocol={one}' for one in KINDS)}) and its settings"
            )
        return preset.make(join), preset
    else:
        raise ConfigError(f"there is no protocol {str(name)!r}{nearest(str(name), (*PRESETS, *KINDS))}")
    chosen = taken(options, kind)
    return own if name is None and not chosen else kind(**given | chosen), None
