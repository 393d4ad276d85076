"""From documents to windows of tokens: where documents end, where BOS stands, and what a window may cross.

The field's code cuts one source inside single documents and the next across documents, under the same name. Here it is
one policy for all sources, chosen by name and recorded.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrune.corpora.document import Document
from calibrune.errors import CalibrationError
from calibrune.progress import track
from calibrune.seeds import seed_for
from calibrune.settings import settings

GIVE_UP_AFTER = 10_000
"""Documents in a row that were of no use: then the search ends, for an endless corpus would never end it."""

TOO_SHORT, NO_TOKENS = "shorter than the window", "no tokens"


@settings
class Windows:
    """How windows are cut from documents."""

    policy: Literal["packed", "packed_blank", "long_documents", "one_per_document"] = "packed"
    """packed: all documents, an EOS after each, cut into consecutive windows.

    packed_blank: the same with one blank between documents instead of EOS, as if their texts were joined to one text.
    long_documents: one window at a random place of each document that is long enough; no window crosses documents.
    one_per_document: the beginning of each document, padded on the right where it is shorter; padding is not counted.
    """
    bos: Literal["document", "window", "none"] = "document"
    """document: where the tokenizer itself puts it, at the start of a document (of the whole text for packed_blank).

    window: in addition every window begins with BOS, in place of one token. none: nowhere.
    """
    eos: Literal["policy", "document", "tokenizer", "none"] = "policy"
    """document: one after each document. tokenizer: where the tokenizer itself puts one. none: nowhere.

    policy: document for packed, none for packed_blank (whose documents are one text), tokenizer for the others.
    """

    @property
    def eos_of_policy(self) -> Literal["document", "tokenizer", "none"]:
        """Where EOS goes, with "policy" spelt out."""
        if self.eos != "policy":
            return self.eos
        return "document" if self.policy == "packed" else "none" if self.policy == "packed_blank" else "tokenizer"


class CutWindows(NamedTuple):
    """Windows, and where each is from."""

    input_ids: Int64[Tensor, "batch seq"]
    document_ids: tuple[tuple[str, ...], ...]
    """For each window, the documents that it has tokens of."""
    attention_mask: Bool[Tensor, "batch seq"] | None = None
    """False at padding, which is on the right; None where there is none."""


class _Piece(NamedTuple):
    """The tokens of one document, or of one window."""

    token_ids: list[int]
    owners: list[str]
    """For each token, the id of its document."""


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around a text and between two texts; found by looking, for its settings do not tell."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    bos: int | None
    eos: int | None
    blank: str
    """What goes before a text that is joined to another: nothing where the tokenizer puts a blank there by itself."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Frame":
        """Look at what the tokenizer makes of one letter and of two."""
        bare = tokenize(tokenizer, "a")
        framed = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
        # a vocabulary without "a" shows no place for a text: then all but an EOS counts as before it
        all_but_eos = len(framed) - (framed[-1:] == [tokenizer.eos_token_id])
        places = (i for i in range(len(framed)) if bare and framed[i : i + len(bare)] == bare)
        at = next(places, all_but_eos)
        return cls(
            before=tuple(framed[:at]),
            after=tuple(framed[at + len(bare) :]),
            bos=tokenizer.bos_token_id,
            eos=tokenizer.eos_token_id,
            blank="" if tokenize(tokenizer, "a a") == bare + bare else " ",
        )


class Placed(NamedTuple):
    """The special tokens that windows get, after a look at what the tokenizer adds."""

    before: tuple[int, ...]
    """Of each document; for packed_blank of the first."""
    after: tuple[int, ...]
    """Of each document."""
    window_begins: int | None
    """What every window begins with."""

    @classmethod
    def of(cls, frame: Frame, windows: Windows) -> "Placed":
        """What the settings mean for this tokenizer.

        Raises:
            CalibrationError: the tokenizer lacks a token that is asked for, or there is no place for it.
        """
        _check(frame, windows)
        eos = windows.eos_of_policy
        after = () if windows.policy == "packed_blank" else frame.after
        if eos == "none":
            after = tuple(token for token in after if token != frame.eos)
        elif eos == "document" and frame.eos is not None and after[-1:] != (frame.eos,):
            after = (*after, frame.eos)
        return cls(
            before=() if windows.bos == "none" else frame.before,
            after=after,
            window_begins=frame.bos if windows.bos == "window" else None,
        )


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text of any length, without special tokens around it; one whose name is in the text is text."""
    # verbose=False: longer than the model's context is as it should be here
    asked = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return list(tokenizer(text, **asked)["input_ids"])


def cut_windows(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    windows: Windows,
    *,
    n_samples: int,
    seq_len: int,
    seed: int,
    dropped: Counter[str],
    corpus: str = "the corpus",
) -> CutWindows:
    """Cut the first `n_samples` windows of `seq_len` tokens; no more documents are read than that takes.

    The first 64 of 128 windows are the 64 windows of a smaller request. A document's own `token_ids` are used as they
    are; only a BOS before and an EOS after them follow the policy, as for any other document, unless they are framed.

    Args:
        documents: in the order in which they are used.
        n_samples: at least 1.
        seq_len: at least 2.
        seed: chooses the place in the document; only `long_documents` draws.
        dropped: documents that were of no use are added, by reason; what is in it already is told in errors.
        corpus: what errors call the documents.

    Raises:
        CalibrationError: the documents give too few windows, or the tokenizer lacks a token that the policy needs.
    """
    frame = Frame.of(tokenizer)
    placed = Placed.of(frame, windows)
    lengths: list[int] = []
    pieces = _tokenized(documents, tokenizer, windows, frame, placed, lengths)
    bos = placed.window_begins
    if windows.policy == "long_documents":
        cut = _inside_documents(pieces, bos, seq_len, seed, dropped)
    elif windows.policy == "one_per_document":
        cut = _beginnings(pieces, bos, seq_len, dropped)
    else:
        cut = _consecutive(pieces, bos, seq_len, dropped)
    found = list(track(islice(cut, n_samples), "cutting windows", total=n_samples, unit="window"))
    if len(found) < n_samples:
        raise CalibrationError(_too_little(windows, n_samples, seq_len, len(found), lengths, dropped, corpus))
    names = tuple(tuple(dict.fromkeys(window.owners)) for window in found)
    # what stands at padding is read by no real token and counted nowhere; it only has to be in the vocabulary
    padded = [
        window.token_ids
        + [window.token_ids[-1] if frame.eos is None else frame.eos] * (seq_len - len(window.token_ids))
        for window in found
    ]
    mask = torch.arange(seq_len) < torch.tensor([len(window.token_ids) for window in found])[:, None]
    return CutWindows(torch.tensor(padded, dtype=torch.int64), names, None if mask.all() else mask)


def _tokenized(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    windows: Windows,
    frame: Frame,
    placed: Placed,
    lengths: list[int],
) -> Iterator[_Piece]:
    for number, document in enumerate(documents):
        goes_on = windows.policy == "packed_blank" and number > 0
        blank = frame.blank if goes_on else ""
        if document.framed and document.token_ids is not None:
            lengths.append(len(document.token_ids))
            yield _Piece(list(document.token_ids), [document.id] * len(document.token_ids))
            continue
        if document.token_ids is None:
            body = tokenize(tokenizer, blank + document.text)
        else:
            body = (tokenize(tokenizer, blank) if blank else []) + _without_ends(document.token_ids, frame)
        if windows.policy == "packed_blank":
            token_ids = body if goes_on else [*placed.before, *body]
        else:
            token_ids = [*placed.before, *body, *placed.after]
        lengths.append(len(token_ids))
        yield _Piece(token_ids, [document.id] * len(token_ids))


def _without_ends(token_ids: tuple[int, ...], frame: Frame) -> list[int]:
    """Exact tokens without the BOS and EOS that their writer may have recorded: these are the policy's to place."""
    start = 1 if frame.bos is not None and token_ids[:1] == (frame.bos,) else 0
    end = -1 if frame.eos is not None and token_ids[start:][-1:] == (frame.eos,) else None
    return list(token_ids[start:end])


def _consecutive(pieces: Iterable[_Piece], bos: int | None, seq_len: int, dropped: Counter[str]) -> Iterator[_Piece]:
    token_ids: list[int] = []
    owners: list[str] = []
    in_vain = 0
    for piece in pieces:
        if not piece.token_ids:
            dropped[NO_TOKENS] += 1
            in_vain += 1
            if in_vain >= GIVE_UP_AFTER:
                return
            continue
        in_vain = start = 0
        token_ids += piece.token_ids
        owners += piece.owners
        while len(token_ids) - start >= seq_len:
            window = slice(start, start + seq_len)
            cut, used = _beginning_with(bos, _Piece(token_ids[window], owners[window]))
            yield cut
            start += used
        del token_ids[:start], owners[:start]


def _beginnings(pieces: Iterable[_Piece], bos: int | None, seq_len: int, dropped: Counter[str]) -> Iterator[_Piece]:
    in_vain = 0
    for token_ids, owners in pieces:
        if not token_ids:
            dropped[NO_TOKENS] += 1
            in_vain += 1
            if in_vain >= GIVE_UP_AFTER:
                return
            continue
        in_vain = 0
        begun = [bos] if bos is not None and token_ids[0] != bos else []
        yield _Piece([*begun, *token_ids][:seq_len], owners[:1])


def _inside_documents(
    pieces: Iterable[_Piece], bos: int | None, seq_len: int, seed: int, dropped: Counter[str]
) -> Iterator[_Piece]:
    in_vain = 0
    for token_ids, owners in pieces:
        if len(token_ids) < seq_len:
            dropped[TOO_SHORT] += 1
            in_vain += 1
            if in_vain >= GIVE_UP_AFTER:
                return
            continue
        in_vain = 0
        generator = torch.Generator().manual_seed(seed_for(seed, "window", owners[0]))
        start = int(torch.randint(len(token_ids) - seq_len + 1, (), generator=generator))
        window = slice(start, start + seq_len)
        yield _beginning_with(bos, _Piece(token_ids[window], owners[window]))[0]


def _beginning_with(bos: int | None, window: _Piece) -> tuple[_Piece, int]:
    """The window with BOS in front, unless it is there (or None is wanted), and how many of its own tokens are left."""
    if bos is None or window.token_ids[0] == bos:
        return window, len(window.token_ids)
    return _Piece([bos, *window.token_ids[:-1]], window.owners[:-1]), len(window.token_ids) - 1


def _check(frame: Frame, windows: Windows) -> None:
    if windows.policy == "packed_blank" and windows.eos_of_policy != "none":
        raise CalibrationError(
            f"eos={windows.eos} was asked for, but windows policy packed_blank makes one text of all documents, which "
            f"has no place for EOS; use windows policy packed"
        )
    if windows.eos_of_policy == "document" and frame.eos is None:
        raise CalibrationError(
            f"windows policy {windows.policy} puts EOS after each document, but the tokenizer has no EOS token; "
            f"use windows policy packed_blank or eos=none, or give the tokenizer its eos_token"
        )
    if windows.bos == "window" and frame.bos is None:
        raise CalibrationError(
            "every window is to begin with BOS (bos=window), but the tokenizer has no BOS token; use bos=document"
        )


def _too_little(
    windows: Windows,
    n_samples: int,
    seq_len: int,
    found: int,
    lengths: list[int],
    dropped: Counter[str],
    corpus: str,
) -> str:
    asked = f"{n_samples:,} samples of {seq_len:,} tokens asked for, but "
    typical = f"median document {median(lengths):,.0f} tokens" if lengths else "none was left to use"
    if windows.policy == "long_documents":
        gave = f"only {found:,} of the {len(lengths):,} documents of {corpus!r} have {seq_len:,} tokens ({typical})"
        advice = "use longer documents, a smaller seq_len, fewer samples, or windows policy packed"
    elif windows.policy == "one_per_document":
        gave = f"{corpus!r} has only {len(lengths):,} documents, and {found:,} of them have a token ({typical})"
        advice = "use more documents, fewer samples, or windows policy packed"
    else:
        gave = (
            f"the {len(lengths):,} documents of {corpus!r} give only {found:,} windows "
            f"({sum(lengths):,} tokens of {n_samples * seq_len:,}; {typical})"
        )
        advice = "use more documents, fewer samples, or a smaller seq_len"
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in dropped.most_common())
    return f"{asked}{gave}: {advice}" + (f"; dropped: {reasons}" if reasons else "")
