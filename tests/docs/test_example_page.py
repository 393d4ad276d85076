"""The example page is of the plan that it names, and is built as a page is built today: else it is to be made again."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_study import make_up, small_effects

from calibrune.report.study import write_report
from calibrune.study.judgement import judge
from calibrune.study.plan import as_yaml
from calibrune.study.reading import read_plan
from calibrune.study.scores import read_scores

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = REPOSITORY / "plans" / "two-core" / "quickstart.yaml"
EXAMPLE = (REPOSITORY / "docs" / "examples" / "quickstart.html").read_text(encoding="utf-8")


class Skeleton(HTMLParser):
    """What of a page is the same whatever its numbers: headings, heads of tables, notes, pictures, configurations."""

    KEPT = ("h1", "h2", "th", "summary", "figcaption", "style", "dt")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.bones: list[str] = []
        self._in: str | None = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        said = dict(attrs)
        self._in = tag if tag in self.KEPT and tag != self._in else self._in
        if tag in self.KEPT:
            self.bones.append(f"{tag}: ")
        elif tag in ("details", "select", "input", "section", "table"):
            self.bones.append(" ".join([tag, said.get("id") or "", said.get("class") or ""]))

    def handle_endtag(self, tag):
        self._in = None if tag == self._in else self._in

    def handle_data(self, data):
        if self._in:
            self.bones[-1] += data.strip()


def scripts(page: str) -> dict[str, str]:
    """The scripts that run, by the hash that the page allows them by."""
    ours = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    return {base64.b64encode(hashlib.sha256(one.encode()).digest()).decode(): one for one in ours}


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    """A page of the same plan with made-up numbers."""
    folder = tmp_path_factory.mktemp("example")

    def value(spec):
        found = small_effects(spec)
        accuracy, perplexity = found["arc_easy", "acc"], found["alpaca", "perplexity"]
        tasks = {(task, metric): accuracy for task in ("arc_easy", "piqa") for metric in ("acc", "acc_norm")}
        texts = {("alpaca", metric): perplexity for metric in ("mean perplexity of texts", "perplexity")}
        return texts | tasks

    plan, results = make_up(folder, value, PLAN.read_text(encoding="utf-8"))
    page = write_report(judge(read_scores(plan, results)), results, page=folder / "page.html", command="again")
    return page.read_text(encoding="utf-8")


def test_the_example_was_made_by_the_plan_that_is_shipped():
    plan = read_plan(PLAN)
    text = re.sub(r"<script.*?</script>", "", EXAMPLE, flags=re.DOTALL)
    said = html.unescape(re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)[-1])
    assert said == as_yaml(plan)
    assert re.search(rf"<h1>{re.escape(plan.title)}</h1>", EXAMPLE)
    assert f"{len(plan.runs)} of {len(plan.runs)}" in EXAMPLE


def test_the_example_is_built_as_a_page_is_built_today(today):
    # a note's first sentence says what is drawn, the others may speak of numbers
    then, now = ([bone.partition(". ")[0] for bone in Skeleton(page).bones] for page in (EXAMPLE, today))
    assert then == now


def test_the_example_has_the_scripts_of_today(today):
    # the drawing library's own is that of its version, which is not ours to hold still
    then, now = (sorted(scripts(page).values(), key=len) for page in (EXAMPLE, today))
    assert len(then) == len(now) == 2
    assert then[0] == now[0]
    assert set(scripts(EXAMPLE)) == set(re.findall(r"sha256-([\w+/=]+)", html.unescape(EXAMPLE[:2000])))
