"""What a plan says, what it may not say, and where it says so."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrune.calibration.spec import parse_spec
from calibrune.errors import CalibruneError, ConfigError
from calibrune.study.estimate import outlook
from calibrune.study.plan import as_yaml
from calibrune.study.reading import read_plan, read_selection
from calibrune.study.spec import located, render

REPOSITORY = Path(__file__).resolve().parents[2]
PLANS = sorted((REPOSITORY / "plans").rglob("*.yaml"))

BASE = """
models: [tiny]
calibration: [c4]
pruners: [wanda]
patterns: [50%]
evaluations: [{perplexity: alpaca}]
"""


def plan_of(tmp_path, text, *settings, base=BASE):
    path = tmp_path / "plan.yaml"
    path.write_text(base + text)
    return read_plan(path, settings)


def said(plan):
    return [str(spec) for spec in plan.runs]


def test_every_choice_with_every_seed_and_a_dense_run_first(tmp_path):
    plan = plan_of(tmp_path, "seeds: 2\nallocators: [uniform, owl]\n")
    assert said(plan) == [
        "tiny, dense",
        "tiny, wanda, 50%, c4, seed 0",
        "tiny, wanda, 50%, owl, c4, seed 0",
        "tiny, wanda, 50%, c4, seed 1",
        "tiny, wanda, 50%, owl, c4, seed 1",
    ]


def test_a_list_in_a_recipe_is_a_choice_and_its_name_says_which(tmp_path):
    text = "calibration:\n  - {source: selfgen, prefix_tokens: [1, 4], samples: [8, 16], name: own}\n"
    plan = plan_of(tmp_path, text, base=BASE.replace("calibration: [c4]\n", ""))
    recipes = [spec.calibration for spec in plan.runs[1:]]
    assert [r.name for r in recipes] == [
        "own:prefix_tokens=1:samples=8", "own:prefix_tokens=1:samples=16",
        "own:prefix_tokens=4:samples=8", "own:prefix_tokens=4:samples=16",
    ]  # fmt: skip
    assert {r.source for r in recipes} == {"own"}
    assert (recipes[2].spec, recipes[2].samples) == ("selfgen:prefix_tokens=4", 8)


def test_settings_of_a_method_may_be_lists_too(tmp_path):
    plan = plan_of(tmp_path, "", "pruners=[{name: dsnot, max_cycles: [5, 10]}]")
    assert [spec.pruner for spec in plan.runs[1:]] == ["dsnot:max_cycles=5", "dsnot:max_cycles=10"]


def test_what_cannot_change_a_result_makes_no_second_run(tmp_path):
    text = "propagation: [pruned, dense]\nseeds: 3\n"
    plan = plan_of(tmp_path, text, "calibration=[c4, wikipedia]", "pruners=[magnitude]", "allocators=[uniform, owl]")
    assert said(plan) == [
        "tiny, dense",
        "tiny, magnitude, 50%",
        *[f"tiny, magnitude, 50%, owl, {source}, seed {i}" for i in range(3) for source in ("c4", "wikipedia")],
    ]


def test_finished_tokens_are_the_same_for_every_seed(tmp_path):
    plan = plan_of(tmp_path, "seeds: 3\n", "calibration=[tokens.safetensors]")
    assert said(plan) == ["tiny, dense", "tiny, wanda, 50%, tokens"]


def test_what_is_measured_twice_is_measured_once(tmp_path):
    assert len(plan_of(tmp_path, "", "evaluations=[{perplexity: alpaca}, {perplexity: alpaca}]").evaluations) == 1


TWO = "models: [tiny, other]\nseeds: 2\ninclude:\n  - {models: [tiny], pruners: [magnitude], patterns: ['2:4']}\n"
OTHERS = ["other, dense", "other, wanda, 50%, c4, seed 0", "other, wanda, 50%, c4, seed 1"]
TINYS = [one.replace("other", "tiny") for one in OTHERS]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], [*OTHERS, *TINYS, "tiny, magnitude, 2:4"]),
        (["model=tiny", "pattern=0.5", "seed=1"], [TINYS[0], TINYS[2]]),
        (["pattern=2:4,50%", "model=tiny", "pruner=magnitude"], ["tiny, dense", "tiny, magnitude, 2:4"]),
        (["seed=0", "seed=1", "calibration=c4", "model=other"], OTHERS),
    ],
)
def test_the_runs_that_are_meant_and_the_dense_ones_of_their_models(tmp_path, given, expected):
    plan = plan_of(tmp_path, "", base=BASE.replace("models: [tiny]\n", TWO))
    chosen = plan.chosen(read_selection(plan, given))
    assert sorted(map(str, chosen)) == sorted(expected)
    assert [run["run"] for run in outlook(plan, chosen)["runs"]] == list(map(str, chosen))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["prunner=wanda"], r"^--only prunner=wanda: no run of plan has a 'prunner'; did you mean 'pruner'\?$"),
        (["pruner=wandaa"], r"^--only pruner=wandaa: no run of plan has the pruner 'wandaa'; did you mean 'wanda'\?$"),
        (["seed=0,7"], r"no run of plan has the seed '7'; choose one of: 0, 1$"),
        (["seed"], r"no run of plan has the seed ''"),
        (["pattern=abc"], r"^--only pattern=abc: cannot read 'abc' as a sparsity"),
        (["pruner=magnitude", "seed=0"], r"^--only pruner=magnitude --only seed=0: no run of plan is all of this"),
    ],
)
def test_a_choice_of_runs_that_is_of_none_is_refused(tmp_path, given, says):
    plan = plan_of(tmp_path, "", base=BASE.replace("models: [tiny]\n", TWO))
    with pytest.raises(ConfigError, match=says):
        plan.chosen(read_selection(plan, given))


def test_included_grids_are_added_and_excluded_runs_left_out(tmp_path):
    text = "include:\n  - {pruners: [magnitude], patterns: ['2:4']}\nexclude:\n  - {pruner: wanda, source: wikipedia}\n"
    plan = plan_of(tmp_path, text, "calibration=[c4, wikipedia]")
    assert said(plan) == ["tiny, dense", "tiny, wanda, 50%, c4, seed 0", "tiny, magnitude, 2:4"]


def test_a_plan_extends_another_and_replaces_its_keys(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    plan = plan_of(tmp_path, "extends: base.yaml\nname: child\npatterns: [60%, '2:4']\n", base="")
    assert [spec.pattern for spec in plan.runs[1:]] == ["0.6", "2:4"]
    (tmp_path / "again.yaml").write_text(as_yaml(plan))
    assert read_plan(tmp_path / "again.yaml").runs == plan.runs


@pytest.mark.parametrize(("said", "seeds"), [("1", (0,)), ("3", (0, 1, 2)), ("[3]", (3,)), ("[4, 2]", (4, 2))])
def test_a_number_of_seeds_or_a_list_of_them(tmp_path, said, seeds):
    assert plan_of(tmp_path, f"seeds: {said}\n").grids[0].seeds == seeds


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("modles: [x]\n", [], r"plan.yaml, line 7 \(modles\): a plan has no key 'modles'; did you mean 'models'"),
        ("models: [x]\n", [], r"plan.yaml: the key 'models' stands twice, in line 2 and in line 7"),
        ("seeds: [0, x]\n", [], r"plan.yaml, line 7 \(seeds\): a seed is a whole number, got 'x'"),
        ("seeds: 0\n", [], r"plan.yaml, line 7 \(seeds\): there can be 1 to 10,000 seeds, got 0"),
        ("seeds: [\n", [], r"plan.yaml cannot be read as YAML"),
        ("allocators:\n  - uniform\n  - owll\n", [], r"plan.yaml, line 9 \(allocators\): there is no allocator 'owll'"),
        ("", ["patterns=[2:4]"], r"--set patterns.*if 2:4 was meant: in YAML it needs quotes"),
        ("", ["patterns=['2:4']", "allocators=[alphapruning]"], r"AlphaPruning .* 2:4 .*exclude: \["),
        ("", ["pruners=[wanda:select=cumulative]", "patterns=['2:4']"], r"cumulative.*cannot give 2:4"),
        ("", ["calibration=[{source: selfgen, prefixes: 2}]"], r"has no option 'prefixes'"),
        ("", ["calibration=[{sauce: c4}]"], r"needs a `source:`"),
        ("", ["calibration=[{source: c4, name: x}, {source: wikipedia, name: x}]"], r"two choices are called 'x'"),
        ("", ["evaluations=[{perplexity: alpacca}]"], r"there is no evaluation text 'alpacca'; did you mean 'alpaca'"),
        ("", ["evaluations=[{perplexity: 'alpaca:protocol=harness-wrd'}]"], r"did you mean 'harness-word'"),
        ("", ["evaluations=[{perplexity: 'wikitext2:strid=512'}]"], r"'wikitext2' has no option 'strid'"),
        ("", ["evaluations=[{limit: 3}]"], r"measures either"),
        ("", ["proxies=[min_k_plus]"], r"there is no proxy 'min_k_plus'; did you mean 'min_k_plus_plus'"),
        ("exclude:\n  - {pruner: magnitude}\n", [], r"plan.yaml, line 8.*nothing is left out"),
        ("exclude:\n  - {prunner: wanda}\n", [], r"plan.yaml, line 8 \(prunner\).*did you mean 'pruner'"),
        ("include:\n  - {pruner: [wanda]}\n", [], r"include has no key 'pruner'; did you mean 'pruners'"),
        ("", ["calibration=[{source: c4, samples: 8, pool: 4}]"], r"8 samples cannot be drawn from a pool of 4"),
        ("", ["pruners"], r"--set 'pruners' is not of the form KEY=VALUE"),
        ("extends: plan.yaml\n", [], r"extends itself"),
        ("", ["name=../elsewhere"], r"a study cannot be called '../elsewhere'"),
        ("", ["name=[x]"], r"the name is a text, got \['x'\]"),
        ("", ["models=[5]"], r"a model is a name, or \{name: ...*got 5"),
        ("", ["pruners=[{name: dsnot, max_cycles: []}]"], r"max_cycles is a choice of nothing"),
        ("", ["calibration=[{source: c4, name: [a, b]}]"], r"the name of a calibration is one word"),
        ("", ["seeds=-3"], r"there can be 1 to 10,000 seeds, got -3; for one seed of this number write \[-3\]"),
        ("", ["seeds=1000000000000"], r"there can be 1 to 10,000 seeds"),
        ("", ["evaluations=[{tasks: piqa, seq_len: 64}]"], r"seq_len is for perplexity"),
        ("", ["evaluations=[{tasks: piqa, against: dense}]"], r"against is for perplexity"),
        ("", ["evaluations=[{perplexity: alpaca, against: llama}]"], r"against.*'dense'"),
        (
            "",
            ["evaluations=[{perplexity: 'wikitext2:protocol=harness-word', against: dense}]"],
            r"on windows or on texts",
        ),
        ("exclude:\n  - {pattern: abc}\n", [], r"plan.yaml, line 8 \(pattern\): cannot read 'abc'"),
        ("exclude:\n  - {seed: 0}\n", [], r"^plan.yaml, line 8 \(exclude\): every run is left out but the dense one"),
        ("exclude:\n  - {pruner: magnitude}\n", [], r"^plan.yaml, line 8 \(exclude\): no run is like this"),
        ("", ["pruners=['of_ones_own:Nowhere']"], r"--set pruners \(pruners\): the module 'of_ones_own' has no class"),
        ("extends: nowhere.yaml\n", [], r"plan.yaml, line 7 \(extends\): there is no plan"),
    ],
)
def test_what_is_wrong_with_a_plan_is_told_with_its_place(tmp_path, text, settings, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, text, *settings)


def test_a_method_that_needs_data_needs_a_source(tmp_path):
    with pytest.raises(ConfigError, match=r"Wanda needs calibration data, and the plan names none"):
        plan_of(tmp_path, "", base=BASE.replace("calibration: [c4]\n", ""))


def test_a_key_changes_with_all_that_can_change_a_result_and_with_nothing_else(tmp_path):
    plan = plan_of(tmp_path, "proxies: [repetition]\n")
    spec = plan.runs[1].pinned("weights", "inputs")
    named = replace(spec, calibration=replace(spec.calibration, name="another", source="name"))
    elsewhere = replace(spec, model=replace(spec.model, name="elsewhere"))
    assert spec.key == named.key == elsewhere.key
    changes = [
        {"weights": "other"}, {"inputs": "other"}, {"seed": 1}, {"pattern": "0.6"}, {"propagation": "dense"},
        {"allocator": "owl"}, {"pruner": "ria"}, {"evaluations": ()}, {"batch_tokens": 1}, {"min_expert_tokens": 1},
        {"proxies": ()}, {"calibration": replace(spec.calibration, samples=7)},
    ]  # fmt: skip
    keys = {replace(spec, **change).key for change in changes}
    assert len(keys) == len(changes)
    assert spec.key not in keys


def test_a_key_has_the_version_of_the_harness_where_its_detokeniser_is_used(tmp_path, monkeypatch):
    def keys(text):
        evaluations = f"evaluations: [{{perplexity: '{text}'}}]"
        plan = plan_of(tmp_path, "", base=BASE.replace("evaluations: [{perplexity: alpaca}]", evaluations))
        before = plan.runs[0].key
        with monkeypatch.context() as patched:
            patched.setattr("calibrune.study.spec.harness_version", lambda: "another")
            return before, plan.runs[0].key

    assert len(set(keys("wikitext2"))) == 1
    assert len(set(keys("wikitext2:protocol=harness-word"))) == 2


def test_files_are_found_in_the_data_folder_wherever_a_spec_names_them(tmp_path):
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "c4.jsonl").touch()
    spec = "selfgen:prompts=corpora/c4.jsonl:weight=2,corpora/c4.jsonl,c4"
    here = tmp_path / "corpora/c4.jsonl"
    assert located(spec, tmp_path) == f"selfgen:prompts={here}:weight=2,{here},c4"
    assert located(spec, None) == spec


@given(st.dictionaries(st.sampled_from(["a", "b_c"]), st.one_of(st.integers(), st.booleans(), st.text("ab 2:'_-"))))
def test_a_rendered_spec_reads_back(options):
    assert parse_spec(render("selfgen", options)) == ("selfgen", options)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_plan_that_is_shipped_can_be_looked_at_without_its_models(path):
    plan = read_plan(path)
    found = outlook(plan)
    assert len(found["runs"]) == len(plan.runs) > 20
    assert plan.title
    assert plan.about
    if path.parent.name == "paper":
        assert {spec.seed for spec in plan.runs} == {None, *range(20)}
        plan.check(None)  # what is on the hub is not fetched
        assert found["estimate"]["seconds"] is None  # and its models are not at hand


def test_files_that_are_not_in_the_data_folder_are_told_before_anything_starts(tmp_path):
    plan = read_plan(REPOSITORY / "plans/two-core/quickstart.yaml")
    with pytest.raises(CalibruneError, match=r"c4.jsonl.gz") as caught:
        plan.check(tmp_path)
    assert "--data" in caught.value.__notes__[0]
    texts = plan_of(tmp_path, "", "calibration=[random]", "evaluations=[{perplexity: texts.jsonl.gz}]")
    with pytest.raises(CalibruneError, match=r"there is no evaluation text 'texts.jsonl.gz', and no such file"):
        texts.check(tmp_path)


def test_every_experiment_has_a_plan_in_both_sizes():
    names = {size: {path.stem for path in PLANS if path.parent.name == size} for size in ("paper", "two-core")}
    assert names["two-core"] - names["paper"] == {"quickstart"}
    assert len(names["paper"]) == 11


def test_work_that_is_shared_is_said(tmp_path):
    text = "seeds: 2\npropagation: [dense]\npatterns: [50%, 60%]\n"
    plan = plan_of(tmp_path, text, "calibration=[c4, selfgen]", base=BASE.replace("patterns: [50%]\n", ""))
    assert outlook(plan)["shared"] == [
        "1 dense evaluation for 9 runs",
        "4 calibration sets for 8 runs that read one",
        "2 sets of generated text, each written once",
        "statistics of at most 4 sets for 8 runs with dense propagation",
    ]
