"""The errors that this package raises on purpose: one sentence that says what was asked, what was found, what to do.

And what may be said at all, in an error or elsewhere: nothing that a terminal obeys, and no secret.
"""

import os
import re

SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CALIBRUNE_API_KEY", "OPENAI_API_KEY")
"""Variables of the environment whose values are never shown."""

SHORTEST = 8
"""Characters that such a value has at least; with fewer it is none, and would be found in everything."""

_WORD = re.compile(r"(?:sha256:)?[\w.-]{1,80}")
"""A name, a number or a hash."""

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, moves, erasing
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # titles, links, the clipboard
    r"|\x1b[ -/]*[0-~]"
)
"""What a terminal obeys, with what it is told."""

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
"""Single characters that a terminal obeys, that turn the direction of writing, or that hide text; not \\t and \\n."""

_HIDDEN = (
    (re.compile(r"(?<=://)[^/\s@'\"\\]+@"), "***@"),
    (
        re.compile(
            r"(?i)(?<=[?&])([\w-]*(?:token|key|secret|password|signature|credential|sig|auth)[\w-]*=)[^&\s'\"\\]+"
        ),
        r"\1***",
    ),
    (re.compile(r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?)(?:(bearer|basic|token)\s+)?[^\s'\",\\]+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{6,}"), r"\1***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bsk-[\w-]{16,}"), "***"),
)
"""Names and passwords in addresses, tokens in their queries and in headers, and what looks like a key of a hub."""


def plain(text: str) -> str:
    """The text without anything that a terminal obeys, and nothing that turns or hides what follows.

    >>> plain("a \\x1b[31mred\\x1b[0m model\\r, and \\u202egnp.exe")
    'a red model , and  gnp.exe'
    """
    return _UNSEEN.sub(" ", _SEQUENCE.sub("", text))


def without_secrets(text: str, *, of_a_record: bool = False) -> str:
    """The text with stars for passwords and tokens: in addresses, in headers, and of the environment.

    Args:
        of_a_record: it is a key or a value of a record. There a single word is what it is, a name or a hash, and not
            mistaken for a key such as `token` that somebody gives to a server which wants none; a long one that is a
            secret as a whole is.

    >>> without_secrets("https://me:word@host/v1?token=abc&n=1 refused Authorization: Bearer abcdef")
    'https://***@host/v1?token=***&n=1 refused Authorization: ***'
    """
    is_word = of_a_record and _WORD.fullmatch(text)
    for name in SECRETS:
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST and (not is_word or (text == value and len(value) >= 2 * SHORTEST)):
            text = text.replace(value, "***")
    for pattern, instead in _HIDDEN:
        text = pattern.sub(instead, text)
    return text


class CalibruneError(Exception):
    """Base class: `except CalibruneError` catches every deliberate failure of this package."""

    exit_status = 2
    """What the command line ends with: 2 for a request that cannot be met (nothing was written)."""

    def __str__(self) -> str:
        return without_secrets(plain(super().__str__()))


class ConfigError(CalibruneError, ValueError):
    """A setting asks for something impossible."""


class ModelError(CalibruneError):
    """A model cannot be found, read, or understood."""


class CorpusError(CalibruneError):
    """A source of text cannot be read."""


class CalibrationError(CalibruneError):
    """The corpus cannot give the calibration set that was asked for."""


class OutputError(CalibruneError):
    """The place to write to is not free."""


class RunError(CalibruneError):
    """Something broke under way; what was done is kept and named."""

    exit_status = 1


class StorageError(RunError):
    """The disk refuses what is to be kept: it is full, or read-only; whatever else is tried would meet the same."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of an allocation that failed, whoever raised it: Python, torch, CUDA, the system."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in said
        for words in ("out of memory", "allocate memory", "bad alloc", "bad_alloc", "can't start new thread")
    )
