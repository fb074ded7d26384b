"""How does a run go, from its config to its final numbers?

Train loop: checks, compilation, the claim on the run directory, then step after step
with metrics, checkpoints and evaluations.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from sparsecod_jax import config
from sparsecod_jax.data import pipeline
from sparsecod_jax.data.store import Windows
from sparsecod_jax.errors import Diverged, Preempted
from sparsecod_jax.parallel import layout
from sparsecod_jax.parallel.processes import (
    is_first,
    log_phase,
    print_once,
    run_on_all,
    run_on_first,
)
from sparsecod_jax.storage import files
from sparsecod_jax.storage.attempts import Attempt, check_free, claim
from sparsecod_jax.storage.checkpoint import Checkpointer, check_room
from sparsecod_jax.storage.rundir import RunDir, check_identity
from sparsecod_jax.train.evaluation import evaluator
from sparsecod_jax.train.inputs import (
    Inputs,
    check_data,
    check_same_everywhere,
    read_inputs,
)
from sparsecod_jax.train.preemption import Interrupted, PreemptionGuard
from sparsecod_jax.train.programs import Compiled, compile_steps, explained
from sparsecod_jax.train.progress import Progress
from sparsecod_jax.train.result import final_numbers, read_result, write_result
from sparsecod_jax.train.start import (
    check_room_for_first_save,
    restore_or_init,
    write_records,
)
from sparsecod_jax.train.status import recorded_status
from sparsecod_jax.train.step import Batch, Program, TrainState, build
from sparsecod_jax.train.watchdog import Watchdog
from sparsecod_jax.train.writers import Writers, plain

PROFILED_STEPS = range(3, 6)  # of an attempt


def train(
    experiment: config.Experiment, workdir: str, *, profile: bool = False
) -> dict[str, Any]:
    """Trains `experiment` in `workdir`, resuming where an earlier attempt stopped.

    Every process of a run calls this with the same arguments. A run that is already
    finished is left as it is.

    SIGTERM is heeded only after `STOP.listen()`, which the command line calls.

    Returns:
      The content of final.json.

    Raises:
      ConfigError: the config does not fit the devices or the data, or `workdir` holds
        another run; nothing was written. Or no checkpoint of `workdir` can be used;
        they were left as they are.
      Fenced: another process owns `workdir`.
      Preempted: the run was asked to stop; a checkpoint was committed.
      Diverged: too many updates were not finite.
    """
    with Watchdog() as watchdog:
        run = RunDir(run_on_all(files.absolute, workdir))
        inputs = read_inputs(experiment)
        check_same_everywhere(run, inputs)
        if final := run_on_first(read_result, run, inputs.identity_fields):
            return final

        # A run that can't succeed is refused before anything is written.
        run_on_all(layout.check_platform, experiment.model)
        check_data(inputs)
        run_on_first(check_free, run)
        program = build(experiment, jax.devices())
        run_on_first(check_room_for_first_save, run, program)
        with watchdog.during("compiling"):
            compiled = compile_steps(program)

        with contextlib.ExitStack() as claimed:
            attempt = Attempt(run, *run_on_first(_claim, run, claimed))
            run_on_all(attempt.check_shared)
            watchdog.report_to(attempt)
            # Again, as another run may have come first.
            run_on_first(check_identity, run, inputs.identity_fields)
            log_phase(layout.describe(program.layout, experiment))
            with recorded_status(attempt), explained(experiment):
                this_run = _Run(inputs, program, compiled, attempt, watchdog)
                return this_run.go(profile=profile)


def _claim(run: RunDir, claimed: contextlib.ExitStack) -> tuple[int, str]:
    """Claims the run directory until `claimed` closes; the attempt's number and token."""
    attempt = claimed.enter_context(claim(run))
    return attempt.number, attempt.token


class _Run:
    """One attempt at a run."""

    def __init__(
        self,
        inputs: Inputs,
        program: Program,
        compiled: Compiled,
        attempt: Attempt,
        watchdog: Watchdog,
    ):
        self.inputs = inputs
        experiment, data = inputs.experiment, inputs.data
        self.experiment = experiment
        self.program = program
        self.compiled = compiled
        self.attempt = attempt
        self.run = attempt.run
        self.watchdog = watchdog
        self.train_windows = Windows(
            inputs.directory, data, data.train, experiment.data.seq_len
        )
        self.evaluate = evaluator(
            experiment, program.layout, program.mesh, inputs.directory, data
        )
        self.checkpointer = Checkpointer(
            self.run,
            experiment.checkpoint.keep,
            experiment.checkpoint.keep_every,
            check_owner=attempt.check_still_owner,
        )
        self.writers = Writers(attempt)

    def go(self, *, profile: bool) -> dict[str, Any]:
        """Trains from the newest checkpoint to the end; returns the final numbers."""
        with contextlib.ExitStack() as resources:
            state, record = self._open(resources)
            self._complete_evaluation(record["step"], state)
            first, last = record["step"] + 1, self.experiment.steps
            log_phase(f"training steps {first} to {last}; {self.progress.convention}")
            resources.enter_context(self.watchdog.during("training"))
            state = self._train(state, record, profile=profile)
            return self._finish(state)

    def _open(
        self, resources: contextlib.ExitStack
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restores the state and opens what `resources` closes again."""
        # What is entered first is left last: closing files counts as finishing.
        resources.enter_context(self.watchdog.during("finishing"))
        resources.enter_context(contextlib.closing(self.checkpointer))
        self.profiler = resources.enter_context(contextlib.ExitStack())
        with self.watchdog.prompt_end(), self.watchdog.during("restoring"):
            state, record = restore_or_init(
                self.run, self.inputs, self.program, self.checkpointer
            )
        # Only now: a run without memory for its state leaves no records.
        run_on_first(write_records, self.run, self.inputs, self.program)
        if is_first():
            self.writers.begin(record["step"])
            resources.enter_context(contextlib.closing(self.writers))
        # From here on a failure must not wait for files that can't be closed.
        resources.enter_context(self.watchdog.prompt_end())
        self.guard = PreemptionGuard()
        self.progress = Progress(self.experiment, record["step"], record["seconds"])
        return state, record

    def _train(
        self, state: TrainState, record: dict[str, Any], *, profile: bool
    ) -> TrainState:
        start = record["step"]
        batches = self._batches(record["next_example"])
        # The metrics of the step that was dispatched last. They are read only when the
        # next step is dispatched too, so that the device never waits for the host.
        unread: tuple[int, dict] | None = None
        for step in range(start + 1, self.experiment.steps + 1):
            if profile:
                self._profile(step - start)
            with self.watchdog.during("reading data"):
                batch = next(batches)
            with_moments = _is_due(step, self.experiment.log.moments_every)
            train_step = self.compiled.steps[with_moments]
            state, metrics = train_step(state, batch)
            self._write(unread)
            unread = (step, metrics)
            self.checkpointer.raise_if_save_failed()

            stopping = self.guard.preempted()
            evaluating = not stopping and self._evaluates_at(step)
            saving = stopping or self._saves_at(step)
            if saving or evaluating:
                self._write(unread, state if evaluating else None)
                unread = None
            # An evaluation also ends when the run is asked to stop.
            if saving or self.guard.stopping:
                self._save(step, state)
            if self.guard.stopping:
                self._leave(step)
        return state

    def _finish(self, state: TrainState) -> dict[str, Any]:
        steps = self.experiment.steps
        held_out = self._evaluate(steps, state)
        log_phase("waiting for the last checkpoint")
        if held_out is None:
            self._leave(steps)
        with self.watchdog.during("saving"):
            self.checkpointer.wait()
        skipped = int(jax.device_get(state.skipped))
        if 2 * skipped > steps:
            raise Diverged(
                f"{skipped} of {steps} updates were not finite, so this is no trained "
                "model: lower optimizer.peak_lr"
            )
        final = final_numbers(
            self.inputs, held_out, skipped, self.progress, self.compiled.seconds
        )
        run_on_first(self.attempt.check_still_owner)
        run_on_first(write_result, self.run, final)
        if skipped:
            log_phase(
                f"{skipped} of {steps} updates were left out, as they were not finite"
            )
        log_phase(
            f"held-out loss {held_out['loss']:.4f} nats; a guess by token frequency "
            f"alone would have {final['unigram_entropy']:.4f}"
        )
        return final

    # Data and profile

    def _batches(self, first_example: int) -> Iterator[Batch]:
        """The batches from an example on, sharded over the devices."""
        batch_size = self.experiment.global_batch
        seed = self.experiment.data.seed
        sharding = self.program.abstract_batch.tokens.sharding
        rows = pipeline.local_rows(sharding, batch_size)
        for tokens in pipeline.batches(
            self.train_windows, seed, batch_size, first_example, rows
        ):
            segments = None
            if self.experiment.model.document_masking:
                segments = pipeline.segments(tokens[:, :-1], self.inputs.data.eos_id)
            batch = Batch(tokens, segments)
            yield pipeline.to_devices(batch, rows, sharding, batch_size)

    def _profile(self, step: int) -> None:
        """Begins and ends the trace; `step` counts from 1 in each attempt."""
        if step == PROFILED_STEPS.start and is_first():
            mirror = files.Mirror(self.run.profile)
            self.profiler.callback(mirror.close)
            self.profiler.callback(mirror.upload)
            trace = jax.profiler.trace(os.fspath(mirror.path))
            self.profiler.enter_context(trace)
        if step == PROFILED_STEPS.stop:
            self.profiler.close()

    # Metrics

    def _write(
        self, unread: tuple[int, dict] | None, evaluated: TrainState | None = None
    ) -> None:
        """Writes the metrics of a dispatched step; waits until they are computed.

        Args:
          unread: the step and its metrics on the device.
          evaluated: the state after it, if its held-out metrics are due.
        """
        if unread is None:
            return
        step, on_device = unread
        metrics = jax.device_get(on_device)
        seconds = self.progress.step()
        self.watchdog.step(seconds)
        tokens = self.experiment.tokens_per_step
        values = {
            "step": step,
            "tokens": step * tokens,
            "first_example": (step - 1) * self.experiment.global_batch,
            "tokens_per_second": tokens / seconds,
            "perplexity": np.exp(np.minimum(metrics["loss"], 80.0)),
        }
        if evaluated is not None:
            held_out = self._evaluate(step, evaluated)
            values |= _as_metrics(held_out or {})
        line = plain(values | metrics)
        is_last = step == self.experiment.steps
        is_due = _is_due(step, self.experiment.log.every)
        logged = is_due or is_last or evaluated is not None
        if is_first():
            self.writers.write(line, tensorboard=logged)
        if logged:
            print_once(self.progress.line(line))
        self._check_skipped(step, line["skipped_updates"])

    def _check_skipped(self, step: int, skipped: int) -> None:
        budget = self.experiment.execution.max_skipped_updates
        if skipped > budget:
            raise Diverged(
                f"{skipped} updates up to step {step} were not finite, "
                f"{budget} are allowed: lower optimizer.peak_lr"
            )

    # Evaluation

    def _evaluates_at(self, step: int) -> bool:
        """Whether the metrics of `step` include held-out ones.

        After the last step they are in final.json.
        """
        is_due = _is_due(step, self.experiment.evaluation.every)
        return 0 < step < self.experiment.steps and is_due

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float] | None:
        """Held-out metrics, or None if the run is asked to stop meanwhile."""
        log_phase("evaluating on the validation split")

        def after_batch():
            self.watchdog.alive()
            if self.guard.preempted():
                raise Interrupted

        try:
            with self.watchdog.during("evaluating"):
                held_out = self.evaluate(state.params, after_batch)
        except Interrupted:
            return None
        texts = [f"held-out {name} {value:,.4f}" for name, value in held_out.items()]
        print_once(" | ".join([f"step {step}", *texts]))
        self.progress.resume()
        return held_out

    def _complete_evaluation(self, start: int, state: TrainState) -> None:
        """Evaluates where the last attempt was asked to stop while it did."""
        if not run_on_first(self._lacks_evaluation, start):
            return
        held_out = self._evaluate(start, state)
        if held_out is None:
            self._leave(start)
        run_on_first(self.writers.amend, plain(_as_metrics(held_out)))

    def _lacks_evaluation(self, step: int) -> bool:
        return self._evaluates_at(step) and self.writers.lacks_evaluation(step)

    # Checkpoints

    def _saves_at(self, step: int) -> bool:
        is_last = step == self.experiment.steps
        return is_last or _is_due(step, self.experiment.checkpoint.every)

    def _save(self, step: int, state: TrainState) -> None:
        """Begins to save the state, with what an attempt needs to resume from it."""
        record = {
            "config": config.to_dict(self.experiment),
            "next_example": step * self.experiment.global_batch,
            "data_fingerprint": self.inputs.data.fingerprint,
            "seconds": self.progress.seconds,
        }
        with self.watchdog.during("saving"):
            run_on_first(self.writers.sync)  # raises Fenced
            # When the save before is complete, older steps have given their room back.
            self.checkpointer.wait()
            run_on_first(check_room, self.run.checkpoints, state)
            self.checkpointer.save(step, {"state": state}, record)

    def _leave(self, step: int) -> NoReturn:
        """Ends this attempt when its last checkpoint is committed."""
        with self.watchdog.during("saving"):
            self.checkpointer.wait()
        raise Preempted(
            f"stopped at step {step} of {self.experiment.steps}; "
            "run the same command to resume"
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _as_metrics(held_out: dict[str, float]) -> dict[str, float]:
    return {f"evaluation/{name}": value for name, value in held_out.items()}
