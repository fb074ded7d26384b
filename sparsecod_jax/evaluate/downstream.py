"""How well does it answer questions? The subcommand `eval`.

Downstream evaluation: tasks of lm-eval, the average of their accuracies, and the file of
both.
"""

import hashlib
import importlib.util
import json
import logging
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.evaluate.results_table import describe
from sparsecod_jax.pretrained.load import LoadedModel, find_model, load_model
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.rundir import RunDir

if TYPE_CHECKING:
    from sparsecod_jax.evaluate.tasks import TaskSet

METRICS = ("acc_norm", "acc")  # the first that a task reports enters the average
DRAWS = 1000  # of a bootstrap, for the errors of metrics that are not means


def evaluate(
    workdir: str | None,
    hf: str | None,
    tasks: str,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    data: str | None = None,
    include: str | None = None,
    trust: bool = False,
    out: str | None = None,
) -> str:
    """Scores a trained model on tasks of lm-eval and returns tables for people.

    Args:
      workdir, hf: a run directory or a Hugging Face model folder, exactly one.
      tasks: names of tasks, groups or tags, separated by commas.
      limit: the most questions of a task.
      num_fewshot: examples before each question; None is the task's own number.
      data: a folder of data sets (see `tasks`), in place of the hub's.
      include: a folder of further tasks in YAML; their templates and functions are code, so
        `trust` must be given with it.
      out: the JSON file to write; None is evaluation.json in the run directory, and no file
        for a Hugging Face model folder. Earlier evaluations in it are kept.

    Raises:
      ConfigError: model, tasks or data can't be used, or `out` can't be written; nothing was
        computed.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    _check_options(names, limit, num_fewshot, include, trust=trust)
    source = find_model(workdir, hf)
    source.tokenizer()  # so that a missing one is reported before tasks are loaded
    target = _target(workdir, out)
    earlier = _read_evaluations(target) if target else []

    task_set = _load_tasks(names, data, include, num_fewshot)
    results = _run(load_model(source), task_set, limit)
    table = describe(results)
    if target is None:
        return table
    results["asked"] = {
        "tasks": names,
        "limit": limit,
        "num_fewshot": num_fewshot,
        "data": _folder_name(data),
        "include": _folder_name(include),
    }
    results["earlier"] = [one for one in earlier if not _is_repeated(one, results)]
    try:
        records.write_record(target, results)
    except BaseException:
        print(table, flush=True)  # hours may have gone into it
        raise
    return f"{table}\nresults: {target}"


def _check_options(
    names: list[str],
    limit: int | None,
    num_fewshot: int | None,
    include: str | None,
    *,
    trust: bool,
) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "eval runs the tasks of lm-eval, which is not installed:"
            " pip install 'sparsecod-jax[eval]'"
        )
    if not names:
        raise ConfigError(
            "--tasks names no task: give some, such as --tasks=arc_easy,hellaswag"
        )
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit={limit} is below 1: raise it, or leave it out")
    if num_fewshot is not None and num_fewshot < 0:
        raise ConfigError(
            f"--num_fewshot={num_fewshot} is below 0: raise it, or leave it out"
        )
    if include is not None and not trust:
        raise ConfigError(
            f"the tasks in --include={include} may run any code: add --trust if you trust"
            " whoever wrote them, else leave them out"
        )


def _target(workdir: str | None, out: str | None) -> epath.Path | None:
    """The file for the results, which can be written; None where no file is wanted.

    Raises:
      ConfigError: it can't be written.
    """
    if out is not None:
        target = files.absolute(out)
    elif workdir is not None:
        target = RunDir(files.absolute(workdir)).evaluation
    else:
        return None
    try:
        files.check_can_write(target)
    except ConfigError as error:
        raise ConfigError(
            f"the results can not be written ({error}):"
            " give --out, a JSON file in a folder that is there"
        ) from error
    return target


def _read_evaluations(target: epath.Path) -> list[dict[str, Any]]:
    """The evaluations in a file of results, the newest first.

    Raises:
      ConfigError: the file is not one of ours.
    """
    if not target.exists():
        return []
    newest = records.read_record(target)
    earlier = newest.pop("earlier", [])
    if "versions_of" not in newest or not isinstance(earlier, list):
        raise ConfigError(
            f"{target} holds something else than results of eval: choose another --out"
        )
    return [newest, *earlier]


def _folder_name(folder: str | None) -> str | None:
    """A name that tells folders apart, without their location on this machine."""
    if folder is None:
        return None
    path = files.absolute(folder)
    content = os.fspath(path).encode(errors="surrogateescape")
    return f"{path.name}-{hashlib.sha256(content).hexdigest()[:8]}"


def _is_repeated(earlier: dict[str, Any], results: dict[str, Any]) -> bool:
    """Whether two evaluations asked the same of the same model."""
    return all(earlier.get(name) == results.get(name) for name in ("asked", "model"))


def _load_tasks(
    names: list[str], data: str | None, include: str | None, num_fewshot: int | None
) -> "TaskSet":
    # It warns of each local data set.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from sparsecod_jax.evaluate import tasks

    data_folder = files.absolute(data) if data else None
    include_folder = files.absolute(include) if include else None
    return tasks.load(names, data_folder, include_folder, num_fewshot)


def _run(model: LoadedModel, task_set: "TaskSet", limit: int | None) -> dict[str, Any]:
    """lm-eval's results as plain JSON, with what it does not know added."""
    import lm_eval
    from lm_eval.utils import handle_non_serializable

    from sparsecod_jax.evaluate.lm_eval_model import LanguageModel

    language_model = LanguageModel(model)
    # lm-eval would fork for a bootstrap, which may deadlock beside jax.
    os.environ["DISABLE_MULTIPROC"] = "1"
    tasks: Any = task_set.for_lm_eval()
    results: Any = lm_eval.evaluate(
        language_model, tasks, limit=limit, bootstrap_iters=DRAWS, log_samples=False
    )
    for settings in results["configs"].values():
        settings.pop("custom_dataset", None)  # a function; `data` describes it
    packages = ("lm_eval", "jax", "sparsecod-jax")
    results |= {
        "average": average(results["results"], task_set.members),
        "data": task_set.data,
        "model": {
            "name": model.source.path.name,
            "step": model.step,
            "weights": model.weights,
            "max_length": model.source.max_seq_len,
        },
        "limit": limit,
        "truncated": language_model.truncated,
        "versions_of": {name: version(name) for name in packages},
    }
    plain = json.loads(json.dumps(results, default=handle_non_serializable))
    return records.finite(plain)


def average(
    results: dict[str, dict[str, Any]], members: dict[str, list[str]]
) -> dict[str, Any]:
    """The plain mean of `acc_norm` where it is reported, and of `acc` elsewhere.

    A group for which lm-eval reports a sum, as mmlu, counts once; of others each task counts.

    Args:
      results: lm-eval's, by task and group, with names as `acc_norm,none`.
      members: the tasks of each name on the command line.

    Returns:
      `value` (null if no task has an accuracy), `tasks` with `metric` and `value` of each,
      and `left_out`, those without an accuracy.
    """
    counted, left_out = {}, []
    for given, tasks in members.items():
        names = tasks
        if _accuracy(results.get(given, {})):
            names = [given]
        for name in names:
            accuracy = _accuracy(results[name])
            if accuracy:
                counted[name] = accuracy
            else:
                left_out.append(name)
    value = None
    if counted:
        value = sum(entry["value"] for entry in counted.values()) / len(counted)
    return {"value": value, "tasks": counted, "left_out": left_out}


def _accuracy(result: dict[str, Any]) -> dict[str, Any] | None:
    """The metric of a task that enters the average, and its value."""
    for metric in METRICS:
        for key, value in result.items():
            if key.partition(",")[0] == metric:
                return {"metric": metric, "value": value}
    return None
