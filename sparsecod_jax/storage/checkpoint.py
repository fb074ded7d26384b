"""What survives?

Asynchronous Orbax checkpoints with a sealed record beside the arrays: the shape and digest of each, and whatever the caller must know to
go on. A step whose record or arrays do not verify is moved to quarantine and the next older one is used; when none verifies the run
stops, because starting afresh would overwrite what may still be saved by hand.

Orbax writes every file below `checkpoints`, and gives a step its name by a rename without waiting
for the disk, so that a power cut could leave a named step of empty files: here its files are forced
to the disk first, in Orbax's own thread.
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
from sparsecod_jax.storage.digest import digests, names
from sparsecod_jax.storage.rundir import RunDir


def _without_orbax_traces(record: logging.LogRecord) -> bool:
    """Orbax logs the trace of an error in a thread of its own, then raises the error in ours."""
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
    """Refuses to begin what can't be saved: raises SparsecodError where `folder` has no room for the arrays of `tree`."""
    if files.is_remote(folder):
        return
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    there = next(place for place in (folder, *folder.parents) if place.exists())
    usage = shutil.disk_usage(there)
    if (
        usage.total and usage.free < needed
    ):  # some mounted stores say that they have 0 bytes in all
        sizes = f"a checkpoint takes {needed / 2**20:,.1f} MiB and {there} has {usage.free / 2**20:,.1f} free"
        raise SparsecodError(
            f"{sizes}: make room there and run again, older checkpoints are kept"
        )


class Checkpointer:
    """Saves and restores named pytrees ("items") of one run; a reader changes nothing, so that the run may go on beside it."""

    def __init__(
        self,
        run: RunDir,
        keep: int,
        keep_every: int = 0,
        *,
        read_only: bool = False,
        check_owner: Callable[[], None] = lambda: None,
    ):
        """`check_owner` is asked just before a step is committed, and raises if it may not be."""
        self._run, self._read_only = run, read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            create=not read_only,
            enable_async_checkpointing=True,
            # In a store an unfinished step has its final name. Saving it again clears it; before that, it may be the last save of an
            # overtaken attempt, still under way.
            cleanup_tmp_directories=not read_only
            and not files.is_remote(run.checkpoints),
            # In a store the last object that is written commits the step.
            temporary_path_class=None
            if files.is_remote(run.checkpoints)
            else self._durable(check_owner),
        )
        self._manager = ocp.CheckpointManager(run.checkpoints, options=options)
        # The manager would have the processes wait for each other after reading: for ever, if one of them can't read.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={jax.process_index()}
        )
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(), multiprocessing_options=alone
        )
        self._unconfirmed: int | None = None  # the step that is being written

    def save(self, step: int, items: dict[str, Any], record: dict[str, Any]) -> None:
        """Starts writing `items` and `record` as `step`; returns once the arrays may be overwritten.

        Raises:
          SparsecodError: Orbax refused the step.
          SaveFailed: an earlier save failed in the background.
        """
        sealed = _seal(
            {
                **record,
                "step": step,
                "arrays": _describe(items),
                "digests": digests(items),
            }
        )
        saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self.wait()
        if not self._manager.save(
            step, args=ocp.args.Composite(record=ocp.args.JsonSave(sealed), **saves)
        ):
            raise SparsecodError(
                f"step {step} was not saved: {self._run.checkpoints} already holds a newer one, move it away"
            )
        self._unconfirmed = step

    def steps(self) -> list[int]:
        """Committed steps, newest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps(), reverse=True)

    def raise_if_save_failed(self) -> None:
        """Raises SaveFailed when the last save has ended without a checkpoint; does not wait."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is on disk, or raises SaveFailed.

        Orbax counts its time limits by the wall clock, so a clock that jumps can end a save.
        """
        step, self._unconfirmed = self._unconfirmed, None
        if step is None:
            return
        reason, remedy = (
            "the log says why",
            f"make room in {shown(self._run.checkpoints)}",
        )
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever the storage raised, while saving or while deleting old steps
            reason = _brief(error)
            if isinstance(error, TimeoutError):
                remedy = "see that the disk answers and that the clock does not jump"
            print(f"trouble with checkpoint {step}: {shown(reason)}", flush=True)
        # Orbax drops some failed steps without raising, so that the absence of the step is the only sure sign.
        if step not in self.steps():
            raise SaveFailed(
                f"saving step {step} failed ({reason}): {remedy} and run again"
            )
        self._record_commit(step)

    def _durable(
        self, check_owner: Callable[[], None]
    ) -> type[ocp.path.atomicity.AtomicRenameTemporaryPath]:
        """How Orbax commits a step on a local file system, in a thread of the first process."""
        steps, record_commit = self._run.checkpoints, self._record_commit

        class Durable(ocp.path.atomicity.AtomicRenameTemporaryPath):
            async def finalize(self):
                is_step = (
                    self.get_final().parent == steps
                )  # and not one of the items in it
                if is_step:
                    await asyncio.to_thread(files.sync_tree, self.get())
                    check_owner()
                await super().finalize()
                if is_step:
                    await asyncio.to_thread(
                        files.sync_tree, self.get_final()
                    )  # what was added now, and the name
                    record_commit(int(self.get_final().name))

        return Durable

    def _record_commit(self, step: int) -> None:
        """So that a run whose checkpoints are gone later does not begin again in silence."""
        if is_first() and not self._run.committed.exists():
            records.write_record(self._run.committed, {"first_step": step})

    def close(self) -> None:
        self._reader.close()
        self._manager.close()

    def restore_latest(self, abstract: dict[str, Any]) -> Restored | None:
        """The newest checkpoint that verifies, laid out like `abstract` (shapes, dtypes and shardings); None if there is none at all.

        A reader may leave out of `abstract` what it has no use for.

        Raises:
          ConfigError: checkpoints exist but none can be used, or the newest belongs to another model.
        """
        steps = run_on_first(self.steps)
        for step in steps:
            try:
                restored = self._restore(step, abstract)
            except ConfigError:
                raise
            except Exception as error:  # damage shows as almost any type
                print_once(
                    f"checkpoint {step} can't be used ({_brief(error)}): trying the next older one"
                )
                continue
            if not self._read_only:
                run_on_first(self._quarantine, newer_than=step)
                self._manager.reload()
                self._record_commit(step)
            return restored
        if not steps and run_on_first(self._run.committed.exists):
            raise ConfigError(
                f"{self._run.checkpoints} holds no checkpoint any more: put back a copy of one, or choose another --workdir"
            )
        if steps:
            raise ConfigError(
                f"no checkpoint in {self._run.checkpoints} can be used: put back a copy of one, or choose another --workdir"
            )
        return None

    def _restore(self, step: int, abstract: dict[str, Any]) -> Restored:
        record = _unseal(run_on_first(self._read_record, step))
        _check_arrays(step, record["arrays"], _describe(abstract))
        targets = {name: self._target(tree) for name, tree in abstract.items()}
        restored = run_on_all(self._read, step, **targets)
        items = {name: restored[name] for name in abstract}
        wrong = [
            name
            for name, digest in digests(items).items()
            if digest != record["digests"][name]
        ]
        if wrong or record["step"] != step:
            raise ValueError(
                f"its bits differ from those saved in {wrong[:3] or 'the record'}"
            )
        return Restored(step, items, record)

    def _target(self, tree) -> Any:
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
        return self._reader.restore(
            self._run.checkpoints / str(step), args=ocp.args.Composite(**items)
        )

    def _quarantine(self, newer_than: int) -> None:
        for step in self.steps():
            if step > newer_than:
                files.move(
                    self._run.checkpoints / str(step),
                    files.free_name(self._run.quarantine / str(step)),
                )
                print(
                    f"checkpoint {step} was moved to {shown(self._run.quarantine)}",
                    flush=True,
                )


def _describe(items) -> dict[str, list]:
    leaves = jax.tree.leaves(items)
    return {
        name: [list(leaf.shape), str(np.dtype(leaf.dtype))]
        for name, leaf in zip(names(items), leaves, strict=True)
    }


def _check_arrays(step: int, saved: dict[str, list], wanted: dict[str, list]) -> None:
    """Compares names and shapes before Orbax does, which would report a mismatch in thousands of lines."""
    differing = [
        name
        for name in sorted({*saved, *wanted})
        if name in wanted and saved.get(name) != wanted[name]
    ]
    if differing:
        name = differing[0]
        found = f"has {name} as {saved[name]}" if name in saved else f"lacks {name}"
        raise ConfigError(
            f"checkpoint {step} {found}, the model needs {wanted[name]} ({len(differing)} arrays differ): use the config it was made with"
        )


def _seal(record: dict[str, Any]) -> dict[str, str]:
    body = json.dumps(record, sort_keys=True)
    return {"body": body, "sha256": hashlib.sha256(body.encode()).hexdigest()}


def _unseal(sealed: dict[str, str]) -> dict[str, Any]:
    if hashlib.sha256(sealed["body"].encode()).hexdigest() != sealed["sha256"]:
        raise ValueError("its record was changed")
    return json.loads(sealed["body"])


def _brief(error: Exception) -> str:
    """The error's first line, cut in the middle: storage puts paths first and the cause last."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line if len(line) < 200 else line[:80] + ' ... ' + line[-100:]}"
