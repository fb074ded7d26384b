"""How does a run go, from its config to its final numbers?"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from sparsecod_jax import config
from sparsecod_jax.config import counts
from sparsecod_jax.config.identity import identity, identity_fields
from sparsecod_jax.data import pipeline
from sparsecod_jax.data.store import Manifest, Windows, prepare_command, read_manifest
from sparsecod_jax.data.tokenizer import TOKENIZER
from sparsecod_jax.errors import (
    ConfigError,
    Diverged,
    Fenced,
    Preempted,
    SparsecodError,
)
from sparsecod_jax.parallel import layout
from sparsecod_jax.parallel.processes import (
    is_first,
    log_phase,
    print_once,
    run_on_all,
    run_on_first,
)
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.shell.stopping import STOP
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.attempts import Attempt, check_free, claim
from sparsecod_jax.storage.checkpoint import Checkpointer, check_room
from sparsecod_jax.storage.records import read_record, write_record
from sparsecod_jax.storage.rundir import RunDir, Status, check_identity
from sparsecod_jax.train import manifest as run_manifest
from sparsecod_jax.train.evaluation import evaluator
from sparsecod_jax.train.preemption import Interrupted, PreemptionGuard
from sparsecod_jax.train.programs import Compiled, compile_steps, explained
from sparsecod_jax.train.progress import Progress
from sparsecod_jax.train.step import Batch, Program, TrainState, build
from sparsecod_jax.train.watchdog import Watchdog
from sparsecod_jax.train.writers import Writers, plain

PROFILED_STEPS = range(3, 6)  # of an attempt


def train(
    experiment: config.Experiment, workdir: str, *, profile: bool = False
) -> dict[str, Any]:
    """Trains `experiment` in `workdir`, goes on where an earlier attempt stopped, or finds it finished; returns final.json.

    Every process of a run calls this with the same arguments.

    Raises:
      ConfigError: the config does not fit the devices or the data, or `workdir` holds another run; nothing was written. Or no
        checkpoint of `workdir` can be used; they were left as they are.
      Fenced: another process owns `workdir`.
      Preempted: SIGTERM came, which is heard only after `STOP.listen()`, as the command line calls it; a checkpoint was committed.
      Diverged: too many updates were not finite.
    """
    with Watchdog() as watchdog:
        run = RunDir(run_on_all(files.absolute, workdir))
        directory = run_on_all(files.absolute, experiment.data.path)
        data = run_on_all(read_manifest, directory, prepare_command(experiment))
        _check_same_everywhere(run, experiment, data)
        fields = identity_fields(experiment, data.fingerprint)
        if final := run_on_first(_finished, run, fields):
            return final
        run_on_all(layout.check_platform, experiment.model)
        _check_data(experiment, data)
        run_on_first(check_free, run)
        program = build(experiment, jax.devices())
        run_on_first(_check_room, run, experiment, program)
        with watchdog.during("compiling"):
            compiled = compile_steps(program)
        with contextlib.ExitStack() as claimed:
            attempt = Attempt(run, *run_on_first(_claim, run, claimed))
            run_on_all(attempt.check_shared)
            watchdog.report_to(attempt)
            run_on_first(
                check_identity, run, fields
            )  # again, as another run may have come first
            log_phase(layout.describe(program.layout, experiment))
            with _recorded_status(attempt), explained(experiment):
                return _Run(
                    experiment,
                    program,
                    compiled,
                    attempt,
                    directory,
                    data,
                    fields,
                    watchdog,
                ).go(profile=profile)


def _finished(run: RunDir, fields: dict[str, Any]) -> dict[str, Any] | None:
    """The final numbers, if this run has them already."""
    check_identity(run, fields)
    records.warn_if_unchecked(run.manifest)
    if not run.final.exists():
        return None
    log_phase(f"{shown(run.path)} is already finished")
    final = read_record(run.final)
    if final.get("identity", identity(fields)) != identity(fields):
        raise ConfigError(
            f"{run.final} is of another run than {run.manifest}: restore it from a copy, or choose another --workdir"
        )
    with contextlib.suppress(
        OSError
    ):  # the result may lie where nothing can be written any more
        run.set_status("finished")  # a crash may have come between the two files
    return final


def _check_room(run: RunDir, experiment: config.Experiment, program: Program) -> None:
    if (
        run.newest_checkpoint() < experiment.steps
    ):  # otherwise only the evaluation is left to do
        check_room(run.checkpoints, program.abstract_state)


def _claim(run: RunDir, claimed: contextlib.ExitStack) -> tuple[int, str]:
    """Claims the run directory until `claimed` closes; returns the attempt's number and token."""
    attempt = claimed.enter_context(claim(run))
    return attempt.number, attempt.token


def _check_same_everywhere(
    run: RunDir, experiment: config.Experiment, data: Manifest
) -> None:
    of_first = run_on_first(_inputs, run, experiment, data)
    run_on_all(_check_same, of_first, _inputs(run, experiment, data))


def _inputs(run: RunDir, experiment: config.Experiment, data: Manifest) -> str:
    """What all processes must have been given alike."""
    return json.dumps(
        [os.fspath(run.path), config.to_dict(experiment), data.fingerprint]
    )


def _check_same(of_first: str, here: str) -> None:
    if here != of_first:
        process = f"process {jax.process_index()}"
        problem = (
            f"{process} was given another --workdir, config or data than process 0"
        )
        raise ConfigError(f"{problem}: start all alike")


def _check_data(experiment: config.Experiment, data: Manifest) -> None:
    if experiment.model.vocab_size < data.vocab_size:
        raise ConfigError(
            f"model.vocab_size={experiment.model.vocab_size} is smaller than the tokenizer's {data.vocab_size}: raise it to that or above"
        )
    for name, split, length in (
        ("data.seq_len", data.train, experiment.data.seq_len),
        ("evaluation.seq_len", data.validation, experiment.evaluation.seq_len),
    ):
        if split.tokens <= length:
            raise ConfigError(
                f"{name}={length} is longer than the {split.tokens} tokens of its split: lower it or prepare more data"
            )


@contextlib.contextmanager
def _recorded_status(attempt: Attempt) -> Iterator[None]:
    """Keeps status.json true, however the run ends, as long as the directory is this attempt's."""

    def record(status: Status, **details) -> None:
        if is_first():
            attempt.check_still_owner()
            attempt.run.set_status(status, attempt=attempt.number, **details)

    def record_end(status: Status, **details) -> None:
        try:
            record(status, **details)
        except OSError as error:  # the checkpoints say how far it is
            print(
                f"{shown(attempt.run.status)} can't be written ({error.strerror})",
                file=sys.stderr,
                flush=True,
            )

    record("running")
    STOP.record = lambda: record("preempted")
    try:
        yield
    except Fenced:
        raise
    except Preempted:
        record_end("preempted")
        raise
    except Diverged as error:
        record_end("diverged", reason=str(error))
        raise
    except BaseException as error:
        record_end("failed", reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        STOP.record = lambda: None
    record_end("finished")


class _Run:
    """One attempt at a run."""

    def __init__(
        self,
        experiment,
        program: Program,
        compiled: Compiled,
        attempt: Attempt,
        directory,
        data: Manifest,
        fields,
        watchdog,
    ):
        self.experiment, self.program, self.compiled = experiment, program, compiled
        self.run, self.attempt, self.fields, self.watchdog = (
            attempt.run,
            attempt,
            fields,
            watchdog,
        )
        self.directory, self.data = directory, data
        self.train_windows = Windows(
            directory, data, data.train, experiment.data.seq_len
        )
        self.evaluate = evaluator(
            experiment, program.layout, program.mesh, directory, data
        )
        kept = (experiment.checkpoint.keep, experiment.checkpoint.keep_every)
        self.checkpointer = Checkpointer(
            self.run, *kept, check_owner=attempt.check_still_owner
        )
        self.writers = Writers(attempt)

    def go(self, *, profile: bool) -> dict[str, Any]:
        experiment, watchdog = self.experiment, self.watchdog
        with contextlib.ExitStack() as open_until_the_end:
            open_until_the_end.enter_context(watchdog.during("finishing"))
            open_until_the_end.enter_context(contextlib.closing(self.checkpointer))
            profiler = open_until_the_end.enter_context(contextlib.ExitStack())
            with watchdog.prompt_end(), watchdog.during("restoring"):
                state, record = self._restore_or_init()
            run_on_first(self._write_records)  # only now, as there is memory for it
            start = record["step"]
            if is_first():
                self.writers.begin(start)
                open_until_the_end.enter_context(contextlib.closing(self.writers))
            open_until_the_end.enter_context(watchdog.prompt_end())
            self.guard = PreemptionGuard()
            self.progress = Progress(experiment, start, record["seconds"])
            batches = self._batches(record["next_example"])
            late: tuple[int, dict] | None = (
                None  # the metrics of the step dispatched last, not yet read
            )

            self._complete_evaluation(start, state)
            log_phase(
                f"training steps {start + 1} to {experiment.steps}; {self.progress.convention}"
            )
            open_until_the_end.enter_context(watchdog.during("training"))
            for step in range(start + 1, experiment.steps + 1):
                if profile and is_first() and step == start + PROFILED_STEPS.start:
                    self._profile(profiler)
                if step == start + PROFILED_STEPS.stop:
                    profiler.close()
                train_step = self.compiled.steps[
                    self._due(step, experiment.log.moments_every)
                ]
                with watchdog.during("reading data"):
                    batch = next(batches)
                state, metrics = train_step(state, batch)
                self._write(late)
                late = (step, metrics)
                self.checkpointer.raise_if_save_failed()

                stopping = self.guard.preempted()
                evaluating = not stopping and self._evaluates_at(step)
                saving = (
                    stopping
                    or step == experiment.steps
                    or self._due(step, experiment.checkpoint.every)
                )
                if saving or evaluating:
                    self._write(late, state if evaluating else None)
                    late = None
                if saving or self.guard.stopping:  # an evaluation may have been left
                    self._save(step, state)
                if self.guard.stopping:
                    self._leave(step)
            return self._finish(state)

    def _write_records(self) -> None:
        """Writes what makes the directory this run's."""
        run, program = self.run, self.program
        write_record(run.config, config.to_dict(self.experiment))
        described = run_manifest.describe(
            self.experiment, program.layout, self.fields, self.data.framing()
        )
        described |= {"tokenizer_digest": files.digest(self.directory / TOKENIZER)}
        write_record(run.manifest, described)
        files.write(run.tokenizer, (self.directory / TOKENIZER).read_bytes())

    def _leave(self, step: int) -> NoReturn:
        with self.watchdog.during("saving"):
            self.checkpointer.wait()
        raise Preempted(
            f"stopped at step {step} of {self.experiment.steps}; run the same command to go on"
        )

    def _restore_or_init(self) -> tuple[TrainState, dict[str, Any]]:
        log_phase("looking for a checkpoint")
        restored = self.checkpointer.restore_latest(
            {"state": self.program.abstract_state}
        )
        if restored is None:
            log_phase(
                f"initialising {counts.parameters(self.experiment.model).total:,} parameters"
            )
            return self.program.init(), {"step": 0, "next_example": 0, "seconds": 0.0}
        saved = identity_fields(
            config.from_dict(restored.record["config"]),
            restored.record["data_fingerprint"],
        )
        if saved != identity_fields(self.experiment, self.data.fingerprint):
            raise ConfigError(
                f"checkpoint {restored.step} of {self.run.path} belongs to another run: choose another --workdir"
            )
        log_phase(f"restored step {restored.step}")
        return restored.items["state"], restored.record

    def _batches(self, first_example: int) -> Iterator[Batch]:
        cfg, sharding = self.experiment, self.program.abstract_batch.tokens.sharding
        rows = pipeline.local_rows(sharding, cfg.global_batch)
        for tokens in pipeline.batches(
            self.train_windows, cfg.data.seed, cfg.global_batch, first_example, rows
        ):
            segments = (
                pipeline.segments(tokens[:, :-1], self.data.eos_id)
                if cfg.model.document_masking
                else None
            )
            yield pipeline.to_devices(
                Batch(tokens, segments), rows, sharding, cfg.global_batch
            )

    def _profile(self, open_while_it_lasts: contextlib.ExitStack) -> None:
        mirror = files.Mirror(self.run.profile)
        open_while_it_lasts.callback(mirror.close)
        open_while_it_lasts.callback(mirror.upload)
        open_while_it_lasts.enter_context(jax.profiler.trace(os.fspath(mirror.path)))

    @staticmethod
    def _due(step: int, every: int) -> bool:
        return every > 0 and step % every == 0

    def _evaluates_at(self, step: int) -> bool:
        """Whether the metrics of `step` include held-out ones; after the last step they are in final.json."""
        return 0 < step < self.experiment.steps and self._due(
            step, self.experiment.evaluation.every
        )

    def _complete_evaluation(self, start: int, state: TrainState) -> None:
        """Evaluates where the attempt before had to leave while it did."""
        if not run_on_first(self._lacks_evaluation, start):
            return
        if evaluated := self._evaluate(start, state):
            run_on_first(self.writers.amend, plain(evaluated))
        else:
            self._leave(start)

    def _lacks_evaluation(self, step: int) -> bool:
        return self._evaluates_at(step) and self.writers.lacks_evaluation(step)

    def _write(
        self, late: tuple[int, dict] | None, evaluated: TrainState | None = None
    ) -> None:
        """Reads a dispatched step's metrics, which waits for the device, and writes them, with held-out metrics if asked."""
        if late is None:
            return
        step, on_device = late
        metrics = jax.device_get(on_device)
        tokens = self.experiment.tokens_per_step
        seconds = self.progress.step()
        self.watchdog.step(seconds)
        values = {
            "step": step,
            "tokens": step * tokens,
            "first_example": (step - 1) * self.experiment.global_batch,
            "tokens_per_second": tokens / seconds,
            "perplexity": np.exp(np.minimum(metrics["loss"], 80.0)),
        }
        if evaluated is not None:
            values |= self._evaluate(step, evaluated) or {}
        line = plain(values | metrics)
        logged = (
            self._due(step, self.experiment.log.every)
            or evaluated is not None
            or step == self.experiment.steps
        )
        if is_first():
            self.writers.write(line, tensorboard=logged)
        if logged:
            print_once(self.progress.line(line))
        skipped, budget = (
            line["skipped_updates"],
            self.experiment.execution.max_skipped_updates,
        )
        if skipped > budget:
            raise Diverged(
                f"{skipped} updates up to step {step} were not finite, {budget} are allowed: lower optimizer.peak_lr"
            )

    def _save(self, step: int, state: TrainState) -> None:
        record = {
            "config": config.to_dict(self.experiment),
            "next_example": step * self.experiment.global_batch,
            "data_fingerprint": self.data.fingerprint,
            "seconds": self.progress.seconds,
        }
        with self.watchdog.during("saving"):
            run_on_first(self.writers.sync)  # raises Fenced
            self.checkpointer.wait()  # the save before has its room then, and older steps have given theirs back
            run_on_first(check_room, self.run.checkpoints, state)
            self.checkpointer.save(step, {"state": state}, record)

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float] | None:
        """Held-out metrics, or None if the run is asked to stop meanwhile."""
        log_phase("evaluating on the validation split")

        def after_batch():
            self.watchdog.alive()
            if self.guard.preempted():
                raise Interrupted

        try:
            with self.watchdog.during("evaluating"):
                result = self.evaluate(state.params, after_batch)
        except Interrupted:
            return None
        print_once(
            f"step {step} | "
            + " | ".join(
                f"held-out {name} {value:,.4f}" for name, value in result.items()
            )
        )
        self.progress.resume()
        return {f"evaluation/{name}": value for name, value in result.items()}

    def _finish(self, state: TrainState) -> dict[str, Any]:
        experiment, seconds = self.experiment, self.progress.seconds
        evaluated = self._evaluate(experiment.steps, state)
        log_phase("waiting for the last checkpoint")
        if evaluated is None:
            self._leave(experiment.steps)
        with self.watchdog.during("saving"):
            self.checkpointer.wait()
        held_out = {
            name.removeprefix("evaluation/"): value for name, value in evaluated.items()
        }
        tokens = experiment.steps * experiment.tokens_per_step
        skipped = int(jax.device_get(state.skipped))
        if 2 * skipped > experiment.steps:
            raise Diverged(
                f"{skipped} of {experiment.steps} updates were not finite, so this is no trained model: lower optimizer.peak_lr"
            )
        final = {
            **plain(held_out),
            "identity": identity(identity_fields(experiment, self.data.fingerprint)),
            "skipped_updates": skipped,
            "unigram_entropy": self.data.validation.unigram_entropy,
            "steps": experiment.steps,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "compile_seconds": self.compiled.seconds,
            "flops": tokens
            * counts.flops_per_token(experiment.model, experiment.data.seq_len),
            "mfu": self.progress.mfu(tokens / seconds),
            "flops_convention": counts.FLOPS_CONVENTION,
        }
        run_on_first(self.attempt.check_still_owner)
        run_on_first(self._write_final, final)
        if skipped:
            log_phase(
                f"{skipped} of {experiment.steps} updates were left out, as they were not finite"
            )
        log_phase(
            f"held-out loss {held_out['loss']:.4f} nats; a guess by token frequency alone would have {final['unigram_entropy']:.4f}"
        )
        return final

    def _write_final(self, final: dict[str, Any]) -> None:
        try:
            write_record(self.run.final, final)
        except OSError as error:
            print(json.dumps(final), flush=True)
            reason = f"{self.run.final} can't be written ({error.strerror})"
            raise SparsecodError(
                f"{reason}: make room or mend the disk, and run the same command, which only evaluates"
            ) from error
