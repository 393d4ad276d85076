"""The page: one file, nothing from outside, and no text that is taken for markup."""

import re
import sys
from html.parser import HTMLParser

import pytest

from calibrune.errors import ConfigError, OutputError
from calibrune.report.page import Folded, Grid, Heading, Page, Paragraph, Picture, Preformatted, Sample, Samples
from calibrune.report.plots import bar_chart
from calibrune.report.tables import Table

EVIL = "<script>alert('x')</script> & \"quoted\" </div>"


def page_of_everything(text: str = "words") -> Page:
    return Page(
        title=text,
        lede=text,
        facts=[(text, text)],
        footer=text,
        sections=[
            Heading(text),
            Paragraph(text),
            Grid(Table((text, "value"), [(text, 1.5), ("other", None)]), caption=text),
            Folded(text, Table((text, "value"), [(text, 1.5)])),
            Picture(bar_chart([{"name": text, "value": 1.0}], "name", "value"), alt=text, caption=text),
            Preformatted(text, caption=text),
            Samples([Sample(text, text, text)], before=text, after=text),
        ],
    )


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_tag_is_closed():
    assert Tags(page_of_everything().html()).open == []


def test_text_is_never_markup_wherever_it_stands():
    plain, evil = Tags(page_of_everything().html()), Tags(page_of_everything(EVIL).html())
    assert "script" not in evil.seen
    assert [t for t in evil.seen if t not in ("text", "tspan")] == [t for t in plain.seen if t not in ("text", "tspan")]


def test_nothing_comes_from_outside():
    html = page_of_everything().html()
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", html)
    assert "default-src 'none'" in html


def test_numbers_stand_to_the_right_and_a_missing_one_is_a_dash():
    html = page_of_everything().html()
    assert '<td class="number">1.500</td>' in html
    assert '<td class="number">–</td>' in html
    assert "<td>other</td>" in html


def test_writing_replaces_an_older_page_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "report" / "index.html"
    page_of_everything("old").write(path)
    page_of_everything("new – 剪枝").write(path)
    assert "new – 剪枝" in path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_a_page_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file/index.html"):
        page_of_everything().write(tmp_path / "file" / "index.html")
    (tmp_path / "folder" / "kept").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot write .*folder"):
        page_of_everything().write(tmp_path / "folder")
    assert [p.name for p in tmp_path.glob("*.html")] == []


@pytest.mark.parametrize("svg", ["<img src=x>", "<svg><script>1</script></svg>", ""])
def test_a_picture_is_an_svg_without_scripts(svg):
    with pytest.raises(ConfigError, match="without scripts"):
        Picture(svg, alt="")


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r"need jinja2.*pip install 'calibrune\[report\]'"):
        Page("title", []).html()
