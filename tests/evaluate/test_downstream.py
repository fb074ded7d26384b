"""The subcommand eval: what it writes, averages and refuses."""

import json
import shutil

import pytest

from tests.support import loaded_models, tiny_configs

pytest.importorskip("lm_eval", reason="needs the extra eval")

from etils import epath

from sparsecod_jax import cli
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.evaluate import downstream, tasks
from sparsecod_jax.evaluate.downstream import average, evaluate
from sparsecod_jax.evaluate.lm_eval_model import LanguageModel
from sparsecod_jax.pretrained import load as pretrained
from tests.support import questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = epath.Path(tmp_path_factory.mktemp("data"))
    for name in ("Easy", "Challenge"):
        questions.save(made, f"ai2_arc/ARC-{name}/validation", questions.arc(6, name))
    questions.save(made, "boolq/none/validation", questions.boolq(4))
    return made


@pytest.fixture(scope="module")
def model():
    return loaded_models.load(
        loaded_models.sharpened(tiny_configs.MODEL), max_seq_len=36
    )


@pytest.fixture
def source(monkeypatch, model):
    """Any directory is that model."""
    monkeypatch.setattr(tasks, "TaskManager", questions.few_tasks)
    for module in (downstream, pretrained):
        monkeypatch.setattr(module, "find_model", lambda workdir, hf: model.source)
        monkeypatch.setattr(module, "load_model", lambda source: model)


@pytest.fixture
def unloadable(monkeypatch, model):
    """A mistake is reported before the model is loaded."""

    def load(source):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(tasks, "TaskManager", questions.few_tasks)
    monkeypatch.setattr(downstream, "find_model", lambda workdir, hf: model.source)
    monkeypatch.setattr(downstream, "load_model", load)


def test_results(source, folder, model, tmp_path):
    """Accuracies against those of the log-likelihoods themselves."""
    out = tmp_path / "out.json"
    table = evaluate(
        "run", None, "arc_easy,boolq", data=str(folder), out=str(out), limit=5
    )
    results = json.loads(
        out.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON")
    )
    task = tasks.load(["arc_easy"], folder, None, None).tasks["arc_easy"]
    task.build_all_requests(limit=5)
    answers = LanguageModel(model).loglikelihood(task.instances, disable_tqdm=True)
    correct = {"acc": 0, "acc_norm": 0}
    for number, doc in enumerate(questions.arc(5, "Easy")):
        sums = [answer for answer, _ in answers[4 * number : 4 * number + 4]]
        a_letter = [
            total / len(text)
            for total, text in zip(sums, doc["choices"]["text"], strict=True)
        ]
        correct["acc"] += sums.index(max(sums)) == number % 4
        correct["acc_norm"] += a_letter.index(max(a_letter)) == number % 4
    for metric, count in correct.items():
        assert results["results"]["arc_easy"][f"{metric},none"] == pytest.approx(
            count / 5
        )
    boolq = results["results"]["boolq"]["acc,none"]
    assert results["average"] == {
        "value": pytest.approx((correct["acc_norm"] / 5 + boolq) / 2),
        "tasks": {
            "arc_easy": {"metric": "acc_norm", "value": correct["acc_norm"] / 5},
            "boolq": {"metric": "acc", "value": boolq},
        },
        "left_out": [],
    }
    assert results["data"]["arc_easy"] == {
        "folder": "ai2_arc/ARC-Easy",
        "split": "validation",
        "usual_split": "test",
    }
    assert results["model"] == {
        "name": "tiny",
        "step": 3,
        "weights": "digest",
        "max_length": 36,
    }
    assert results["n-samples"]["boolq"] == {"original": 4, "effective": 4}
    assert results["limit"] == 5
    assert results["truncated"] > 0
    assert str(folder) not in out.read_text()
    for line in (
        "arc_easy was scored on validation",
        "lost their beginning",
        f"results: {out}",
        "average 0.",
    ):
        assert line in table


def test_the_command_line(source, folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    cli.main(
        [
            "eval",
            "--workdir=run",
            "--tasks=ai2_arc",
            f"--task_data={folder}",
            f"--out={out}",
            "--num_fewshot=1",
            "--limit=2",
        ]
    )
    results = json.loads(out.read_text())
    assert set(results["average"]["tasks"]) == {"arc_easy", "arc_challenge"}
    assert results["n-shot"] == {"arc_easy": 1, "arc_challenge": 1}
    assert results["data"]["arc_easy"]["fewshot_split"] == "validation"
    assert "acc_norm" in capsys.readouterr().out


def test_generate_on_the_command_line(source, capsys):
    cli.main(["generate", "--hf=model", "--prompt=the river", "--max_new_tokens=4"])
    assert capsys.readouterr().out.startswith("the river")


def test_a_rolling_task_has_no_accuracy(source, tmp_path):
    (tmp_path / "pages.jsonl").write_text(
        '{"page": "the river is old"}\n{"page": "it was light"}\n'
    )
    (tmp_path / "pages.yaml").write_text(
        questions.PERPLEXITY.replace("FILE", str(tmp_path / "pages.jsonl"))
    )
    out = tmp_path / "out.json"
    assert "average" not in evaluate(
        "run", None, "pages", include=str(tmp_path), trust=True, out=str(out)
    )
    results = json.loads(out.read_text())
    assert results["average"] == {"value": None, "tasks": {}, "left_out": ["pages"]}
    assert results["results"]["pages"]["bits_per_byte,none"] > 0


def test_a_hugging_face_directory_is_not_written_to(source, folder, tmp_path):
    assert "results:" not in evaluate(
        None, str(tmp_path), "boolq", data=str(folder), limit=2
    )
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_the_file_as_it_was(
    source, folder, tmp_path, monkeypatch
):
    out = tmp_path / "out.json"
    out.write_text(before := '{"versions_of": {}}')

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(LanguageModel, "_loglikelihood_tokens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate("run", None, "boolq", data=str(folder), out=str(out))
    assert out.read_text() == before


def test_evaluations_in_turn_are_all_kept(source, folder, tmp_path):
    out = tmp_path / "out.json"
    for name in ("boolq", "arc_easy", "arc_easy"):
        evaluate("run", None, name, data=str(folder), out=str(out), limit=2)
    newest = json.loads(out.read_text())
    options = newest["asked"]
    assert options.pop("data").startswith(f"{folder.name}-")
    assert options == {
        "tasks": ["arc_easy"],
        "limit": 2,
        "num_fewshot": None,
        "include": None,
    }
    assert [set(earlier["results"]) for earlier in newest["earlier"]] == [{"boolq"}]
    shutil.copytree(folder, tmp_path / folder.name)
    evaluate(
        "run", None, "arc_easy", data=str(tmp_path / folder.name), out=str(out), limit=2
    )
    assert [
        set(earlier["results"]) for earlier in json.loads(out.read_text())["earlier"]
    ] == [{"arc_easy"}, {"boolq"}]


def test_results_are_printed_though_they_can_not_be_written(
    source, folder, tmp_path, monkeypatch, capsys
):
    def full(path, values):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(downstream.records, "write_record", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate(
            "run",
            None,
            "boolq",
            data=str(folder),
            out=str(tmp_path / "out.json"),
            limit=2,
        )
    assert "boolq" in capsys.readouterr().out


def test_tasks_of_others_need_trust(unloadable, tmp_path):
    (tmp_path / "evil.yaml").write_text(
        f"task: evil\ndoc_to_text: !function evil.{tmp_path.name}\n"
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    with pytest.raises(ConfigError, match=r"may run any code: add --trust"):
        evaluate(
            "run", None, "evil", include=str(tmp_path), out=str(tmp_path / "out.json")
        )
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("", {}, "--tasks names no task"),
        ("arc_eazy", {}, "no task 'arc_eazy'"),
        ("triviaqa", {}, "needs generated text"),
        ("arc_easy,sciq", {}, "lacks allenai/sciq of sciq"),
        ("arc_easy", {"limit": 0}, "--limit=0 is below 1"),
        ("arc_easy", {"num_fewshot": -1}, "--num_fewshot=-1 is below 0"),
        (
            "arc_easy",
            {"out": "/absent/folder/out.json"},
            "the results can not be written .* give --out",
        ),
        ("arc_easy", {"out": "/tmp"}, "the results can not be written .*is a folder"),
        ("arc_easy", {"out": __file__}, "is not JSON"),
    ],
)
def test_mistakes_are_reported_before_the_model_is_loaded(
    unloadable, folder, names, options, message
):
    with pytest.raises(ConfigError, match=message):
        evaluate(None, "model", names, data=str(folder), **options)


def test_without_lm_eval(unloadable, monkeypatch):
    monkeypatch.setattr(downstream.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sparsecod-jax\[eval\]'"):
        evaluate(None, "model", "arc_easy")


def test_average():
    """A group that is summed up counts once, a tag's tasks each; acc_norm goes before acc."""
    results = {
        "mmlu": {"acc,none": 0.3, "acc_stderr,none": 0.1, "alias": "mmlu"},
        "mmlu_anatomy": {"acc,none": 0.9},
        "arc_easy": {"acc,none": 0.5, "acc_norm,none": 0.4},
        "arc_challenge": {"acc_norm,none": 0.2, "acc,none": 0.9},
        "pages": {"bits_per_byte,none": 1.0},
    }
    members = {
        "mmlu": ["mmlu_anatomy"],
        "ai2_arc": ["arc_easy", "arc_challenge"],
        "pages": ["pages"],
    }
    result = average(results, members)
    assert result["value"] == pytest.approx((0.3 + 0.4 + 0.2) / 3)
    assert {name: task["metric"] for name, task in result["tasks"].items()} == {
        "mmlu": "acc",
        "arc_easy": "acc_norm",
        "arc_challenge": "acc_norm",
    }
    assert result["left_out"] == ["pages"]
