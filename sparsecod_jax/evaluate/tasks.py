"""Which questions are asked, and of which data?

lm-eval's tasks name data sets of a hub. With a folder of data sets saved by `datasets.save_to_disk`, laid out DATASET/CONFIG/SPLIT with
CONFIG `none` where there is but one, each task is given its data set there; no other part of the task changes.
"""

import dataclasses
import difflib
from functools import partial
from typing import Any

import datasets
from etils import epath
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Kind

from sparsecod_jax.errors import ConfigError

SCORES = (
    "multiple_choice",
    "loglikelihood",
    "loglikelihood_rolling",
)  # what tasks may ask of the model

# Data sets, or configs of them, that are also in use under another name, and the columns that are named otherwise there.
OTHER_NAMES = {
    "cais/mmlu": "hails/mmlu_no_train",
    "lighteval/siqa": "social_i_qa",
    "aps/super_glue/boolq": "boolq",
}
OTHER_COLUMNS = {"boolq": {"answer": "label"}}


class MissingData(ConfigError):
    """The folder lacks a task's data set."""


@dataclasses.dataclass(frozen=True)
class TaskSet:
    """Tasks whose data is at hand."""

    names: tuple[str, ...]  # as asked for: tasks, groups and tags
    members: dict[str, list[str]]  # the tasks of each name
    tasks: dict[str, Task]
    groups: dict[str, Group]
    data: dict[
        str, dict[str, Any]
    ]  # of each task that was given local data: its folder and splits

    def for_lm_eval(self) -> dict[str, Any]:
        """As `lm_eval.evaluate` takes them."""
        return {
            "tasks": self.tasks,
            "groups": self.groups,
            "group_map": {
                name: group.child_names for name, group in self.groups.items()
            },
        }


def load(
    names: list[str],
    folder: epath.Path | None,
    include: epath.Path | None,
    num_fewshot: int | None,
) -> TaskSet:
    """Loads tasks and their data, without a network if `folder` has it all.

    Args:
      folder: local data sets; None has each task load its own as lm-eval does.
      include: a folder of further tasks in YAML.
      num_fewshot: examples before each question; None is as each task says, and 0 where it says nothing.

    Raises:
      ConfigError: a name is unknown or asked for twice, a task needs generation, its data or enough examples are not there.
    """
    for option, place in (("--data", folder), ("--include", include)):
        if place is not None and not place.is_dir():
            raise ConfigError(f"{option}={place} is not a folder: correct it")
    manager = TaskManager(include_path=str(include) if include else None)
    for name in names:
        if name not in manager.task_index:
            guesses = difflib.get_close_matches(name, manager.task_index, n=3)
            hint = f", it has {', '.join(guesses)}" if guesses else ""
            raise ConfigError(
                f"lm-eval has no task {name!r}{hint}: choose from `lm-eval ls tasks`"
            )
    manager._factory = factory = _Factory(
        folder
    )  # the one place where a task's config is whole, members of groups included
    asked, missing = TaskSet(tuple(names), {}, {}, {}, factory.data), []
    for name in names:
        try:
            _add(asked, name, manager)
        except MissingData as error:
            missing.append(str(error))
    if missing:
        raise ConfigError(
            f"--data={folder} lacks {'; '.join(missing)}: add them, or leave out the tasks"
        )
    for task in asked.tasks.values():
        _set_examples(task, num_fewshot)
        if task.config.num_fewshot == 0 and task.config.task in asked.data:
            del asked.data[task.config.task]["fewshot_split"]
    return asked


def _add(asked: TaskSet, name: str, manager: TaskManager) -> None:
    try:
        loaded = manager.load([name])
    except ConfigError:
        raise
    except (
        Exception
    ) as error:  # tasks run code of their own and open data sets from anywhere
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise ConfigError(
            f"the task {name} can't be loaded ({reason}): give its data with --data, or leave it out"
        ) from error
    for task_name, task in loaded["tasks"].items():
        if task_name in asked.tasks:
            raise ConfigError(
                f"--tasks asks for {task_name} twice, once as part of {name}: leave one out"
            )
        if task.OUTPUT_TYPE not in SCORES:
            raise _generates(task_name, task.OUTPUT_TYPE)
    asked.members[name] = list(loaded["tasks"])
    asked.tasks.update(loaded["tasks"])
    asked.groups.update(loaded.get("groups", {}))


def _generates(task: str, output_type: Any) -> ConfigError:
    return ConfigError(
        f"the task {task} needs generated text ({output_type}), which is not scored here: leave it out"
    )


def _set_examples(task: Task, num_fewshot: int | None) -> None:
    """As lm-eval's own command line does: a task that fixes 0 keeps it."""
    usual = task.config.num_fewshot
    count = usual or 0 if num_fewshot is None or usual == 0 else num_fewshot
    task.set_config("num_fewshot", count)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    if count and len(list(task.fewshot_docs())) <= count - (
        task.config.fewshot_split != task.config.test_split
    ):
        raise ConfigError(
            f"the task {task.config.task} has too few examples for --num_fewshot={count}: lower it"
        )


class _Factory(TaskFactory):
    """Builds tasks with the data sets of a folder."""

    def __init__(self, folder: epath.Path | None):
        super().__init__()
        self._folder = folder
        self.data: dict[str, dict[str, Any]] = {}

    def _load_full_config(self, entry, overrides=None) -> dict[str, Any]:
        config = super()._load_full_config(entry, overrides)
        if entry.kind is Kind.GROUP:
            return config
        if (
            "class" not in config
            and config.get("output_type", "generate_until") not in SCORES
        ):
            raise _generates(
                config["task"], config.get("output_type", "generate_until")
            )
        brings_data = config.get("custom_dataset") or "data_files" in (
            config.get("dataset_kwargs") or {}
        )
        if self._folder is None or brings_data:
            return config
        place, columns = _place(self._folder, config)
        splits, described = _splits(config, place)
        self.data[config["task"]] = {
            "folder": str(place.relative_to(self._folder)),
            **described,
        }
        return (
            config
            | splits
            | {
                "custom_dataset": partial(_read, str(place), columns),
                "dataset_kwargs": None,
            }
        )


def _place(
    folder: epath.Path, config: dict[str, Any]
) -> tuple[epath.Path, dict[str, str]]:
    """Where a task's data set lies, and which of its columns have other names there.

    Raises:
      MissingData: nowhere.
    """
    path, name = config.get("dataset_path") or "", config.get("dataset_name")
    whole = f"{path}/{name}" if name else path
    for dataset in (path, path.rpartition("/")[2], OTHER_NAMES.get(path)):
        place = _configuration(folder / dataset, name) if dataset else None
        if place:
            return place, {}
    other = OTHER_NAMES.get(whole)
    place = _configuration(folder / other, None) if other else None
    if place is None:
        raise MissingData(f"{whole or 'the data'} of {config['task']}")
    return place, OTHER_COLUMNS.get(str(other), {})


def _configuration(dataset: epath.Path, name: str | None) -> epath.Path | None:
    """The folder of the splits of a data set's config; of the only one, where the task names none."""
    if name:
        candidates = [dataset / name]
    else:
        candidates = [
            dataset / "none",
            *(sorted(dataset.iterdir()) if dataset.is_dir() else ()),
        ]
        if len(candidates) > 2 and not candidates[0].is_dir():
            return None
    return next((place for place in candidates if _splits_in(place)), None)


def _splits_in(place: epath.Path) -> list[str]:
    return (
        sorted(
            split.name for split in place.iterdir() if (split / "state.json").exists()
        )
        if place.is_dir()
        else []
    )


def _splits(
    config: dict[str, Any], place: epath.Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """What to change in a task's config for the splits that are there, and what came of it; nothing is changed if none is missing.

    Raises:
      MissingData: none of them may be scored.
    """
    there, examples = _splits_in(place), dict(config.get("fewshot_config") or {})
    test, validation, training = (
        config.get(f"{split}_split") for split in ("test", "validation", "training")
    )
    usual = test or validation
    usual_examples = (
        examples.pop("split", config.get("fewshot_split"))
        or training
        or validation
        or test
    )
    scored = next(
        (
            split
            for split in (usual, validation, "test", "validation")
            if split in there
        ),
        None,
    )
    if scored is None:
        raise MissingData(
            f"the split {usual} of {config['task']} (there is {', '.join(there)})"
        )
    fewshot = next(
        split
        for split in (usual_examples, training, validation, scored)
        if split in there
    )
    described = {"split": scored, "usual_split": usual, "fewshot_split": fewshot}
    if (scored, fewshot) == (usual, usual_examples):
        named = {
            f"{split}_split": None
            for split in ("training", "validation")
            if config.get(f"{split}_split") not in there
        }
        return named, described
    # lm-eval leaves a question out of its own examples where both have the same split by name, so both are named.
    changed = {
        "test_split": scored,
        "validation_split": None,
        "training_split": None,
        "fewshot_split": fewshot,
        "fewshot_config": examples,
    }
    return changed, described


def _read(
    place: str, columns: dict[str, str], /, **_: Any
) -> dict[str, datasets.Dataset]:
    """The splits of a data set, in memory, so that what a task derives from them is not cached beside them."""
    splits = {}
    for split in _splits_in(epath.Path(place)):
        rows = datasets.load_from_disk(f"{place}/{split}", keep_in_memory=True)
        assert isinstance(rows, datasets.Dataset)
        for theirs, ours in columns.items():
            rows = rows.rename_column(theirs, ours).cast_column(
                ours, datasets.Value("int64")
            )
        splits[split] = rows
    return splits
