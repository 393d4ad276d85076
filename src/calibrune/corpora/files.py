"""A file of documents as a corpus: plain text, JSON lines, Parquet; packed with gzip or Zstandard, or not.

Every file is streamed, so its size does not matter. Only the one document of a `.txt` file is held as a whole.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrune.corpora.document import Document
from calibrune.corpora.unpacking import PACKED_ENDINGS, optional, unpacked
from calibrune.durable import parsed
from calibrune.errors import CorpusError
from calibrune.settings import settings


@settings
class FileCorpus:
    """The documents of one file, in its order.

    - `.jsonl`, `.json`: one JSON object per line, its text in `text_field`;
    - `.parquet`: one row per document, its text in the column `text_field`;
    - `.txt`: the whole file is one document, so that every seed draws the same one: for a study over seeds, write JSON
      lines.

    All but `.parquet` may be packed: `.jsonl.gz`, `.txt.zst`. Documents without text (empty, blank, null) are skipped.
    """

    path: Path
    text_field: str = "text"
    """The field or column that holds the text; a `.txt` file has none."""
    name: str = ""
    """What the corpus is called in tables and errors; if not given, the file's name without its endings."""
    licence: str = ""
    """Of the text, to be recorded; a file does not say it."""

    def __post_init__(self) -> None:
        ending = _ending(self.path)
        if ending not in READERS:
            raise CorpusError(
                f"{self.path} has the ending {ending or 'of none'!r}, which says nothing about how to read it; "
                f"the known ones are {', '.join(READERS)} (all but .parquet also with {' or '.join(PACKED_ENDINGS)})"
            )
        if not self.name:
            object.__setattr__(self, "name", self.path.name.removesuffix(self.path.suffix).removesuffix(ending))

    @property
    def in_random_order(self) -> bool:
        return False

    def documents(self) -> Iterator[Document]:
        """Yield the documents with the ids `"{file name}:{line or row, from 1}"`.

        Raises:
            CorpusError: the file is missing, damaged, not what its ending says, or has no text in it.
        """
        found = False
        for number, text in self.rows():
            if text and not text.isspace():
                found = True
                yield Document(text, f"{self.path.name}:{number}")
        if not found:
            raise CorpusError(f"{self.path} has no text in it, it is empty or blank: name a file with documents")

    def check(self) -> None:
        """Raise the `CorpusError` of `documents`, as far as the first document tells it: before a model is loaded."""
        next(self.documents())

    def rows(self) -> Iterator[tuple[int, str | None]]:
        """Yield (line or row from 1, text) of every row, empty texts too; None: a blank line, or null for a text.

        Raises:
            CorpusError: the file is missing, damaged, or not what its ending says.
        """
        check_is_file(self.path)
        return READERS[_ending(self.path)](self.path, self.text_field)

    def describe(self) -> dict[str, Any]:
        """The file by name, size and SHA-256 (never by its folder), and the field that is read."""
        check_is_file(self.path)
        with self.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "kind": "file",
            "name": self.name,
            "file": self.path.name,
            "bytes": self.path.stat().st_size,
            "sha256": sha256,
            "text_field": self.text_field,
            "licence": self.licence or None,
        }


def _read_text(path: Path, text_field: str) -> Iterator[tuple[int, str | None]]:
    with unpacked(path) as file:
        # line by line, so that an error can say where
        yield 1, "".join(_decoded(line, path, number) for number, line in enumerate(file, 1))


def _read_json_lines(path: Path, text_field: str) -> Iterator[tuple[int, str | None]]:
    with unpacked(path) as file:
        for number, line in enumerate(file, 1):
            if written := _decoded(line, path, number).strip():
                yield number, _text_in(written, path, number, text_field)
            else:
                yield number, None


def _read_parquet(path: Path, text_field: str) -> Iterator[tuple[int, str | None]]:
    pyarrow, parquet = optional("pyarrow", path), optional("pyarrow.parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_field not in schema.names:
                raise _no_such_field(str(path), text_field, schema.names)
            kind = schema.field(text_field).type
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if not any(is_it(kind) for is_it in _string_types(pyarrow.types)):
                raise CorpusError(f"the column {text_field!r} of {path} holds {kind}, not text; name a column of text")
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield number, text
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        said = str(error).partition("\n")[0].rstrip(".")
        raise CorpusError(f"{path} cannot be read as Parquet ({said}): it is damaged or not a Parquet file") from None


READERS = {".txt": _read_text, ".jsonl": _read_json_lines, ".json": _read_json_lines, ".parquet": _read_parquet}
"""By ending: file and text field in, (line or row from 1, text or None) out."""


def _ending(path: Path) -> str:
    """What the file holds, by its name: of `c4.jsonl.gz` it is `.jsonl`."""
    packing = path.suffix if path.suffix in PACKED_ENDINGS else ""
    ending = path.with_name(path.name.removesuffix(packing)).suffix if path.name != packing else ""
    return ending + packing if ending == ".parquet" else ending


def _string_types(types: Any) -> tuple[Any, ...]:
    views = (types.is_string_view,) if hasattr(types, "is_string_view") else ()
    return (types.is_string, types.is_large_string, types.is_null, *views)


def _decoded(line: bytes, path: Path, number: int) -> str:
    if b"\0" in line:
        raise CorpusError(
            f"line {number} of {path} has bytes that no text has: it is a binary file, or it is packed and its name "
            f"does not end in {' or '.join(PACKED_ENDINGS)}, or it is UTF-16 and has to be converted to UTF-8"
        )
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"line {number} of {path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); "
            "convert the file to UTF-8, or name another one if this is no text"
        ) from None


def _text_in(written: str, path: Path, number: int, text_field: str) -> str | None:
    where = f"line {number} of {path}"
    try:
        row = parsed(written)
    except ValueError as error:
        said = str(error)
        if isinstance(error, json.JSONDecodeError):
            said = f"{error.msg.lower().removesuffix(' at')}, character {error.pos}"
        raise CorpusError(f"{where} is not JSON ({said}): the file must have one JSON object per line") from None
    if not isinstance(row, dict):
        raise CorpusError(f"{where} is {_json_kind(row)}, not an object: write one object per line, with a text field")
    if text_field not in row:
        raise _no_such_field(where, text_field, row)
    text = row[text_field]
    if text is not None and not isinstance(text, str):
        raise CorpusError(f"the field {text_field!r} in {where} is {_json_kind(text)}, not text; name a field of text")
    # JSON can escape half a surrogate pair, which no tokenizer and no file can take
    return text and re.sub("[\ud800-\udfff]", "\ufffd", text)


def _json_kind(value: object) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _no_such_field(where: str, text_field: str, there: Any) -> CorpusError:
    return CorpusError(
        f"{where} has no field {text_field!r}, only {', '.join(map(repr, there)) or 'none at all'}: "
        "say which one holds the text (text_field)"
    )


def check_is_file(path: Path) -> None:
    """Raise `CorpusError` unless the file is there; it says what is there instead."""
    if path.is_file():
        return
    if path.is_dir():
        raise CorpusError(f"{path} is a folder: name one of the files in it")
    if not path.parent.is_dir():
        raise CorpusError(f"there is no file {path}, nor the folder {path.parent}")
    here = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    near = difflib.get_close_matches(path.name, here, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"none of the {len(here)} files there has a name like it"
    raise CorpusError(f"there is no file {path}; {hint}")
