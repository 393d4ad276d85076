"""The page of a study in a real browser, and the same tables in every form."""

import csv
import io
import json
import re

import pytest
from browser import CHROMIUM, browser
from made_up_study import PLAN, judged, make_up, row_of, small_effects
from typer.testing import CliRunner

from calibrune.cli import app
from calibrune.report.study import headlines, study_tables, tables_text, write_report
from calibrune.report.study_charts import study_charts
from calibrune.report.tables import Table
from calibrune.study.judgement import judge
from calibrune.study.scores import read_scores

EVIL = "<script>document.title='taken'</script>"
MANY = PLAN.replace("seeds: 12", "seeds: 3").replace("60%]", "30%, 40%, 50%]")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A study in which a source has a bad name and a run failed, and its page."""
    folder = tmp_path_factory.mktemp("made-up")
    text = PLAN.replace("name: three", f'name: "{EVIL}"').replace("Sources and", "Sources & <b>")
    plan, results = make_up(folder, text=text)
    last = plan.runs[-1]
    failed = {key: value for key, value in row_of(last, {}).items() if key != "scores"}
    results.append({**failed, "status": "failed", "error": f"broke: {EVIL}"})
    for row in results.rows():
        (folder / "runs").mkdir(exist_ok=True)
        record = {"calibration": {"source": {"name": EVIL}, "document_ids": [["long"]]}}
        (folder / "runs" / f"{row['key']}.json").write_text(json.dumps(record))
    found = judge(read_scores(plan, results))
    return found, results, write_report(found, results, page=None, command="calibrune study report made-up")


@pytest.fixture(scope="module")
def tab(written, tmp_path_factory):
    """The page in a browser, drawn."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.open(written[2])
        wait_until_drawn(tab)
        yield tab


def wait_until_drawn(tab):
    drawn = "document.documentElement.dataset.drawn"
    tab.run(f"new Promise(r => {{ const t = setInterval(() => {drawn} && (clearInterval(t), r()), 20) }})")


def test_every_chart_is_drawn_and_nothing_is_asked_of_anybody(tab, written):
    n = tab.run("document.querySelectorAll('.chart svg').length")
    assert n == len(study_charts(written[0])) == len(list(written[2].parent.glob("*.png"))) == 4
    marks = tab.run("[...document.querySelectorAll('.chart svg')].map(s => s.querySelectorAll('path').length)")
    assert min(marks) > 30  # seeds are drawn, not axes alone
    assert tab.asked_elsewhere == []
    assert tab.errors == []


def test_text_from_models_and_data_is_never_markup(tab):
    assert tab.run("document.title") == "Sources & <b> methods"
    assert tab.run("[...document.scripts].filter(s => s.textContent.includes('taken') && !s.type).length") == 0
    assert tab.run("document.body.textContent.includes(\"<script>document.title='taken'\")")


def test_a_script_that_got_in_all_the_same_does_not_run(tab):
    tab.run("void document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    tab.run(
        "void document.body.append(Object.assign(document.createElement('script'), {textContent: 'document.title=2'}))"
    )
    assert tab.run("new Promise(r => setTimeout(() => r(document.title), 200))") == "Sources & <b> methods"
    tab.errors.clear()  # the browser says that it refused them


TABLE = "document.querySelectorAll('.explorer')[0]"
VISIBLE = f"[...{TABLE}.querySelectorAll('tbody tr')].filter(r => !r.hidden)"


def test_a_table_filters_by_lists_and_by_words(tab):
    assert tab.run(f"{VISIBLE}.every(r => r.cells[0].textContent === 'mean accuracy')")  # chosen at first
    assert tab.run(f"{TABLE}.querySelector('output').textContent") == "8 of 32"
    event = "dispatchEvent(new Event('input'))"
    tab.run(f"{{ const i = {TABLE}.querySelector('input'); i.value = 'WANDA two'; i.{event} }}")
    assert tab.run(f"{VISIBLE}.map(r => r.cells[1].textContent + r.cells[2].textContent)") == ["wanda 60%two"]
    tab.run(f"{{ const s = {TABLE}.querySelector('select'); s.value = ''; s.{event} }}")
    assert tab.run(f"{VISIBLE}.length") == 4
    tab.run(f"{{ const i = {TABLE}.querySelector('input'); i.value = ''; i.{event} }}")
    assert tab.run(f"{VISIBLE}.length") == 32


def test_a_table_sorts_by_numbers_up_and_down(tab):
    values = f"{VISIBLE}.map(r => r.cells[3].textContent)"
    head = f"{TABLE}.querySelectorAll('th button')[3].click()"
    for up in (True, False):
        tab.run(head)
        numbers = [float(text.replace(",", "")) for text in tab.run(values)]
        assert numbers == sorted(numbers, reverse=not up)


def test_a_number_leads_to_its_runs_and_these_to_their_records(tab, written):
    tab.run(f"{VISIBLE}[0].querySelector('a').click()")
    assert tab.run("new Promise(r => setTimeout(() => r(document.querySelector(location.hash).open), 100))")
    targets = tab.run("[...document.querySelectorAll('td a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))")
    anchors = set(tab.run("[...document.querySelectorAll('details')].map(d => d.id)"))
    assert targets
    assert set(targets) <= anchors
    records = tab.run("[...document.querySelectorAll('details a')].map(a => a.getAttribute('href'))")
    assert len(records) == len(written[0].scores.plan.runs) - 1  # all but the failed one
    assert all((written[2].parent / record).is_file() for record in records)
    assert "long" not in tab.run("document.querySelector('details pre').textContent")


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone_by_day_and_by_night(written, tmp_path, dark):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with browser(tmp_path) as tab:
        tab.open(written[2], width=390, dark=dark)
        wait_until_drawn(tab)
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")
        assert tab.run("[...document.querySelectorAll('.chart')].every(c => c.querySelector('svg').clientWidth <= 390)")
        red, green, blue = map(int, re.findall(r"\d+", tab.run("getComputedStyle(document.body).backgroundColor"))[:3])
        assert (max(red, green, blue) < 60) == dark


def test_the_tables_are_the_same_in_every_form(written):
    found, _, page = written
    html = page.read_text(encoding="utf-8")
    for name, (heading, note, table) in study_tables(found).items():
        there = list(csv.reader(io.StringIO((page.parent / f"{name}.csv").read_text())))
        assert there[0] == list(table.columns)
        assert there[1:] == [["" if cell is None else str(cell) for cell in row] for row in table.rows]
        assert table.markdown() in (page.parent / "tables.md").read_text()
        assert table.latex(f"{heading}. {note}".strip()) in (page.parent / "tables.tex").read_text()
    table = study_tables(found)["configurations"].table
    cells = [re.sub("<[^>]+>", "", cell) for cell in re.findall("<td[^>]*>(.*?)</td>", html)]
    numbers = [row[3] for row in table.cells]
    assert [cells[i + 3] for i in range(0, len(table.rows) * len(table.columns), len(table.columns))] == numbers
    assert float(there_value(page, "configurations", 0, 3)) == table.rows[0][3]


def there_value(page, name, row, column):
    return list(csv.reader(io.StringIO((page.parent / f"{name}.csv").read_text())))[1 + row][column]


def test_the_page_says_what_failed_what_is_left_and_how_to_make_it_again(written, tmp_path):
    html = written[2].read_text(encoding="utf-8")
    for said in ("73 of 74", "1 failed", "broke: &lt;script&gt;", "calibrune study report made-up", "calibrune 0.1.0"):
        assert said in html
    assert len(html) < 1.5e6
    plan, results = make_up(tmp_path, only=lambda spec: spec.seed is None or spec.seed < 2)
    page = write_report(judge(read_scores(plan, results)), results, page=tmp_path / "alone.html", command="")
    html = page.read_text(encoding="utf-8")
    assert "The study is not finished: 14 of 74 runs done." in html
    assert "../runs" not in html  # the records lie elsewhere
    assert not (tmp_path / "report").exists()


def test_the_headline_names_the_largest_difference_with_its_interval(tmp_path):
    found = judged(tmp_path)
    said = [one.text for one in headlines(found)]
    one = max((c for c in found.comparisons if c.kind == "source" and c.measure.name == "mean accuracy"),
              key=lambda c: abs(c.difference.value))  # fmt: skip
    d = one.difference
    ends = sorted((abs(100 * d.low), abs(100 * d.high)))
    assert (
        f" in mean accuracy: {100 * abs(d.value):.1f} points [{ends[0]:.1f}, {ends[1]:.1f}] higher over 12" in said[0]
    )
    assert "on two beats " in said[0]
    assert said[0].endswith("4 of 6 comparisons of calibrations show a difference, 2 are the same within 1%.")
    assert all(paragraph.weight == "strong" for paragraph in headlines(found))


def test_of_too_little_the_page_says_that_nothing_can_be_told(tmp_path):
    found = judged(tmp_path, only=lambda spec: spec.seed in (None, 0))
    assert [one.text[:32] for one in headlines(found)] == ["Nothing can be told from chance:"]


def test_what_a_plan_varies_in_steps_is_drawn_as_lines(tmp_path):
    found = judged(tmp_path / "sparsity", text=MANY)
    lines = [one for one in study_charts(found) if one.name.startswith("lines")]
    assert [one.caption.partition(".")[0] for one in lines[:2]] == ["wanda", "sparsegpt"]
    rows = (
        lines[0].spec["data"]["values"] if "data" in lines[0].spec else next(iter(lines[0].spec["datasets"].values()))
    )
    assert {row["line"] for row in rows} == {"one", "two", "three", "magnitude"}
    assert {row["x"] for row in rows} == {30, 40, 50}
    text = PLAN.replace("seeds: 12", "seeds: 2").replace("samples: 4", "samples: [8, 16, 128]")
    bars, first, second, *_ = study_charts(judged(tmp_path / "amount", text=text))
    assert [one.caption.partition(".")[0] for one in (first, second)] == ["wanda 60%", "sparsegpt 60%"]
    drawn = str(bars.spec)  # sources side by side within each amount
    assert "'setting': 'wanda 60% samples=8', 'calibration': 'two'" in drawn


def test_a_table_for_latex_and_csv_escapes_what_they_take_for_their_own():
    table = Table(["a_b", "value"], [["50% & more, {x}", 0.123456789], ["–", None]])
    assert table.csv() == 'a_b,value\n"50% & more, {x}",0.123456789\n–,\n'
    assert r"50\% \& more, \{x\} & 0.1235 \\" in table.latex()
    assert r"\begin{tabular}{lr}" in table.latex("caption")
    assert r"\caption{caption}" in table.latex("caption")


def test_report_on_the_command_line_writes_the_page_and_prints_tables(tmp_path):
    make_up(tmp_path / "study", lambda spec: {("piqa", "acc"): small_effects(spec)["piqa", "acc"]})

    def run(*more):
        return CliRunner().invoke(app, ["study", "report", str(tmp_path / "study"), *more])

    said = json.loads(run("--page", str(tmp_path / "page.html"), "--json").stdout)
    assert (tmp_path / "page.html").is_file()
    assert "beats" in said["headlines"][0]
    for kind in ("md", "csv", "latex"):
        found = judge(
            read_scores(*make_up(tmp_path / "study", lambda s: {("piqa", "acc"): small_effects(s)["piqa", "acc"]}))
        )
        assert run("--format", kind).stdout == tables_text(found, kind)
    assert run("--format", "xls").exit_code == 2
    (tmp_path / "study" / "results.jsonl").write_text("")
    assert "no run of the study" in run().stderr
