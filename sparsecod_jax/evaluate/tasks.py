"""Which questions are asked, and of which data?

Tasks of lm-eval: they name data sets of a hub. With a folder of data sets saved by
`datasets.save_to_disk`, each task is given its data set there; no other part of the task
changes. The folder is laid out DATASET/CONFIG/SPLIT, with CONFIG `none` where there is but
one:

    ai2_arc/ARC-Easy/validation
    ai2_arc/ARC-Easy/test
    boolq/none/validation
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

Config = dict[str, Any]  # of a task, from its YAML

# What tasks may ask of the model.
OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")

# Data sets, or configs of them, that are also in use under another name, and the columns
# that have other names there.
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
    """Tasks whose data is at hand.

    Attributes:
      names: of tasks, groups and tags, as given on the command line.
      members: the tasks of each name.
      data: of each task that was given local data: its folder and splits.
    """

    names: tuple[str, ...]
    members: dict[str, list[str]]
    tasks: dict[str, Task]
    groups: dict[str, Group]
    data: dict[str, dict[str, Any]]

    def for_lm_eval(self) -> dict[str, Any]:
        """As `lm_eval.evaluate` takes them: tasks, groups, and the members of each group."""
        children = {name: group.child_names for name, group in self.groups.items()}
        return {"tasks": self.tasks, "groups": self.groups, "group_map": children}


def load(
    names: list[str],
    folder: epath.Path | None,
    include: epath.Path | None,
    num_fewshot: int | None,
) -> TaskSet:
    """Loads tasks and their data, without a network if `folder` has it all.

    Args:
      names: of tasks, groups and tags.
      folder: local data sets; None has each task load its own as lm-eval does.
      include: a folder of further tasks in YAML.
      num_fewshot: examples before each question; None is the task's own number, and 0 where
        it has none.

    Raises:
      ConfigError: a name is unknown or given twice, a task needs generation, its data or
        enough examples are not there.
    """
    for option, path in (("--task_data", folder), ("--include", include)):
        if path is not None and not path.is_dir():
            raise ConfigError(f"{option}={path} is not a folder: correct it")
    manager = TaskManager(include_path=str(include) if include else None)
    _check_names(names, manager)
    # The factory is the one part of lm-eval where a task's config is whole, members of
    # groups included.
    factory = _Factory(folder)
    manager._factory = factory
    task_set = TaskSet(tuple(names), {}, {}, {}, factory.data)
    # All data sets that are missing are named in one message.
    missing = []
    for name in names:
        try:
            _add(task_set, name, manager)
        except MissingData as error:
            missing.append(str(error))
    if missing:
        raise ConfigError(
            f"--task_data={folder} lacks {'; '.join(missing)}: add them, or leave out the tasks"
        )
    for task in task_set.tasks.values():
        _set_examples(task, num_fewshot)
        if task.config.num_fewshot == 0 and task.config.task in task_set.data:
            del task_set.data[task.config.task]["fewshot_split"]
    return task_set


def _check_names(names: list[str], manager: TaskManager) -> None:
    """Refuses an unknown name, and suggests what may be meant."""
    for name in names:
        if name in manager.task_index:
            continue
        guesses = difflib.get_close_matches(name, manager.task_index, n=3)
        hint = f", it has {', '.join(guesses)}" if guesses else ""
        raise ConfigError(
            f"lm-eval has no task {name!r}{hint}: choose from `lm-eval ls tasks`"
        )


def _add(task_set: TaskSet, name: str, manager: TaskManager) -> None:
    """Adds a task, or those of a group or tag.

    Raises:
      MissingData: the folder lacks a data set.
      ConfigError: a task can't be loaded, is there already, or needs generation.
    """
    try:
        loaded = manager.load([name])
    except ConfigError:
        raise
    except Exception as error:  # tasks run code and open data sets from anywhere
        first_line = next(iter(str(error).splitlines()), "")
        raise ConfigError(
            f"the task {name} can't be loaded ({type(error).__name__}: {first_line}):"
            " give its data with --task_data, or leave it out"
        ) from error
    for task_name, task in loaded["tasks"].items():
        if task_name in task_set.tasks:
            raise ConfigError(
                f"--tasks asks for {task_name} twice, once as part of {name}:"
                " leave one out"
            )
        _check_output_type(task_name, task.OUTPUT_TYPE)
    task_set.members[name] = list(loaded["tasks"])
    task_set.tasks.update(loaded["tasks"])
    task_set.groups.update(loaded.get("groups", {}))


def _check_output_type(task: str, output_type: Any) -> None:
    """Refuses a task that needs generated text."""
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(
            f"the task {task} needs generated text ({output_type}),"
            " which is not scored here: leave it out"
        )


def _set_examples(task: Task, num_fewshot: int | None) -> None:
    """Sets the number of examples as lm-eval's own command line does.

    Raises:
      ConfigError: there are not enough examples.
    """
    usual = task.config.num_fewshot
    count = usual or 0
    if num_fewshot is not None and usual != 0:  # a task that fixes 0 keeps it
        count = num_fewshot
    task.set_config("num_fewshot", count)
    task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    if not count:
        return
    needed = count
    if task.config.fewshot_split == task.config.test_split:
        needed += 1  # a question is never its own example
    if len(list(task.fewshot_docs())) < needed:
        raise ConfigError(
            f"the task {task.config.task} has too few examples for"
            f" --num_fewshot={count}: lower it"
        )


class _Factory(TaskFactory):
    """Builds tasks with the data sets of a folder.

    Attributes:
      data: of each task that was given local data: its folder and splits.
    """

    def __init__(self, folder: epath.Path | None):
        super().__init__()
        self._folder = folder
        self.data: dict[str, dict[str, Any]] = {}

    def _load_full_config(self, entry, overrides=None) -> Config:
        config = super()._load_full_config(entry, overrides)
        if entry.kind is Kind.GROUP:
            return config
        if "class" not in config:
            # Before its data is looked for; lm-eval's own default is generation.
            output_type = config.get("output_type", "generate_until")
            _check_output_type(config["task"], output_type)
        if self._folder is None or _brings_data(config):
            return config
        path, columns = _find_data(self._folder, config)
        splits, described = _splits(config, path)
        local_path = str(path.relative_to(self._folder))
        self.data[config["task"]] = {"folder": local_path, **described}
        return {
            **config,
            **splits,
            "custom_dataset": partial(_read, str(path), columns),
            "dataset_kwargs": None,
        }


def _brings_data(config: Config) -> bool:
    """Whether a task's config has data of its own."""
    kwargs = config.get("dataset_kwargs") or {}
    return bool(config.get("custom_dataset")) or "data_files" in kwargs


def _find_data(folder: epath.Path, config: Config) -> tuple[epath.Path, dict[str, str]]:
    """The folder of a task's data set, and which of its columns have other names there.

    A data set of the hub is NAME or OWNER/NAME; it may be saved under either, or under a
    name that was in use before.

    Raises:
      MissingData: there is none.
    """
    dataset, name = config.get("dataset_path") or "", config.get("dataset_name")
    for known_as in (dataset, dataset.rpartition("/")[2], OTHER_NAMES.get(dataset)):
        path = _config_folder(folder / known_as, name) if known_as else None
        if path:
            return path, {}
    # What is a config of one data set may be a data set of its own elsewhere, as boolq is.
    whole = f"{dataset}/{name}" if name else dataset
    other = OTHER_NAMES.get(whole)
    path = _config_folder(folder / other, None) if other else None
    if path is None:
        raise MissingData(f"{whole or 'the data'} of {config['task']}")
    return path, OTHER_COLUMNS.get(str(other), {})


def _config_folder(dataset: epath.Path, name: str | None) -> epath.Path | None:
    """The folder of a data set's config.

    Args:
      name: of the config; None is the only one there is.

    Returns:
      None where there is no such folder with splits in it.
    """
    if name:
        candidates = [dataset / name]
    elif not dataset.is_dir():
        return None
    else:
        none, configs = dataset / "none", sorted(dataset.iterdir())
        if len(configs) > 1 and not none.is_dir():
            return None  # it can't be known which one is meant
        candidates = [none, *configs]
    return next(filter(_splits_in, candidates), None)


def _splits_in(path: epath.Path) -> list[str]:
    """The names of the splits that were saved in a folder, sorted."""
    if not path.is_dir():
        return []
    return sorted(
        split.name for split in path.iterdir() if (split / "state.json").exists()
    )


def _splits(config: Config, path: epath.Path) -> tuple[Config, dict[str, str]]:
    """Which splits a task is scored on and takes its examples from.

    Where the usual ones are there, the config only forgets the ones that are not.

    Returns:
      What to change in the config, and the splits by their roles.

    Raises:
      MissingData: none of them may be scored.
    """
    there = _splits_in(path)
    test, validation = config.get("test_split"), config.get("validation_split")
    training = config.get("training_split")
    usual = test or validation
    # Scored on the usual split, or on the nearest to it; never on training data.
    candidates = (usual, validation, "test", "validation")
    scored = next((split for split in candidates if split in there), None)
    if scored is None:
        raise MissingData(
            f"the split {usual} of {config['task']} (there is {', '.join(there)})"
        )
    examples = dict(config.get("fewshot_config") or {})
    usual_examples = examples.pop("split", config.get("fewshot_split"))
    usual_examples = usual_examples or training or validation or test
    # Examples from anywhere, as the last resort from what is scored.
    candidates = (usual_examples, training, validation, scored)
    fewshot = next(split for split in candidates if split in there)
    described = {"split": scored, "usual_split": usual, "fewshot_split": fewshot}
    if (scored, fewshot) == (usual, usual_examples):
        absent = {}
        for role in ("training_split", "validation_split"):
            if config.get(role) not in there:
                absent[role] = None
        return absent, described
    # lm-eval leaves a question out of its own examples where both have the same split by
    # name, so both are named.
    changed = {
        "test_split": scored,
        "validation_split": None,
        "training_split": None,
        "fewshot_split": fewshot,
        "fewshot_config": examples,
    }
    return changed, described


def _read(
    path: str, columns: dict[str, str], /, **_: Any
) -> dict[str, datasets.Dataset]:
    """The splits of a data set.

    They are kept in memory, so that what a task derives from them is not cached beside them.

    Args:
      path: of the data set's folder.
      columns: names that ours are to have, by the names there.
    """
    splits = {}
    for split in _splits_in(epath.Path(path)):
        rows = datasets.load_from_disk(f"{path}/{split}", keep_in_memory=True)
        assert isinstance(rows, datasets.Dataset)
        for theirs, ours in columns.items():
            rows = rows.rename_column(theirs, ours)
            rows = rows.cast_column(ours, datasets.Value("int64"))
        splits[split] = rows
    return splits
