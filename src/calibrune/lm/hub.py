"""A file from the hub, pinned to its commit; what is not there is said at once, and what is cached needs no hub.

Left to themselves, transformers and huggingface_hub answer a hub that is out of reach with minutes of retries.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import dataset_info, hf_hub_download, model_info, try_to_load_from_cache
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from calibrune.errors import CalibruneError

TIMEOUT = 10.0
"""Seconds to wait for the hub's answer whether it has a repository."""

# of the HTTP library that huggingface_hub uses, whichever that is
HTTPError: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]


@dataclass(frozen=True)
class HubFile:
    """A file of the hub, on this machine."""

    path: Path
    commit: str
    """Of the repository."""
    offline: bool
    """The hub gave no answer, and the file is from the local cache."""
    files: tuple[str, ...] = ()
    """What the repository holds, at that commit; offline: what of it the cache has."""


def hub_file(
    kind: Literal["model", "dataset"], repository: str, file: str, revision: str | None, error: type[CalibruneError]
) -> HubFile:
    """Fetch a file of a repository, or find it in the local cache.

    Raises:
        CalibruneError: of the type `error`: there is no such repository, revision or file, it is gated, or the hub
            does not answer and the cache does not have it.
    """
    what = f"the {kind} {repository!r}"
    try:
        info = model_info if kind == "model" else dataset_info
        siblings = info(repository, revision=revision, timeout=TIMEOUT).siblings or ()
        # by the branch's name, so that the cache knows it when the hub is away
        path = Path(hf_hub_download(repository, file, repo_type=kind, revision=revision, etag_timeout=TIMEOUT))
        return HubFile(path, _commit_of(path), offline=False, files=tuple(one.rfilename for one in siblings))
    except GatedRepoError as said:
        raise error(f"{what} is gated; accept its terms on the hub and set HF_TOKEN") from said
    except RevisionNotFoundError as said:
        raise error(f"{what} has no revision {revision!r} on the hub; check it") from said
    except (RepositoryNotFoundError, HFValidationError) as said:
        raise error(
            f"there is no {kind} {repository!r}, neither a local path nor on the hub (a private one needs HF_TOKEN); "
            f"check the name, or give a local path"
        ) from said
    except (OSError, HTTPError) as said:
        if isinstance(said, EntryNotFoundError) and not isinstance(said, LocalEntryNotFoundError):
            raise error(f"{what} on the hub has no {file}; check the name, or give a local path") from said
        cached = try_to_load_from_cache(repository, file, repo_type=kind, revision=revision)
        if isinstance(cached, str):
            files = tuple(one.name for one in Path(cached).parent.iterdir())
            return HubFile(Path(cached), _commit_of(Path(cached)), offline=True, files=files)
        raise error(
            f"{what} is no local path, the hub cannot be reached ({first_line(said)}), and its local cache does not "
            f"have it; give a local path"
        ) from said


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of its story."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


def _commit_of(path: Path) -> str:
    """The cache keeps files as .../snapshots/COMMIT/FILE."""
    parts = path.parts
    return parts[len(parts) - 1 - parts[::-1].index("snapshots") + 1]
