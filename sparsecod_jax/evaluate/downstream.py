"""How well does it answer questions? The verb `eval`: lm-eval's tasks, their average, and the file of both."""

import hashlib
import importlib.util
import json
import logging
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.load import LoadedModel, find_model, load_model
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.rundir import RunDir

if TYPE_CHECKING:
    from sparsecod_jax.evaluate.tasks import TaskSet

METRICS = (
    "acc_norm",
    "acc",
)  # the first of them that a task reports enters the average
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
    """Scores a finished model on tasks of lm-eval and returns tables for people.

    Args:
      workdir, hf: a run directory or a Hugging Face directory, exactly one.
      tasks: names of tasks, groups or tags, separated by commas.
      limit: questions of a task at most.
      num_fewshot: examples before each question; None is as each task says.
      data: a folder of data sets (see `tasks`), in place of the hub's.
      include: a folder of further tasks in YAML; their templates and functions are code, so `trust` must be given with it.
      out: the JSON file to write; None is evaluation.json in the run directory, and no file for a Hugging Face directory. What it has of
        other evaluations is kept.

    Raises:
      ConfigError: model, tasks or data can't be used, or `out` can't be written; nothing was computed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "eval runs the tasks of lm-eval, which is not installed: pip install 'sparsecod-jax[eval]'"
        )
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError(
            "--tasks names no task: give some, such as --tasks=arc_easy,hellaswag"
        )
    if (limit is not None and limit < 1) or (
        num_fewshot is not None and num_fewshot < 0
    ):
        raise ConfigError(
            f"--limit={limit} is below 1 or --num_fewshot={num_fewshot} below 0: raise it, or leave it out"
        )
    if include is not None and not trust:
        raise ConfigError(
            f"the tasks in --include={include} may run any code: add --trust if you trust whoever wrote them, else leave them out"
        )
    source = find_model(workdir, hf)
    source.tokenizer()  # or it is told before tasks are loaded that there is none
    target = _target(workdir, out)
    earlier = _earlier(target) if target else []

    logging.getLogger("lm_eval").setLevel(
        logging.ERROR
    )  # it warns of each local data set
    from sparsecod_jax.evaluate import tasks as questions

    asked = questions.load(
        names,
        files.absolute(data) if data else None,
        files.absolute(include) if include else None,
        num_fewshot,
    )
    results = _run(load_model(source), asked, limit)
    table = _describe(results)
    if target is None:
        return table
    folders = {"data": _named(data), "include": _named(include)}
    results |= {
        "asked": {"tasks": names, "limit": limit, "num_fewshot": num_fewshot, **folders}
    }
    try:
        records.write_record(
            target,
            results
            | {"earlier": [found for found in earlier if not _same(found, results)]},
        )
    except BaseException:
        print(table, flush=True)  # hours may have gone into it
        raise
    return f"{table}\nresults: {target}"


def _target(workdir: str | None, out: str | None) -> epath.Path | None:
    """The file for the results, which can be written.

    Raises:
      ConfigError: it can't.
    """
    if out is None and workdir is None:
        return None
    target = (
        RunDir(files.absolute(str(workdir))).evaluation
        if out is None
        else files.absolute(out)
    )
    try:
        files.check_can_write(target)
    except ConfigError as error:
        raise ConfigError(
            f"the results have no place ({error}): give --out, a JSON file in a folder that is there"
        ) from error
    return target


def _earlier(target: epath.Path) -> list[dict[str, Any]]:
    """The evaluations that a file holds, the newest first.

    Raises:
      ConfigError: it holds something else.
    """
    if not target.exists():
        return []
    found = records.read_record(target)
    if "versions_of" not in found or not isinstance(
        earlier := found.pop("earlier", []), list
    ):
        raise ConfigError(
            f"{target} holds something else than results of eval: choose another --out"
        )
    return [found, *earlier]


def _named(folder: str | None) -> str | None:
    """A name that tells folders apart, and not where they lie."""
    if folder is None:
        return None
    path = files.absolute(folder)
    return f"{path.name}-{hashlib.sha256(os.fspath(path).encode(errors='surrogateescape')).hexdigest()[:8]}"


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two evaluations asked the same of the same model."""
    return all(a.get(name) == b.get(name) for name in ("asked", "model"))


def _run(model: LoadedModel, asked: "TaskSet", limit: int | None) -> dict[str, Any]:
    """lm-eval's results as plain JSON, and what it does not know."""
    import lm_eval
    from lm_eval.utils import handle_non_serializable

    from sparsecod_jax.evaluate.lm_eval_model import LanguageModel

    language_model = LanguageModel(model)
    os.environ["DISABLE_MULTIPROC"] = (
        "1"  # lm-eval would fork for a bootstrap, which may deadlock beside jax
    )
    tasks: Any = asked.for_lm_eval()
    results: Any = lm_eval.evaluate(
        language_model, tasks, limit=limit, bootstrap_iters=DRAWS, log_samples=False
    )
    for settings in results["configs"].values():
        settings.pop("custom_dataset", None)  # `data` says it better
    results |= {
        "average": average(results["results"], asked.members),
        "data": asked.data,
        "model": {
            "name": model.source.path.name,
            "step": model.step,
            "weights": model.weights,
            "max_length": model.source.max_seq_len,
        },
        "limit": limit,
        "truncated": language_model.truncated,
        "versions_of": {
            name: version(name) for name in ("lm_eval", "jax", "sparsecod-jax")
        },
    }
    return records.finite(
        json.loads(json.dumps(results, default=handle_non_serializable))
    )


def average(
    results: dict[str, dict[str, Any]], members: dict[str, list[str]]
) -> dict[str, Any]:
    """The plain mean over what was asked for, of `acc_norm` where it is reported and `acc` elsewhere.

    A group that lm-eval sums up, as mmlu, counts once; of others each task counts.

    Args:
      results: lm-eval's, by task and group, with names as `acc_norm,none`.
      members: the tasks of each name that was asked for.

    Returns:
      `value` (null if no task has an accuracy), `tasks` with `metric` and `value` of each, and `left_out`, those without an accuracy.
    """
    counted, left_out = {}, []
    for asked, tasks in members.items():
        for name in [asked] if _accuracy(results.get(asked, {})) else tasks:
            accuracy = _accuracy(results[name])
            if accuracy:
                counted[name] = accuracy
            else:
                left_out.append(name)
    value = (
        sum(entry["value"] for entry in counted.values()) / len(counted)
        if counted
        else None
    )
    return {"value": value, "tasks": counted, "left_out": left_out}


def _accuracy(result: dict[str, Any]) -> dict[str, Any] | None:
    for metric in METRICS:
        for key, value in result.items():
            if key.partition(",")[0] == metric:
                return {"metric": metric, "value": value}
    return None


def _describe(results: dict[str, Any]) -> str:
    """A table of every metric, and what to know about it."""
    lines = [("task", "questions", "examples", "metric", "value", "error")]
    for name, result in results["results"].items():
        questions = results["n-samples"].get(name, {}).get("effective", "")
        for key, value in result.items():
            metric, comma, kind = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = result.get(f"{metric}_stderr,{kind}")
                lines.append(
                    (
                        name,
                        questions,
                        results["n-shot"].get(name, ""),
                        metric,
                        _four_digits(value),
                        _four_digits(error),
                    )
                )
    widths = [
        max(len(str(line[column])) for line in lines) for column in range(len(lines[0]))
    ]
    parts = [
        "  ".join(
            f"{cell!s:{width}}" for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    entry = results["average"]
    if entry["value"] is not None:
        counted = ", ".join(
            f"{name} {task['metric']}" for name, task in entry["tasks"].items()
        )
        parts.append(f"average {entry['value']:.4f} of {counted}")
    for task, described in results["data"].items():
        if described["split"] != described["usual_split"]:
            parts.append(
                f"{task} was scored on {described['split']}, as {described['folder']} has no {described['usual_split']}"
            )
    if results["truncated"]:
        parts.append(
            f"{results['truncated']} texts are longer than {results['model']['max_length']} tokens and lost their beginning"
        )
    return "\n".join(parts)


def _four_digits(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""
