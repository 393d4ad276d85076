"""What people write: patterns, SPECs, plans."""

import string

import pytest
import yaml
from fuzz.fuzzing import Cases, damaged, rearranged, values
from hypothesis import strategies as st

from calibrune.calibration.filters.options import filters_of
from calibrune.calibration.spec import check_options, parse_spec, parts_of, prepare_calibration, short_name
from calibrune.evaluation.texts import protocol_of
from calibrune.patterns import parse_pattern, parse_target, percent
from calibrune.study.plan import as_yaml
from calibrune.study.reading import read_plan
from calibrune.study.spec import is_remote, located, pruner_of

PATTERNS = st.one_of(
    st.text(max_size=12),
    st.text(string.digits + ":%.eE+-_ \u0661½", max_size=14),
    st.builds("{}:{}".format, st.integers(-2, 10**7), st.integers(-2, 10**7)),
    st.builds("{}%".format, st.floats()),
    st.builds(str, st.floats()),
    values,
)


def test_patterns(record_property):
    def check(said):
        pattern = parse_pattern(said)
        assert 0 <= pattern.sparsity < 1
        assert parse_pattern(str(pattern)) == pattern
        percent(pattern)
        parse_target(said)

    cases = Cases(4000)
    cases.run(PATTERNS, check, record_property)
    assert 0 < cases.taken < cases.done


WORDS = st.sampled_from(
    ["selfgen", "random", "nowhere.jsonl", "texts.txt", "set", "a.safetensors", "hub/a/b", "wanda", "owl", "", ".", "'"]
)
NAMES = st.sampled_from(
    ["weight", "prompts", "prefix_tokens", "drop_highest", "windows", "text_field", "engine", "url", "preset", "among"]
)
SAID = st.one_of(
    st.text(max_size=8), st.builds(str, st.floats()), st.sampled_from(["[1, 2", "{a: &a *a}", "!!python/none", "2:4"])
)
OPTIONS = st.builds("{}={}".format, NAMES | st.text("abc_=", max_size=5), SAID | st.integers())
SPECS = st.one_of(
    st.text(max_size=30),
    st.text("selfgn:=,'\"[]{}&*!.|-/ 0\n", max_size=40),
    st.builds(lambda source, options: ":".join([source, *options]), WORDS, st.lists(OPTIONS, max_size=4)),
    st.builds(",".join, st.lists(st.builds("{}:{}".format, WORDS, OPTIONS), max_size=4)),
)


def test_calibration_specs(record_property, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("the cat sat on a mat")
    (tmp_path / "set").mkdir()

    def check(spec):
        parts = parts_of(spec)
        short_name(spec)
        located(spec, tmp_path)
        check_options(spec)
        for part in parts:
            filters_of(*parse_spec(part))
        if not is_remote(spec):
            prepare_calibration(spec, n_samples=2, seq_len=8)

    cases = Cases(4000)
    cases.run(SPECS, check, record_property)
    assert 0 < cases.taken < cases.done


@pytest.mark.parametrize("read", [protocol_of, pruner_of])
def test_methods_and_protocols(read, record_property):
    names = st.sampled_from(["wanda", "sparsegpt", "dsnot", "alps", "wikitext2", "c4", "alpaca", "a.jsonl", "x"])
    options = st.sampled_from(["protocol", "seq_len", "stride", "damping", "power", "block_size", "limit", "records"])
    spec = st.builds(
        lambda name, said: ":".join([name, *(f"{key}={value}" for key, value in said)]),
        names | st.text(max_size=6),
        st.lists(st.tuples(options, SAID | st.integers()), max_size=3),
    )
    cases = Cases(1000)
    cases.run(spec | st.text(max_size=20), read, record_property)
    assert 0 < cases.taken < cases.done


PLAN = """
name: small
title: a small plan
models: [{name: ./model, dtype: float32}]
calibration:
  - {source: corpora/one.jsonl.gz, name: one}
  - {source: selfgen, among: [8, 16], batch_size: 4}
  - random
samples: 4
seq_len: 24
pruners: [{name: sparsegpt, damping: 0.1}, wanda]
patterns: [60%, '2:4']
allocators: [owl]
propagation: [dense]
seeds: 1
evaluations:
  - {perplexity: corpora/texts.jsonl.gz, limit: 4, seq_len: 16}
  - {tasks: 'arc_easy,piqa'}
proxies: [all]
include: [{pruners: [magnitude], calibration: [random]}]
exclude: [{pruner: wanda, pattern: '2:4'}]
baseline: random
margin: 0.02
"""

BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
)


def test_plans(record_property, tmp_path):
    file = tmp_path / "plan.yaml"

    def check(content):
        file.write_bytes(content)
        plan = read_plan(file)
        assert len({spec.id for spec in plan.runs[:20]}) == len(plan.runs[:20])
        as_yaml(plan)

    record = yaml.safe_load(PLAN)
    check(PLAN.encode())
    written = rearranged(record).map(lambda plan: yaml.safe_dump(plan).encode("utf-8", "surrogatepass"))
    Cases(1800).run(damaged(PLAN.encode()) | written, check, record_property)
    others = st.sampled_from(
        [BOMB, f"name: x\n{BOMB}", "[" * 5000, "a: " * 3000, "extends: plan.yaml", "extends: /dev/null", "extends: ''",
         "!!python/object/apply:os.system [ls]", "? [a, b]\n: c", "seeds: 100000000000", "models: [x]\nseeds: 9e9"]
    ).map(str.encode)  # fmt: skip
    Cases(200).run(others | st.binary(max_size=60) | st.text(max_size=60).map(str.encode), check, record_property)
