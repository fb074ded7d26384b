"""What survives?

Checkpoints: written by Orbax in the background, with a sealed record beside the arrays:
the shape and digest of each, and whatever the caller needs to resume. A step whose
record or arrays do not verify is moved to quarantine, and the next older one is used.
When none verifies the run stops, because starting afresh would overwrite what may still
be saved by hand.

Orbax writes every file below `checkpoints`. It commits a step by a rename, without
waiting for the disk, so that a power cut could leave a named step of empty files. Here
the files are forced to the disk first, in Orbax's own thread.
"""

import asyncio
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath

from sparsecod_jax.errors import ConfigError, SaveFailed, SparsecodError
from sparsecod_jax.parallel.processes import (
    is_first,
    print_once,
    run_on_all,
    run_on_first,
)
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.digest import digests
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.tree import names

MIB = 2**20


def _without_orbax_traces(record: logging.LogRecord) -> bool:
    """Drops tracebacks: Orbax logs an error in its own thread, then raises it in ours."""
    if "orbax" in record.pathname:
        record.exc_info = None
    return True


absl_logging.get_absl_logger().addFilter(_without_orbax_traces)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A verified checkpoint."""

    step: int
    items: dict[str, Any]
    record: dict[str, Any]


def check_room(folder: epath.Path, tree: Any) -> None:
    """Refuses to begin what can't be saved.

    Raises:
      SparsecodError: the disk of `folder` has no room for the arrays of `tree`.
    """
    if files.is_remote(folder):
        return
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    size_is_known = usage.total > 0  # some mounted stores report 0 bytes in all
    if size_is_known and usage.free < needed:
        raise SparsecodError(
            f"a checkpoint takes {needed / MIB:,.1f} MiB "
            f"and {existing} has {usage.free / MIB:,.1f} free: "
            "make room there and run again, older checkpoints are kept"
        )


class Checkpointer:
    """Saves and restores named pytrees ("items") of one run.

    A reader changes nothing, so that the run may continue beside it.
    """

    def __init__(
        self,
        run: RunDir,
        keep: int,
        keep_every: int = 0,
        *,
        read_only: bool = False,
        check_owner: Callable[[], None] = lambda: None,
    ):
        """Opens the checkpoints of a run.

        Args:
          run: the run directory.
          keep: how many of the newest steps stay.
          keep_every: multiples of this step stay for good; 0 for none.
          read_only: whether to write and clean up nothing.
          check_owner: called just before a step is committed; raises if it may not be.
        """
        self._run = run
        self._read_only = read_only
        options = self._manager_options(keep, keep_every, check_owner)
        self._manager = ocp.CheckpointManager(run.checkpoints, options=options)
        # The manager would have the processes wait for each other after reading, for
        # ever if one of them can't read. This reader works for one process alone.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={jax.process_index()}
        )
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(), multiprocessing_options=alone
        )
        self._unconfirmed: int | None = None  # the step that is being written

    def _manager_options(
        self, keep: int, keep_every: int, check_owner: Callable[[], None]
    ) -> ocp.CheckpointManagerOptions:
        is_remote = files.is_remote(self._run.checkpoints)
        # In a store an unfinished step has its final name, so that cleaning up could
        # remove the last save of an overtaken attempt, still in progress. Saving the
        # step again replaces it.
        clean_up = not self._read_only and not is_remote
        # In a store the last object that is written commits the step: no rename.
        commit = None if is_remote else self._durable(check_owner)
        return ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            create=not self._read_only,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=clean_up,
            temporary_path_class=commit,
        )

    def save(self, step: int, items: dict[str, Any], record: dict[str, Any]) -> None:
        """Starts writing `items` and `record` as `step`.

        Returns once the arrays may be overwritten.

        Raises:
          SparsecodError: Orbax refused the step.
          SaveFailed: an earlier save failed in the background.
        """
        description = {
            "step": step,
            "arrays": _describe(items),
            "digests": digests(items),
        }
        sealed = _seal({**record, **description})
        saves: dict[str, Any] = {"record": ocp.args.JsonSave(sealed)}
        for name, tree in items.items():
            saves[name] = ocp.args.StandardSave(tree)
        # The save before is confirmed first, so that its failure does not go unnoticed.
        self.wait()
        if not self._manager.save(step, args=ocp.args.Composite(**saves)):
            raise SparsecodError(
                f"step {step} was not saved: {self._run.checkpoints} "
                "already holds a newer one, move it away"
            )
        self._unconfirmed = step

    def steps(self) -> list[int]:
        """Committed steps, newest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps(), reverse=True)

    def raise_if_save_failed(self) -> None:
        """Raises SaveFailed if the last save ended without a checkpoint; never waits."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is on disk.

        Orbax's time limits use the wall clock, so a clock that jumps can end a save.

        Raises:
          SaveFailed: it is not, and will not be.
        """
        step, self._unconfirmed = self._unconfirmed, None
        if step is None:
            return
        reason = "the log says why"
        remedy = f"make room in {shown(self._run.checkpoints)}"
        try:
            self._manager.wait_until_finished()
        # Whatever the storage raised, while saving or while deleting old steps.
        except Exception as error:
            reason = _brief(error)
            if isinstance(error, TimeoutError):
                remedy = "see that the disk answers and that the clock does not jump"
            print(f"trouble with checkpoint {step}: {shown(reason)}", flush=True)
        # Orbax drops some failed steps without raising: only the step's absence is a
        # sure sign. And a step may be there although deleting an old one failed.
        if step not in self.steps():
            raise SaveFailed(
                f"saving step {step} failed ({reason}): {remedy} and run again"
            )
        self._record_commit(step)

    def _durable(
        self, check_owner: Callable[[], None]
    ) -> type[ocp.path.atomicity.AtomicRenameTemporaryPath]:
        """How Orbax commits on a local file system, in a thread of the first process."""
        steps = self._run.checkpoints
        record_commit = self._record_commit

        class Durable(ocp.path.atomicity.AtomicRenameTemporaryPath):
            async def finalize(self):
                final = self.get_final()
                is_step = final.parent == steps  # else one of the items in a step
                if is_step:
                    await asyncio.to_thread(files.sync_tree, self.get())
                    # As late as possible: a newer attempt may have begun meanwhile.
                    check_owner()
                await super().finalize()
                if is_step:
                    # Orbax has added files meanwhile, and the name is new.
                    await asyncio.to_thread(files.sync_tree, final)
                    record_commit(int(final.name))

        return Durable

    def _record_commit(self, step: int) -> None:
        """Records the first commit: a run that loses its checkpoints must not begin again.

        On a local disk Orbax's thread calls it as soon as the step has its name; in a
        store only `wait` does.
        """
        if is_first() and not self._run.committed.exists():
            records.write_record(self._run.committed, {"first_step": step})

    def close(self) -> None:
        self._reader.close()
        self._manager.close()

    def restore_latest(self, abstract: dict[str, Any]) -> Restored | None:
        """The newest checkpoint that verifies; None if there never was one.

        Args:
          abstract: shapes, dtypes and shardings of the items. A reader may leave out
            what it has no use for.

        Raises:
          ConfigError: checkpoints exist but none can be used, or the newest belongs to
            another model.
        """
        # One process lists the steps, so that all of them try the same ones.
        steps = run_on_first(self.steps)
        for step in steps:
            try:
                restored = self._restore(step, abstract)
            except ConfigError:
                raise
            except Exception as error:  # damage shows as almost any type
                print_once(
                    f"checkpoint {step} can't be used ({_brief(error)}): "
                    "trying the next older one"
                )
                continue
            if not self._read_only:
                run_on_first(self._quarantine, newer_than=step)
                self._manager.reload()
                self._record_commit(step)
            return restored
        self._check_never_saved(steps)
        return None

    def _check_never_saved(self, steps: list[int]) -> None:
        advice = "put back a copy of one, or choose another --workdir"
        if steps:
            raise ConfigError(
                f"no checkpoint in {self._run.checkpoints} can be used: {advice}"
            )
        if run_on_first(self._run.committed.exists):
            raise ConfigError(
                f"{self._run.checkpoints} holds no checkpoint any more: {advice}"
            )

    def _restore(self, step: int, abstract: dict[str, Any]) -> Restored:
        record = _unseal(run_on_first(self._read_record, step))
        _check_arrays(step, record["arrays"], _describe(abstract))
        targets = {name: self._target(tree) for name, tree in abstract.items()}
        # If one process can't read its part, `run_on_all` makes all of them fail here.
        composite = run_on_all(self._read, step, **targets)
        items = {name: composite[name] for name in abstract}
        # Digests are of whole arrays, so that all processes come to the same verdict.
        saved = record["digests"]
        wrong = [name for name, pair in digests(items).items() if pair != saved[name]]
        if wrong or record["step"] != step:
            differing = wrong[:3] or "the record"
            raise ValueError(f"its bits differ from those saved in {differing}")
        return Restored(step, items, record)

    def _target(self, tree) -> Any:
        """How Orbax restores one item; a reader may leave out parts of its tree."""
        if not self._read_only:
            return ocp.args.StandardRestore(tree)
        return ocp.args.PyTreeRestore(
            tree,
            restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
            partial_restore=True,
        )

    def _read_record(self, step: int) -> dict[str, str]:
        """The record of a step, still sealed."""
        return self._read(step, record=ocp.args.JsonRestore())["record"]

    def _read(self, step: int, **items) -> ocp.args.Composite:
        """This process's part of a step."""
        folder = self._run.checkpoints / str(step)
        return self._reader.restore(folder, args=ocp.args.Composite(**items))

    def _quarantine(self, newer_than: int) -> None:
        """Moves steps away that did not verify, which may then be saved again."""
        for step in self.steps():
            if step <= newer_than:
                continue
            target = files.free_name(self._run.quarantine / str(step))
            files.move(self._run.checkpoints / str(step), target)
            folder = shown(self._run.quarantine)
            print(f"checkpoint {step} was moved to {folder}", flush=True)


def _describe(items) -> dict[str, list]:
    """Shape and dtype of each array, by name, as JSON values."""
    description = {}
    for name, leaf in zip(names(items), jax.tree.leaves(items), strict=True):
        dtype = np.dtype(leaf.dtype)
        description[name] = [list(leaf.shape), str(dtype)]
    return description


def _check_arrays(step: int, saved: dict[str, list], wanted: dict[str, list]) -> None:
    """Compares names and shapes; Orbax would report a mismatch in thousands of lines."""
    differing = [name for name in sorted(wanted) if saved.get(name) != wanted[name]]
    if not differing:
        return
    name = differing[0]
    problem = f"lacks {name}"
    if name in saved:
        problem = f"has {name} as {saved[name]}"
    raise ConfigError(
        f"checkpoint {step} {problem}, the model needs {wanted[name]} "
        f"({len(differing)} arrays differ): use the config it was made with"
    )


def _seal(record: dict[str, Any]) -> dict[str, str]:
    body = json.dumps(record, sort_keys=True)
    return {"body": body, "sha256": _sha256(body)}


def _unseal(sealed: dict[str, str]) -> dict[str, Any]:
    body = sealed["body"]
    if sealed["sha256"] != _sha256(body):
        raise ValueError("its record was changed")
    return json.loads(body)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _brief(error: Exception) -> str:
    """The error's first line, cut in the middle.

    Storage errors put paths first and the cause last.
    """
    line = next(iter(str(error).strip().splitlines()), "")
    if len(line) >= 200:
        line = f"{line[:80]} ... {line[-100:]}"
    return f"{type(error).__name__}: {line}"
