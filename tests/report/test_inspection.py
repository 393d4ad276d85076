"""The picture of the layers: what it shows, in every format, and what is refused."""

import pytest

from calibrune.errors import ConfigError, OutputError
from calibrune.report.inspection import check_picture, draw, text

MODEL = {"source": {"name": "tiny"}, "layers": [{"name": "m.0.q_proj", "block": 0, "shape": [2, 2], "sparsity": 0.25}]}


def checkpoint(*errors, allocation="uniform"):
    layers = [
        {
            "name": f"m.{block}.q_proj", "block": block, "shape": [4, 8], "asked": "0.5", "pruned": 16, "sparsity": 0.5,
            "tokens": 8, "damping": None, "dead_channels": 1, "output_error": error, "seconds": 0.1, "fallback": None,
        }
        for block, error in enumerate(errors)
    ]  # fmt: skip
    request = {
        "model": {"name": "tiny <b>"}, "pruner": {"name": "wanda"}, "pattern": "0.5", "allocation": {"name": allocation}
    }  # fmt: skip
    return {"request": request, "report": {"layers": layers}}


def test_a_checkpoint_is_drawn_with_its_sparsity_and_its_output_error(tmp_path):
    shows = draw("pruned checkpoint", checkpoint(0.125, 0.5, allocation="owl"), tmp_path / "deep" / "layers.svg")
    assert shows == "share of zeros and relative output error of 2 layers by block"
    svg = (tmp_path / "deep" / "layers.svg").read_text(encoding="utf-8")
    for said in (
        "tiny &lt;b&gt;, pruned to 50% with wanda and owl",
        "share of zeros",
        "output error",
        "0.125",
        "50.0%",
    ):
        assert said in svg


def test_the_ending_says_the_format(tmp_path):
    for ending, begin in ((".png", b"\x89PNG"), (".svg", b"<svg"), (".html", b"<!doctype html>")):
        file = tmp_path / f"layers{ending}"
        file.write_text("an older one")
        draw("pruned checkpoint", checkpoint(0.1, 0.2), file)
        assert file.read_bytes().startswith(begin)
    page = (tmp_path / "layers.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "dead channels: 2 inputs of 2 layers" in page
    assert "tiny &lt;b&gt;" in page
    assert "0.200" in page


def test_what_is_not_known_is_not_drawn_and_said(tmp_path):
    shows = draw("pruned checkpoint", checkpoint(None, None), tmp_path / "magnitude.svg")
    assert (
        shows == "share of zeros of 2 layers by block, and no output error: the method sees no inputs to measure one on"
    )
    shows = draw("model", MODEL, tmp_path / "dense.svg")
    assert "share of zeros of 1 layers" in shows
    assert "this is a model and not a checkpoint that calibrune pruned" in shows
    assert "output error" not in (tmp_path / "dense.svg").read_text(encoding="utf-8")


def test_a_calibration_set_has_no_layers(tmp_path):
    with pytest.raises(ConfigError, match="a calibration set has no layers to draw; give a pruned checkpoint"):
        draw("calibration set", {}, tmp_path / "set.svg")
    with pytest.raises(ConfigError, match="a calibration set has no layers to list"):
        text("calibration set", {}, every_layer=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["layers", "layers.gif", "layers.svg.gz"])
def test_a_name_that_says_no_format_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"its name must end in \.svg, \.png, \.html"):
        check_picture(tmp_path / name)


def test_a_place_that_cannot_be_written_to_is_an_error_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        draw("model", MODEL, tmp_path / "file" / "layers.svg")
