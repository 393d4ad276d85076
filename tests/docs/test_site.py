"""The site of the docs is built strictly, holds every page, and asks nobody for anything."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_page_is_in_the_navigation():
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"- ([\w/-]+\.md)$", text, re.MULTILINE)
    docs = REPOSITORY / "docs"
    assert sorted(named) == sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))
    assert yaml.safe_load(text)["strict"] is True


def test_the_site_builds_strictly_and_opens_offline(tmp_path):
    if find_spec("material") is None:
        pytest.skip("needs mkdocs-material, which is not installed (pip install 'calibrune[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")]
    assert len(pages) >= 25
    asked = re.compile(
        r"""<(?:script|img|iframe|link)[^>]+(?:src|href)=["']?https?://[^>]+rel=["']?stylesheet|<script[^>]+src=["']?https?:"""
    )
    assert not any(asked.search(page) for page in pages)
