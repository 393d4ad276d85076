"""A calibration set: token ids, how they came to be, and a fingerprint that says whether two sets are the same."""

import glob
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrune.calibration.mixture import turns_of
from calibrune.durable import is_running, make_readable, name_folder, parsed, sealed_json, unsealed
from calibrune.errors import CalibrationError, OutputError

if TYPE_CHECKING:
    from calibrune.calibration.build import CalibrationRecipe

TOKENS_FILE = "calibration.safetensors"
MANIFEST_FILE = "manifest.json"
"""Written last: a folder without it is unfinished."""

_KINDS: dict[str, type] = {
    **dict.fromkeys(("source", "tokenizer", "dropped", "special_tokens", "text_sha256", "contamination"), dict),
    **dict.fromkeys(("document_ids", "parts"), list),
}
"""What stands in a manifest, as far as it is read again."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False, repr=False)
class CalibrationSet:
    """Token ids to calibrate on. Two sets are the same if their fingerprints are."""

    input_ids: Int64[Tensor, "batch seq"]
    """[n_samples, seq_len], on the CPU, at least 1 sample of 2 tokens, no id below 0."""
    manifest: dict[str, Any]
    """All that is known of how the tokens came to be, as JSON; `source` at the least."""
    attention_mask: Bool[Tensor, "batch seq"] | None = None
    """False at padding, which stands on the right of a sample and never counts; None: there is no padding."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_ids", _checked(self.input_ids, "the input_ids of a calibration set"))
        object.__setattr__(self, "attention_mask", _checked_mask(self.attention_mask, self.input_ids))
        object.__setattr__(self, "manifest", {**self.manifest, **self._facts()})

    @classmethod
    def build(
        cls, recipe: "CalibrationRecipe", tokenizer: PreTrainedTokenizerBase, **limits: int | None
    ) -> "CalibrationSet":
        """Draw documents, filter them, cut them into windows; see `calibrune.calibration.build.build`."""
        from calibrune.calibration.build import build  # the builder needs this class first

        return build(recipe, tokenizer, **limits)

    @classmethod
    def from_ids(cls, input_ids: Tensor, attention_mask: Tensor | None = None, **source: Any) -> "CalibrationSet":
        """A set from one's own tokens: whole numbers of any width, [n_samples, seq_len]; `source` is recorded.

        Args:
            input_ids: the tokens.
            attention_mask: of the same shape; 0 or False at padding, which must be on the right. None: no padding.
            source: what else is known of them.

        Raises:
            CalibrationError: these are no token ids: not whole numbers, not of rank 2, empty, or below 0; or no mask.
        """
        ids = _checked(input_ids, "the token ids")
        return cls(ids, {"source": {"kind": "token ids", **source}}, _checked_mask(attention_mask, ids))

    @classmethod
    def from_safetensors(cls, path: Path | str) -> "CalibrationSet":
        """A set from a safetensors file with integer `input_ids` [n_samples, seq_len], and `attention_mask` if padded.

        Raises:
            CalibrationError: the file is missing, not safetensors, or has no such tensor.
        """
        path = Path(path)
        input_ids, mask = _read_tokens(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(input_ids, {"source": {"kind": "safetensors", "file": path.name, "sha256": sha256}}, mask)

    @classmethod
    def load(cls, folder: Path | str) -> "CalibrationSet":
        """Read what `save` wrote.

        Raises:
            CalibrationError: the folder holds no finished set, or its tokens are not those that the manifest names.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        input_ids, mask = _read_tokens(folder / TOKENS_FILE)
        loaded = cls(input_ids, manifest, mask)
        for name, kind in _KINDS.items():
            if not isinstance(manifest.get(name, None if name == "source" else kind()), kind):
                raise CalibrationError(
                    f"{folder / MANIFEST_FILE} is no manifest of a calibration set (its {name} is no {kind.__name__}): "
                    f"build the set again, or give its {TOKENS_FILE}"
                )
        if not isinstance(manifest.get("tokenizer", {}).get("sha256", ""), str | None):
            raise CalibrationError(
                f"{folder / MANIFEST_FILE} is no manifest of a calibration set (its tokenizer has no hash): build the "
                f"set again, or give its {TOKENS_FILE}"
            )
        if manifest.get("fingerprint") != loaded.fingerprint:
            raise CalibrationError(
                f"the tokens in {folder / TOKENS_FILE} have the fingerprint {loaded.fingerprint}, the manifest "
                f"names {manifest.get('fingerprint')}: they were changed after they were written; build the set again"
            )
        return loaded

    def __repr__(self) -> str:
        source = self.manifest.get("source", {})
        name = source.get("name", source.get("kind", "unknown"))
        return f"CalibrationSet({name}, {self.n_samples} x {self.seq_len} tokens, {self.fingerprint})"

    @property
    def n_samples(self) -> int:
        return self.input_ids.shape[0]

    @property
    def seq_len(self) -> int:
        """Tokens in a sample."""
        return self.input_ids.shape[1]

    @property
    def samples(self) -> tuple[Int64[Tensor, "_"], ...]:
        """The tokens of each sample, without padding."""
        if self.attention_mask is None:
            return tuple(self.input_ids)
        return tuple(ids[real] for ids, real in zip(self.input_ids, self.attention_mask, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change when any token does, or the shape, or what is padding; not by what pads."""
        digest = hashlib.sha256(repr(tuple(self.input_ids.shape)).encode())
        mask = self.attention_mask
        ids = self.input_ids if mask is None else self.input_ids.masked_fill(~mask, 0)
        digest.update(ids.numpy().astype("<i8").tobytes())
        if mask is not None:
            digest.update(mask.numpy().tobytes())
        return digest.hexdigest()[:12]

    @property
    def dropped(self) -> dict[str, int]:
        """How many documents were of no use, by reason."""
        return dict(self.manifest.get("dropped", {}))

    def take(self, n: int) -> "CalibrationSet":
        """The first `n` samples: the same as a set built with `n_samples=n`, if the seed and all else are the same.

        How many documents were looked at and dropped for them alone nobody knows; the manifest's `part_of` says it of
        the larger set.

        Raises:
            CalibrationError: there are no such samples.
        """
        if not 1 <= n <= self.n_samples:
            raise CalibrationError(
                f"{n} samples asked for of a calibration set that has {self.n_samples}: ask for fewer"
            )
        if n == self.n_samples:
            return self
        mask = self.attention_mask
        try:
            manifest = self._of_the_first(n)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(
                f"the manifest of the calibration set {self.fingerprint} is not one that was written here "
                f"({type(error).__name__}: {error}): take all its samples, or give its {TOKENS_FILE}"
            ) from None
        return CalibrationSet(self.input_ids[:n], manifest, None if mask is None else mask[:n])

    def _of_the_first(self, n: int) -> dict[str, Any]:
        of_all = ("documents_looked_at", "dropped")
        manifest = {key: value for key, value in self.manifest.items() if key not in (*of_all, "real_tokens")}
        manifest["part_of"] = self._facts() | {key: self.manifest[key] for key in of_all if key in self.manifest}
        if "parts" in manifest:
            turns = turns_of([part["weight"] for part in manifest["source"]["parts"]], n)
            # a part without a sample has no entry
            names = [part["name"] for part in manifest["source"]["parts"]]
            manifest["parts"] = [
                {"name": name, "n_samples": turns.count(i)} for i, name in enumerate(names) if i in turns
            ]
        if "special_tokens" in manifest:
            bos = manifest["tokenizer"]["bos_token_id"]
            begin = 0 if bos is None else int((self.input_ids[:n, 0] == bos).sum())
            manifest["special_tokens"] = manifest["special_tokens"] | {"samples_that_begin_with_bos": begin}
        if "document_ids" in manifest:
            manifest["document_ids"] = manifest["document_ids"][:n]
            used = set().union(*manifest["document_ids"])
            for of_documents in ("text_sha256", "contamination"):
                if of_documents in manifest:
                    said = self.manifest[of_documents]
                    manifest[of_documents] = {name: value for name, value in said.items() if name in used}
        return manifest

    def check_fits(self, vocab_size: int | None = None, context_length: int | None = None) -> None:
        """Raise `CalibrationError` if a model of this vocabulary and context cannot read the tokens; None: unknown."""
        if context_length is not None and self.seq_len > context_length:
            raise CalibrationError(
                f"the calibration set has sequences of {self.seq_len:,} tokens, but the model reads at most "
                f"{context_length:,}: cut them to {context_length} tokens or fewer, or build the set anew"
            )
        highest = int(self.input_ids.max())
        if vocab_size is not None and highest >= vocab_size:
            raise CalibrationError(
                f"the calibration set has the token id {highest:,}, but the model's vocabulary ends at "
                f"{vocab_size - 1:,}: build the set with this model's tokenizer"
            )

    def save(self, folder: Path | str) -> None:
        """Write the tokens and, last, the manifest; the folder appears whole or not at all.

        The same set in the same place again is no error, and writes nothing.

        Raises:
            OutputError: something else is there, or the place cannot be written to.
        """
        folder = Path(folder).resolve()
        if not self._may_be_written(folder):
            return
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            partial.mkdir()
            tensors = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
            save_file({name: one for name, one in tensors.items() if one is not None}, partial / TOKENS_FILE)
            (partial / MANIFEST_FILE).write_text(sealed_json(self.manifest) + "\n", encoding="utf-8")
            make_readable(partial)
            name_folder(partial, folder)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"the calibration set cannot be written to {folder}: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _may_be_written(self, folder: Path) -> bool:
        """False: this very set is there already."""
        if folder.is_dir() and (folder / MANIFEST_FILE).is_file():
            if _without_versions(CalibrationSet.load(folder).manifest) == _without_versions(_as_json(self.manifest)):
                return False
            raise OutputError(f"{folder} holds another calibration set: name another folder, or remove this one")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} is there already, and is not a calibration set: name another folder")
        return True

    def _facts(self) -> dict[str, Any]:
        facts = {"n_samples": self.n_samples, "seq_len": self.seq_len, "fingerprint": self.fingerprint}
        return facts if self.attention_mask is None else facts | {"real_tokens": int(self.attention_mask.sum())}


def _sweep(folder: Path) -> None:
    """Remove what killed runs that wrote the same set left beside it."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
        pid = left.name.removesuffix(".partial").rpartition(".")[2]
        if pid.isdecimal() and not is_running(pid):
            shutil.rmtree(left, ignore_errors=True)


def check_length(seq_len: int, context_length: int | None) -> None:
    """Raise `CalibrationError` if samples of `seq_len` tokens are longer than the model's context; None: unknown."""
    if context_length is not None and seq_len > context_length:
        raise CalibrationError(
            f"samples of {seq_len:,} tokens asked for, but the model reads at most {context_length:,}: "
            f"use a sequence length (--seq-len) of {context_length} or less"
        )


def _checked(ids: Tensor, what: str) -> Int64[Tensor, "batch seq"]:
    if ids.dtype not in _INTEGERS:
        raise CalibrationError(
            f"{what} are {str(ids.dtype).removeprefix('torch.')}, but token ids are whole numbers: save them as int64"
        )
    if ids.ndim != 2:
        raise CalibrationError(f"{what} have the shape {list(ids.shape)}, but must be [n_samples, seq_len]")
    if ids.shape[0] < 1 or ids.shape[1] < 2:
        raise CalibrationError(f"{what} have the shape {list(ids.shape)}, but at least [1, 2] is needed")
    if (lowest := int(ids.min())) < 0:
        raise CalibrationError(f"{what} hold {lowest}, but no token id is below 0: cut the padding off")
    return ids.detach().to("cpu", torch.int64).contiguous()


def _checked_mask(mask: Tensor | None, ids: Tensor) -> Bool[Tensor, "batch seq"] | None:
    """The mask as truth values; None where all tokens are real."""
    if mask is None:
        return None
    if mask.shape != ids.shape:
        raise CalibrationError(
            f"the attention_mask has the shape {list(mask.shape)}, but the token ids have {list(ids.shape)}: give one "
            f"value for each token"
        )
    if mask.dtype not in (torch.bool, torch.float32, torch.float64, *_INTEGERS):
        raise CalibrationError(f"the attention_mask is {str(mask.dtype).removeprefix('torch.')}: save it as bool")
    real = (mask != 0).detach().to("cpu").contiguous()
    if wrong := (~real[:, 0] | (real[:, 1:] & ~real[:, :-1]).any(dim=1)).nonzero().flatten().tolist():
        raise CalibrationError(
            f"the attention_mask of sample {wrong[0]} has padding before a token, or no token: padding must be on the "
            f"right of each sample"
        )
    return None if bool(real.all()) else real


def _read_tokens(path: Path) -> tuple[Int64[Tensor, "batch seq"], Bool[Tensor, "batch seq"] | None]:
    if not path.is_file():
        raise CalibrationError(f"there is no file {path} to read token ids from")
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if "input_ids" not in names:
                raise CalibrationError(
                    f"{path} has no tensor 'input_ids', only {', '.join(map(repr, names)) or 'none at all'}: "
                    "save the token ids [n_samples, seq_len] under this name"
                )
            found: Tensor = file.get_tensor("input_ids")
            mask: Tensor | None = file.get_tensor("attention_mask") if "attention_mask" in names else None
    except SafetensorError as error:
        raise CalibrationError(
            f"{path} cannot be read as safetensors ({error}): write it again with safetensors"
        ) from None
    ids = _checked(found, f"the input_ids in {path}")
    return ids, _checked_mask(mask, ids)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise CalibrationError(
            f"{folder} holds no finished calibration set (there is no {MANIFEST_FILE} in it): "
            "name another folder, or a file of documents"
        )
    try:
        manifest = unsealed(parsed(path.read_bytes()))
    except ValueError as error:
        raise CalibrationError(f"{path} is damaged ({error}): build the set again") from None
    if not (folder / TOKENS_FILE).is_file():
        raise CalibrationError(
            f"{folder} holds no calibration set, though it has a {MANIFEST_FILE}: name another folder"
        )
    return manifest


def _as_json(manifest: dict[str, Any]) -> dict[str, Any]:
    read_back: dict[str, Any] = json.loads(json.dumps(manifest))
    return read_back


def _without_versions(manifest: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key != "versions"}
