"""A place with a tiny model and small corpora, commands that start at once, and what they leave when left in peace."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.forked import Forge
from faults.jobs import JOBS, Job, prepare, result


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model/`, `data/` and `plan.yaml`; each trial is a folder of its own beside them."""
    folder = tmp_path_factory.mktemp("faults")
    prepare(folder)
    return folder


@pytest.fixture(scope="session")
def forge(place: Path) -> Iterator[Forge]:
    forge = Forge()
    for number, job in enumerate(JOBS):
        folder = place / f"learning-{number}"
        folder.mkdir()
        assert forge.learn(job.arguments, folder).status == 0
    yield forge
    forge.close()


class Undisturbed:
    """What every job leaves, how long it takes, and how often it changes the disk; found out once."""

    def __init__(self, forge: Forge, place: Path) -> None:
        self._forge, self._place = forge, place
        self._found: dict[str, tuple[dict[str, Any], float, int, list[str]]] = {}

    def __call__(self, job: Job) -> tuple[dict[str, Any], float, int, list[str]]:
        if job.name not in self._found:
            folder = self._place / f"undisturbed-{len(self._found)}"
            folder.mkdir()
            ended = self._forge.run(job.arguments, folder)
            assert ended.status == 0, ended.err
            names = sorted(path.name for path in folder.iterdir())
            self._found[job.name] = result(folder / job.makes), ended.seconds, ended.changes, names
        return self._found[job.name]


@pytest.fixture(scope="session")
def undisturbed(forge: Forge, place: Path) -> Undisturbed:
    return Undisturbed(forge, place)
