"""A file of a dataset on the hub, pinned to a commit; from the local cache where the hub is out of reach."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from calibrune.errors import CorpusError
from calibrune.lm.hub import HTTPError, Unreachable, commit_of, first_line


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset repository."""

    repository: str
    """`organisation/name`"""
    file: str
    """Its path in the repository."""
    revision: str | None = None
    """Branch, tag or commit; None: the newest."""


def hub_file(wanted: HubFile) -> Path:
    """The file on this machine; downloaded once.

    Raises:
        CorpusError: the hub does not have it, or cannot be reached and the local cache does not have it either.
    """
    commit = commit_of(wanted.repository, "dataset", wanted.revision, CorpusError)
    if isinstance(commit, Unreachable):
        cached = try_to_load_from_cache(wanted.repository, wanted.file, repo_type="dataset", revision=wanted.revision)
        if isinstance(cached, str):
            return Path(cached)
        raise CorpusError(
            f"{wanted.file} of the dataset {wanted.repository!r} is wanted, but the hub cannot be reached "
            f"({commit.why}) and its local cache does not have it; give a local folder or file"
        )
    try:
        return Path(hf_hub_download(wanted.repository, wanted.file, repo_type="dataset", revision=commit))
    except (OSError, HTTPError) as error:
        raise CorpusError(
            f"{wanted.file} of the dataset {wanted.repository!r} cannot be downloaded: {first_line(error)}; "
            f"give a local folder or file"
        ) from error
