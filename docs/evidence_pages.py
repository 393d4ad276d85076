"""The pages of the studies whose rows are committed: what `calibrune study report` makes of them, in docs/evidence/.

`python docs/evidence_pages.py` makes those that are not of the rows as they stand; a megabyte or more each.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])  # this folder, and the one of examples/

from evidence_rows import PLANS, REPOSITORY, RESULTS, CommittedRows, study  # noqa: E402

from calibrune.report.study import write_report  # noqa: E402
from calibrune.study.judgement import judge  # noqa: E402
from calibrune.study.plan import as_yaml  # noqa: E402
from calibrune.study.reading import read_plan  # noqa: E402
from calibrune.study.results import Results  # noqa: E402
from calibrune.study.scores import read_scores  # noqa: E402

PAGES = REPOSITORY / "docs/evidence"
TWIN = "mean perplexity of texts"
"""Says of texts what their perplexity says, too, and would make a page twice as long."""


def made_of(name: str) -> str:
    """What a page says of the rows and the plan that it was made of: the start of their hash."""
    plan = as_yaml(read_plan(PLANS / f"{name}.yaml")).encode()
    return hashlib.sha256((RESULTS / f"{name}.jsonl").read_bytes() + plan).hexdigest()[:16]


def command(name: str) -> str:
    """What makes the study, and its page, again."""
    return "\n".join(
        (
            f"# rows {made_of(name)}",
            f"python docs/evidence.py --restore studies/{name}",
            f"calibrune study run plans/evidence/{name}.yaml --data DATA",
            f"calibrune study report studies/{name} --page {name}.html",
        )
    )


def write_page(name: str) -> Path:
    """A study's page, of the committed rows of its committed plan."""
    plan = read_plan(PLANS / f"{name}.yaml")
    with TemporaryDirectory() as place:
        folder = Path(place) / name
        results = Results(folder)
        for row in CommittedRows(RESULTS / f"{name}.jsonl").rows():
            results.append(row | {"scores": [score for score in row["scores"] if score["metric"] != TWIN]})
        (folder / "plan.yaml").write_text(as_yaml(plan), encoding="utf-8")
        PAGES.mkdir(exist_ok=True)
        return write_report(
            judge(read_scores(plan, results)), results, page=PAGES / f"{name}.html", command=command(name)
        )


def names() -> list[str]:
    """The studies that have rows."""
    return sorted(file.stem for file in RESULTS.glob("*.jsonl"))


def pages_list() -> str:
    """The pages, with how much of each plan is done."""
    lines = []
    for name in names():
        plan, cells = study(name)
        lines.append(f"- [{plan.title}](evidence/{name}.html): {cells.done:,} of {len(plan.runs):,} runs")
    return "\n".join(lines)


def is_current(name: str) -> bool:
    """Whether the page was made of the rows and the plans as they stand."""
    page = PAGES / f"{name}.html"
    return page.exists() and made_of(name) in page.read_text(encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Make the pages that are not current."""
    parser = argparse.ArgumentParser(description="The pages of the studies whose rows are committed.")
    parser.add_argument("--check", action="store_true", help="only say which are not of the rows as they stand")
    given = parser.parse_args(arguments)
    old = [name for name in names() if not is_current(name)]
    for name in old:
        print(f"{name}: not of the rows as they stand" if given.check else write_page(name))
    return 1 if old and given.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
