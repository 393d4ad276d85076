"""What a folder that this package made says of itself: its manifest, and the hash of every file in it."""

from pathlib import Path
from typing import Any

from calibrune.durable import parsed, sealed_json, sha256_of, unsealed, write_whole
from calibrune.errors import ModelError

MANIFEST = "calibrune.json"
"""Of a pruned model; written last."""
MASKED = "calibrune-mask.json"
"""Of a model into which a pruned one's zeros were put; written last."""
CONVERTED = "converted.json"
"""Of a GGUF that was converted."""
UNFINISHED = "calibrune.unfinished"
"""A file in a folder that is being written; gone when all else is there."""
JOURNAL = "streaming.jsonl"
"""What is finished of a model that is pruned block by block; gone like the former."""
NOT_RECORDED = ("README.md", MANIFEST, MASKED, CONVERTED, UNFINISHED, JOURNAL)
"""Files that no program reads, that say what the others are, or that go."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished checkpoint; None where there is none.

    Raises:
        ModelError: it is not what was written.
    """
    return _record(folder, MANIFEST, "make the checkpoint anew")


def _record(folder: Path, name: str, again: str) -> dict[str, Any] | None:
    file = folder / name
    if not file.is_file():
        return None
    try:
        return unsealed(parsed(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise ModelError(f"{str(file)!r} is damaged ({error}); {again}") from None


def files_in(folder: Path, known: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of the files of a folder that are read back; `known`: hashes that were made already."""
    known = known or {}
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": known.get(file.name) or sha256_of(file)}
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name not in NOT_RECORDED
    }


def write_converted(folder: Path) -> None:
    """Record the files of a converted model."""
    write_whole(folder / CONVERTED, sealed_json({"format": 1, "files": files_in(folder)}).encode())


def check_files(folder: Path) -> None:
    """Raise `ModelError` if a file of a folder that was made here is not as it was written; of others nothing is known.

    What was added since is nobody's business; what an older version made has no hashes, and is taken as it is.
    """
    again = "make the checkpoint anew"
    record = _record(folder, MANIFEST, again) or _record(folder, MASKED, again)
    if record is None:
        again = "remove the folder, and the model is converted anew"
        record = _record(folder, CONVERTED, again)
    files = (record or {}).get("files") or {}
    if not isinstance(files, dict):
        raise ModelError(f"the record of files in {str(folder)!r} is no JSON object; {again}")
    for name, said in files.items():
        file = folder / Path(name).name  # a name is a file of this folder, whatever the record says
        if not isinstance(said, dict) or not file.is_file() or said.get("sha256") != sha256_of(file):
            found = "was changed or damaged after it was written" if file.is_file() else "is missing"
            raise ModelError(f"{str(file)!r} {found}; {again} (or remove its record, if the change is meant)")
