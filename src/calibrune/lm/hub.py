"""What the hub has: a repository is pinned to its commit first, and one that is not there is said at once.

transformers and huggingface_hub answer a wrong name, or a hub that is out of reach, with minutes of retries.
"""

from dataclasses import dataclass
from typing import Literal

from huggingface_hub import dataset_info, model_info
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from calibrune.errors import CalibruneError

TIMEOUT = 10.0
"""Seconds to wait for the hub's answer whether it has a repository."""

# of the HTTP library that huggingface_hub uses, whichever that is
HTTPError: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Unreachable:
    """The hub gave no answer; what the local cache has must do."""

    why: str


def commit_of(
    repository: str, kind: Literal["model", "dataset"], revision: str | None, error: type[CalibruneError]
) -> str | Unreachable:
    """The commit that a revision of a repository is at; `Unreachable` where the hub does not answer.

    Raises:
        CalibruneError: of the type `error`: the hub says that there is no such repository or revision, or it is gated.
    """
    info = model_info if kind == "model" else dataset_info
    try:
        return str(info(repository, revision=revision, timeout=TIMEOUT).sha)
    except GatedRepoError as said:
        raise error(f"the {kind} {repository!r} is gated: accept its terms on the hub, and set HF_TOKEN") from said
    except RevisionNotFoundError as said:
        raise error(f"the {kind} {repository!r} has no revision {revision!r} on the hub; check it") from said
    except (RepositoryNotFoundError, HFValidationError) as said:
        raise error(
            f"the hub has no {kind} {repository!r}; check the name (a private one needs HF_TOKEN), or give a local path"
        ) from said
    except (OSError, HTTPError) as said:
        return Unreachable(first_line(said))


def first_line(error: BaseException) -> str:
    """What an error says, without the rest of its story."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
