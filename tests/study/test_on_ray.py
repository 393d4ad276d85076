"""A study on a real Ray cluster of two nodes on this machine, with a worker killed in the middle."""

import importlib.util
import os
import signal
import threading
import time

import pytest

from calibrune.errors import ConfigError
from calibrune.study.reading import read_plan
from calibrune.study.results import Results
from calibrune.study.runner import run_study

pytestmark = pytest.mark.slow

has_ray = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not has_ray, reason="needs Ray, and it is not installed (pip install 'calibrune[ray]')")


def rows_of(out):
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in Results(out).rows()]
    return sorted(rows, key=lambda row: row["key"])


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A cluster whose nodes are processes here; nothing of it reaches further than this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.undo()  # the guard against the network knows this machine by one name, and Ray uses another
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_on_a_cluster_with_a_worker_killed_the_rows_are_those_of_this_process(place, tmp_path, cluster):
    from calibrune.study.on_ray import OnRay

    plan = read_plan(place / "plan.yaml", ["seeds=4"])
    run_study(plan, tmp_path / "here", data=place / "data")
    executor = OnRay(cluster.address, place / "data")
    killed = []

    def kill_one() -> None:
        while len(Results(tmp_path / "there").rows()) < 3:
            time.sleep(0.01)
        worker = list(executor.workers.values())[-1]
        os.kill(worker, signal.SIGKILL)
        killed.append(worker)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        said = run_study(plan, tmp_path / "there", data=place / "data", executor=executor)
    finally:
        killer.join()
        executor.close()
    assert killed
    assert killed[0] not in executor.workers.values()
    assert (said["done"], said["failed"]) == (14, 0)
    assert rows_of(tmp_path / "there") == rows_of(tmp_path / "here")


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_cannot_be_read_is_told_as_in_this_process(place, tmp_path, cluster):
    from calibrune.errors import ModelError
    from calibrune.study.on_ray import OnRay

    plan = read_plan(place / "plan.yaml", ["models=[./nowhere]"])
    executor = OnRay(cluster.address, place / "data")
    try:
        with pytest.raises(ModelError, match=r"^there is no folder './nowhere'"):
            run_study(plan, tmp_path / "out", data=place / "data", executor=executor)
    finally:
        executor.close()


@pytest.mark.skipif(has_ray, reason="Ray is installed")
def test_without_ray_it_says_what_to_install(place):
    from calibrune.study.on_ray import OnRay

    with pytest.raises(ConfigError, match=r"pip install 'calibrune\[ray\]'"):
        OnRay("local", place)
