"""What users write for calibration data: every kind of source, and one clear sentence for every bad one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import VOCAB, random_ids, tiny_lm

from calibrune.calibration.calibration_set import CalibrationSet
from calibrune.calibration.spec import (
    build_calibration,
    check_options,
    is_finished,
    parse_spec,
    parts_of,
    prepare_calibration,
    short_name,
)
from calibrune.errors import CalibrationError, CalibruneError, ConfigError
from calibrune.lm.loading import LanguageModel


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CALIBRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm(adds_bos=True)


@pytest.fixture
def here(tmp_path, monkeypatch, lm) -> Path:
    """A folder with one file of every kind that a SPEC can name."""
    monkeypatch.chdir(tmp_path)
    lines = [{"text": f"line {i} " * 5, "body": f"other {i} " * 5} for i in range(20)]
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("short.jsonl").write_text("\n".join(json.dumps({"text": "abc"}) for _ in range(20)))
    Path("book.txt").write_text("all in one " * 50)
    Path("empty.jsonl").write_text("")
    Path("empty.txt").write_text("")
    Path("notes.md").write_text("of no known ending")
    save_file({"input_ids": random_ids(8, 16)}, "tokens.safetensors")
    save_file({"input_ids": random_ids(8, 16).float()}, "floats.safetensors")
    save_file({"input_ids": torch.full((2, 8), VOCAB)}, "beyond.safetensors")
    save_file({"input_ids": torch.ones(1, 129, dtype=torch.long)}, "long.safetensors")
    save_file({"tokens": random_ids(2, 8)}, "nameless.safetensors")
    Path("broken.safetensors").write_bytes(b"half")
    CalibrationSet.from_ids(random_ids(8, 16)).save(tmp_path / "made")
    Path("folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "source", "options"),
    [
        ("selfgen", "selfgen", {}),
        ("selfgen:prefix_tokens=2", "selfgen", {"prefix_tokens": 2}),
        ("selfgen:prompts=bos:drop_highest=0.1", "selfgen", {"prompts": "bos", "drop_highest": 0.1}),
        ("c4.jsonl.gz:text_field=body", "c4.jsonl.gz", {"text_field": "body"}),
        ("a/b:c.jsonl", "a/b:c.jsonl", {}),
        (r"C:\texts\c4.jsonl:windows=packed", r"C:\texts\c4.jsonl", {"windows": "packed"}),
        ("selfgen:among=null", "selfgen", {"among": None}),
        ("selfgen:prompts=dir/c4.jsonl:seed=3", "selfgen", {"prompts": "dir/c4.jsonl", "seed": 3}),
        ("x.jsonl:text_field=a=b", "x.jsonl", {"text_field": "a=b"}),
        ("x.jsonl:text_field=", "x.jsonl", {"text_field": None}),
    ],
)
def test_a_spec_is_a_source_and_its_options(spec, source, options):
    assert parse_spec(spec) == (source, options)


@pytest.mark.parametrize("spec", ["", " ", ":prompts=bos"])
def test_a_spec_without_a_source_is_an_error(spec):
    with pytest.raises(ConfigError, match="names no source; give one of selfgen, random"):
        parse_spec(spec)


def test_a_name_wins_over_a_file_that_is_called_so(here, lm):
    Path("c4").mkdir()
    CalibrationSet.from_ids(random_ids(8, 16)).save("c4")
    with pytest.raises(CalibruneError, match="'allenai/c4' cannot be read"):
        build_calibration("c4", lm)
    assert build_calibration("./c4", lm).n_samples == 8


@pytest.mark.parametrize("name", ["c4", "selfgen", "random"])
def test_a_name_wins_over_a_folder_that_is_called_so(name, here):
    CalibrationSet.from_ids(random_ids()).save(name)
    assert not is_finished(name)
    assert is_finished(f"./{name}")


def test_only_tokens_that_are_there_are_a_finished_set(here):
    assert [is_finished(spec) for spec in ("made", "tokens.safetensors", "nope.safetensors")] == [True] * 3
    for spec in ("lines.jsonl", "lines.jsonl:template='a b',random", "lines.jsonl:evals=[a,b],random", "made,random"):
        assert not is_finished(spec)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("a/c4.jsonl.gz,b/wiki.jsonl.gz", "c4 + wiki"),
        ("b/wiki.jsonl.gz", "wiki"),
        ("hub/org/name:weight=2,selfgen:prompts=/x/y.jsonl", "name:weight=2 + selfgen:prompts=y.jsonl"),
        ("c4:evals=[a/b.txt, c/d.txt]:drop_highest=0.2", "c4:evals=[b.txt, d.txt]:drop_highest=0.2"),
    ],
)
def test_the_short_name_of_a_set_names_all_its_parts_and_no_folder(spec, name):
    assert short_name(spec) == name


def test_a_value_that_is_no_yaml_is_an_error():
    with pytest.raises(ConfigError, match=r"an option of 'selfgen:prompts=\[bos': '\[bos' cannot be read"):
        parse_spec("selfgen:prompts=[bos")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("c4,wikipedia", ["c4", "wikipedia"]),
        ("c4:weight=0.5,x.jsonl:weight=0.5", ["c4:weight=0.5", "x.jsonl:weight=0.5"]),
        ("a:template='{q}, {a}',b", ["a:template='{q}, {a}'", "b"]),
        ("c4:x=[1, 2],random", ["c4:x=[1, 2]", "random"]),
        ("bob's.jsonl,c4", ["bob's.jsonl", "c4"]),
    ],
)
def test_commas_part_a_mixture(spec, parts):
    assert parts_of(spec) == parts


def test_a_comma_in_the_name_of_a_file_that_is_there_parts_nothing(here):
    Path("a,b.txt").write_text("a comma in a name is no list")
    assert parts_of("a,b.txt:windows=packed") == ["a,b.txt:windows=packed"]


def test_a_mixture_of_every_kind_of_source(here, lm):
    spec = "lines.jsonl:weight=2:text_field=body,random:bos=none,selfgen:batch_size=8:among=8"
    made = build_calibration(spec, lm, n_samples=8, seq_len=16, seed=3)
    source = made.manifest["source"]
    assert source["name"] == "0.5 lines + 0.25 random tokens + 0.25 selfgen"
    assert [part["source"]["kind"] for part in source["parts"]] == ["file", "random tokens", "self-generated text"]
    assert [part["n_samples"] for part in made.manifest["parts"]] == [4, 2, 2]
    assert source["parts"][2]["filters"][0]["among"] == 8
    assert made.manifest["filters"] == []
    assert made.manifest["windows"]["bos"] == "none"
    half = build_calibration(spec, lm, n_samples=4, seq_len=16, seed=3)
    assert torch.equal(half.input_ids, made.input_ids[:4])


def test_a_file_of_documents(here, lm):
    made = build_calibration("lines.jsonl", lm, n_samples=4, seq_len=16)
    assert made.input_ids.shape == (4, 16)
    assert made.manifest["source"]["file"] == "lines.jsonl"
    assert made.manifest["windows"]["policy"] == "packed"


def test_the_options_of_a_file(here, lm):
    spec = "lines.jsonl:text_field=body:windows=long_documents:bos=window"
    made = build_calibration(spec, lm, n_samples=4, seq_len=16)
    assert made.manifest["source"]["text_field"] == "body"
    assert made.manifest["windows"] == {"policy": "long_documents", "bos": "window", "eos": "policy"}
    assert set(made.input_ids[:, 0].tolist()) == {0}
    assert "other" in lm.tokenizer.decode(made.input_ids[0])


def test_one_long_text(here, lm):
    assert build_calibration("book.txt", lm, n_samples=4, seq_len=16).n_samples == 4


def test_a_folder_made_by_calibrate(here, lm):
    made = build_calibration("made", lm)
    assert torch.equal(made.input_ids, random_ids(8, 16))
    assert torch.equal(build_calibration("made", lm, n_samples=3).input_ids, random_ids(8, 16)[:3])
    assert build_calibration("made", lm, seq_len=16).fingerprint == made.fingerprint


def test_ones_own_tokens(here, lm):
    made = build_calibration("tokens.safetensors", lm, n_samples=8)
    assert torch.equal(made.input_ids, random_ids(8, 16))
    assert made.manifest["source"]["kind"] == "safetensors"


def test_random_tokens(here, lm):
    made = build_calibration("random", lm, n_samples=4, seq_len=16)
    assert made.manifest["source"]["kind"] == "random tokens"
    assert build_calibration("random", lm, n_samples=4, seq_len=16).fingerprint == made.fingerprint
    assert build_calibration("random", lm, n_samples=4, seq_len=16, seed=1).fingerprint != made.fingerprint


def test_text_that_the_model_writes_itself(here, lm):
    spec = "selfgen:prompts=lines.jsonl:prefix_tokens=3:temperature=0.9:batch_size=8:among=8:drop_highest=0.25"
    made = build_calibration(spec, lm, n_samples=2, seq_len=32, seed=5)
    source = made.manifest["source"]
    assert source["prompts"]["file"] == "lines.jsonl"
    assert (source["prefix_tokens"], source["batch_size"], source["seed"]) == (3, 8, 5)
    assert source["sampling"] == {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2}
    assert source["max_new_tokens"] == 32
    (kept,) = made.manifest["filters"]
    assert kept == {"kind": "PerplexityFilter", "drop_highest": 0.25, "drop_lowest": 0.0, "among": 8}
    assert made.dropped["perplexity among the highest 0.25"] >= 2


def test_of_texts_that_the_model_writes_the_most_varied_stay_and_enough_are_written_for_it(here, lm):
    spec = "selfgen:preset=plain:prompts=bos:batch_size=16:drop_alike=0.75:variety_among=16"
    made = build_calibration(spec, lm, n_samples=4, seq_len=16)
    assert [one["kind"] for one in made.manifest["filters"]] == ["VarietyFilter", "PerplexityFilter"]
    assert (made.manifest["documents_looked_at"], made.dropped) == (16, {"fewest new words, of 0.75": 12})


def test_the_defaults_of_self_generation_are_those_of_the_study(here, lm):
    made = build_calibration("selfgen:n_texts=40", lm, n_samples=2)
    source = made.manifest["source"]
    assert source["sampling"] == {"temperature": 0.6, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2}
    assert made.manifest["filters"][0]["drop_highest"] == 0.2
    assert made.seq_len == lm.context_length == 128


def test_the_preset_is_the_studys_scale_and_what_is_said_beside_it_goes_first(here, lm):
    made = build_calibration(
        "selfgen:preset=study:prompts=lines.jsonl:n_texts=10:max_new_tokens=9", lm, n_samples=1, seq_len=16
    )
    source, (kept,) = made.manifest["source"], made.manifest["filters"]
    assert (source["n_texts"], source["max_new_tokens"], source["prefix_tokens"]) == (10, 9, 2)
    assert (kept["among"], kept["drop_highest"]) == (5000, 0.2)
    assert made.dropped == {"perplexity among the highest 0.2": 2}


def test_plain_sampling_drops_nothing(here, lm):
    made = build_calibration("selfgen:preset=plain:temperature=0.9", lm, n_samples=1, seq_len=16)
    sampling = made.manifest["source"]["sampling"]
    assert sampling == {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    assert made.dropped == {}


def test_all_texts_can_be_compared_with_each_other_where_their_number_is_known(here, lm):
    made = build_calibration("selfgen:among=null:n_texts=10", lm, n_samples=2, seq_len=16)
    assert made.dropped == {"perplexity among the highest 0.2": 2}


def test_128_samples_unless_told_otherwise(here, lm):
    assert build_calibration("random", lm, seq_len=8).n_samples == 128


BAD = {
    "selfgn": "no calibration source 'selfgn'.*; did you mean 'selfgen'",
    "c5": "no calibration source 'c5'.*; choose one of: alpaca, c4, dclm",
    "c4:text_feld=body": "the source 'c4' has no option 'text_feld'; did you mean 'text_field'",
    "c4:dataset=org/other": "the source 'c4' has no option 'dataset'",
    "hub/org/web:scan=0": "scan cannot be 0",
    "wikitext2": "'Salesforce/wikitext' cannot be read: the hub cannot be reached",
    "selfgen:prompts=dclm": "'mlfoundations/dclm-baseline-1.0' cannot be read: the hub cannot be reached",
    "selfgen:temprature=1": "the source 'selfgen' has no option 'temprature'; did you mean 'temperature'",
    "selfgen:text_field=body": "has no option 'text_field'",
    "selfgen:model=1": "has no option 'model'",
    "selfgen:seed=1": "has no option 'seed'",
    "selfgen:temperature=0": "temperature cannot be 0",
    "selfgen:temperature=hot": "temperature cannot be 'hot'",
    "selfgen:prefix_tokens=0": "prefix_tokens cannot be 0",
    "selfgen:prompts=randm": "no prompts 'randm'; did you mean 'random'",
    "selfgen:prompts=nope.jsonl": r"no file nope\.jsonl",
    "selfgen:prompts=empty.jsonl": "empty",
    "selfgen:drop_highest=0.6:drop_lowest=0.6": "leave nothing",
    "selfgen:among=null": "their number is needed: add n_texts",
    "selfgen:n_texts=1": r"n_texts=1 texts of 18 tokens at most cannot fill them: give n_texts=6",
    "selfgen:preset=studdy": "no preset 'studdy'; did you mean 'study'",
    "selfgen:preset=[plain]": r"no preset \['plain'\]; did you mean 'plain'",
    "selfgen:engine=servr:url=http://x/v1": "has no option 'url'|no engine 'servr'; did you mean 'server'",
    "selfgen:engine=server": "needs a value for url",
    "selfgen:engine=server:url=localhost": "the server's url cannot be 'localhost'",
    "selfgen:concurrency=2": "has no option 'concurrency'",
    "selfgen:prompts=chat": "has no chat template",
    "selfgen:turns=0": "turns cannot be 0",
    "random:prompts=bos": "the source 'random' has no option 'prompts'",
    "random:eos=never": "eos cannot be 'never'",
    "random:windows=pakced": "policy cannot be 'pakced'",
    "lines.jsonl:text_feld=body": "has no option 'text_feld'; did you mean 'text_field'",
    "lines.jsonl:text_field=nope": "no field 'nope'",
    "lines.jsonl,": "names no source",
    "lines.jsonl,nope": "no calibration source 'nope'",
    "lines.jsonl,made": "'made' holds finished tokens, which cannot be a part of a mixture",
    "lines.jsonl:weight=0,random": "the weight of 'lines.jsonl' cannot be 0",
    "lines.jsonl:weight=true,random": "cannot be True",
    "lines.jsonl:weight=2": "a weight is for mixtures",
    "lines.jsonl:bos=none,random:bos=window": "bos is 'none' for one and 'window' for another",
    "lines.jsonl,random:text_field=x": "the source 'random' has no option 'text_field'",
    "lines.jsonl,short.jsonl:windows=long_documents": "documents of 'short' have 16 tokens",
    "lines.jsonl:path=x": "has no option 'path'",
    "nope.jsonl": r"no file nope\.jsonl",
    "linse.jsonl": r"did you mean lines\.jsonl",
    "notes.md": "known ones are",
    "empty.jsonl": "has no text in it",
    "empty.txt": "has no text in it",
    "short.jsonl:windows=long_documents": "only 0 of the 20 documents of 'short' have 16 tokens",
    "short.jsonl": "give only",
    "folder": "no finished calibration set",
    "made:text_field=x": "takes no options, got text_field",
    "tokens.safetensors:windows=packed": "takes no options, got windows",
    "nope.safetensors": r"there is no file 'nope\.safetensors'",
    "floats.safetensors": "whole numbers",
    "nameless.safetensors": "no tensor 'input_ids'",
    "broken.safetensors": "cannot be read",
}


@pytest.mark.parametrize("spec", BAD)
def test_a_bad_spec_is_one_clear_sentence(spec, here, lm):
    seq_len = None if spec.partition(":")[0].endswith(("made", ".safetensors", "folder")) else 16
    with pytest.raises(CalibruneError, match=BAD[spec]) as caught:
        build_calibration(spec, lm, n_samples=8, seq_len=seq_len)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("made", {"seq_len": 32}, "sequences of 32 tokens were asked for, but 'made' holds sequences of 16"),
        ("tokens.safetensors", {"seq_len": 8}, "holds sequences of 16"),
        ("made", {"n_samples": 9}, "9 samples asked for of a calibration set that has 8"),
        ("made", {"n_samples": 0}, "0 samples asked for"),
        ("beyond.safetensors", {}, "token id 96, but the model's vocabulary ends at 95"),
        ("long.safetensors", {}, "129 tokens.* but the model reads at most 128"),
        ("lines.jsonl", {"seq_len": 129}, "129 tokens.* but the model reads at most 128"),
        ("selfgen", {"seq_len": 129}, "129 tokens.* but the model reads at most 128"),
        ("lines.jsonl", {"seq_len": 0}, "sequences of 0 tokens were asked for"),
        ("selfgen", {"seq_len": 1}, "sequences of 1 tokens were asked for"),
        ("random", {"seq_len": -5}, "sequences of -5 tokens were asked for"),
        ("lines.jsonl", {"n_samples": 0, "seq_len": 8}, "n_samples cannot be 0"),
        ("lines.jsonl", {"n_samples": 500, "seq_len": 8}, "500 samples of 8 tokens asked for"),
    ],
)
def test_a_set_that_does_not_fit_is_one_clear_sentence(spec, options, says, here, lm):
    with pytest.raises(CalibruneError, match=says) as caught:
        build_calibration(spec, lm, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_set_that_was_changed_on_disk_is_refused(here, lm):
    save_file({"input_ids": random_ids(8, 16, seed=1)}, "made/calibration.safetensors")
    with pytest.raises(CalibrationError, match="fingerprint"):
        build_calibration("made", lm)


def test_a_set_of_another_models_tokenizer_is_refused_and_its_bare_tokens_are_not(here, lm):
    made = build_calibration("lines.jsonl", lm, n_samples=2, seq_len=16)
    made.save(here / "ours")
    assert build_calibration("ours", lm).fingerprint == made.fingerprint
    other = tiny_lm(adds_bos=False)
    with pytest.raises(CalibrationError, match=r"made with another tokenizer \(\w{12}\) than this model's \(\w{12}\)"):
        build_calibration("ours", other)
    assert torch.equal(build_calibration("ours/calibration.safetensors", other).input_ids, made.input_ids)


@pytest.mark.parametrize("spec", ["c4:scan=10", "selfgen:engine=server:url=http://a/v1", "a.txt:dedup=0.8,c4"])
def test_options_are_checked_without_opening_or_fetching_anything(spec):
    check_options(spec)


@pytest.mark.parametrize("spec", ["c4:scam=10", "selfgen:prefixes=2", "a.txt:windows=packed,random:dedup=0.5"])
def test_an_option_that_a_source_does_not_know_is_told(spec):
    with pytest.raises(ConfigError, match=r"has no option"):
        check_options(spec)


def test_what_a_set_is_made_from_is_known_before_it_is_made(tmp_path):
    (tmp_path / "a.txt").write_text("all work and no play " * 40)
    lm = tiny_lm()
    prepared = prepare_calibration(str(tmp_path / "a.txt"), n_samples=2, seq_len=16, seed=3)
    said, made = prepared.describe(lm), prepared(lm)
    assert said == {key: made.manifest[key] for key in said}
    made.save(tmp_path / "set")
    assert prepare_calibration(str(tmp_path / "set")).describe(lm) == {"tokens": made.fingerprint}
