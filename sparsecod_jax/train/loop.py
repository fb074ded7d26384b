"""How does a run go, from its config to its final numbers?"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from sparsecod_jax import config, counts, files, placement
from sparsecod_jax.checkpoint import Checkpointer
from sparsecod_jax.data import pipeline
from sparsecod_jax.data.store import Manifest, Windows, prepare_command, read_manifest
from sparsecod_jax.data.tokenizer import TOKENIZER
from sparsecod_jax.errors import ConfigError, Diverged, Fenced, Preempted
from sparsecod_jax.evaluate.perplexity import evaluator
from sparsecod_jax.files import read_record, write_record
from sparsecod_jax.identity import identity, identity_fields
from sparsecod_jax.processes import first_decides, is_first, note, say, together
from sparsecod_jax.rundir import Attempt, RunDir, Status, check_identity, claim
from sparsecod_jax.train import manifest as run_manifest
from sparsecod_jax.train.preemption import PreemptionGuard
from sparsecod_jax.train.progress import Progress
from sparsecod_jax.train.step import Batch, Program, TrainState, build_on
from sparsecod_jax.train.writers import Writers, plain

PROFILED_STEPS = range(3, 6)  # of an attempt


def train(experiment: config.Experiment, workdir: str, *, profile: bool = False) -> dict[str, Any]:
    """Trains `experiment` in `workdir`, goes on where an earlier attempt stopped, or finds it finished; returns final.json.

    Every process of a run calls this with the same arguments.

    Raises:
      ConfigError: the config does not fit the devices or the data, or `workdir` holds another run; nothing was written. Or no
        checkpoint of `workdir` can be used; they were left as they are.
      Fenced: another process owns `workdir`.
      Preempted: SIGTERM came; a checkpoint was committed.
      Diverged: too many updates were not finite.
    """
    run, directory = together(lambda: (RunDir(files.absolute(workdir)), files.absolute(experiment.data.path)))
    data = together(lambda: read_manifest(directory, prepare_command(experiment)))
    _check_same_everywhere(run, experiment, data)
    fields = identity_fields(experiment, data.fingerprint)
    if final := first_decides(lambda: _finished(run, fields)):
        return final
    together(lambda: placement.check_platform(experiment.model))
    _check_data(experiment, data)
    program = build_on(experiment, jax.devices())
    with contextlib.ExitStack() as claimed:
        attempt = Attempt(run, *first_decides(lambda: _key(claimed.enter_context(claim(run)))))
        together(attempt.check_shared)
        first_decides(lambda: check_identity(run, fields))  # again, as another run may have come first
        first_decides(lambda: write_record(run.config, config.to_dict(experiment)))
        described = run_manifest.describe(program.experiment, program.mesh, fields, data.framing())
        first_decides(lambda: write_record(run.manifest, described | {"tokenizer_digest": files.digest(directory / TOKENIZER)}))
        first_decides(lambda: files.write(run.tokenizer, (directory / TOKENIZER).read_bytes()))
        note(placement.describe(program.experiment, experiment))
        with _recorded_status(attempt):
            return _Run(experiment, program, run, attempt, directory, data).go(profile=profile)


def _finished(run: RunDir, fields: dict[str, Any]) -> dict[str, Any] | None:
    """The final numbers, if this run has them already."""
    check_identity(run, fields)
    files.say_if_unchecked(run.manifest)
    if not run.final.exists():
        return None
    note(f"{run.path} is already finished")
    final = read_record(run.final)
    if final.get("identity", identity(fields)) != identity(fields):
        raise ConfigError(f"{run.final} is of another run than {run.manifest}: restore it from a copy, or choose another --workdir")
    run.set_status("finished")  # a crash may have come between the two files
    return final


def _key(attempt: Attempt) -> tuple[int, str]:
    """What the other processes need to know their attempt by."""
    return attempt.number, attempt.token


def _check_same_everywhere(run: RunDir, experiment: config.Experiment, data: Manifest) -> None:
    asked = json.dumps([os.fspath(run.path), config.to_dict(experiment), data.fingerprint])
    first = first_decides(lambda: asked)

    def check():
        if asked != first:
            raise ConfigError(f"process {jax.process_index()} was given another --workdir, config or data than process 0: start all alike")

    together(check)


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
            raise ConfigError(f"{name}={length} is longer than the {split.tokens} tokens of its split: lower it or prepare more data")


@contextlib.contextmanager
def _recorded_status(attempt: Attempt) -> Iterator[None]:
    """Keeps status.json true, however the run ends, as long as the directory is this attempt's."""

    def record(status: Status, **details) -> None:
        if is_first():
            attempt.check_still_owner()
            attempt.run.set_status(status, attempt=attempt.number, **details)

    record("running")
    try:
        yield
    except Fenced:
        raise
    except Preempted:
        record("preempted")
        raise
    except Diverged as error:
        record("diverged", reason=str(error))
        raise
    except BaseException as error:
        record("failed", reason=f"{type(error).__name__}: {error}")
        raise
    record("finished")


class _Run:
    """One attempt at a run."""

    def __init__(self, experiment, program: Program, run: RunDir, attempt: Attempt, directory: epath.Path, data: Manifest):
        self.experiment, self.program, self.run, self.attempt = experiment, program, run, attempt
        self.data = data
        self.train_windows = Windows(directory, data, data.train, experiment.data.seq_len)
        self.evaluate = evaluator(program.experiment, program.mesh, directory, data)
        kept = (experiment.checkpoint.keep, experiment.checkpoint.keep_every)
        self.checkpointer = Checkpointer(run, *kept, check_owner=attempt.check_still_owner)
        self._compiled: dict[bool, Any] = {}
        self.compile_seconds = 0.0  # of this attempt

    def go(self, *, profile: bool) -> dict[str, Any]:
        experiment = self.experiment
        with contextlib.ExitStack() as open_until_the_end:
            guard = open_until_the_end.enter_context(PreemptionGuard())
            open_until_the_end.enter_context(contextlib.closing(self.checkpointer))
            profiler = open_until_the_end.enter_context(contextlib.ExitStack())
            state, record = self._restore_or_init()
            start = record["step"]
            if is_first():
                self.writers = open_until_the_end.enter_context(contextlib.closing(Writers(self.attempt, start)))
            self.progress = Progress(experiment, start, record["seconds"])
            batches = self._batches(record["next_example"])
            late: tuple[int, dict] | None = None  # the metrics of the step dispatched last, not yet read

            note(f"training steps {start + 1} to {experiment.steps}; {self.progress.convention}")
            for step in range(start + 1, experiment.steps + 1):
                if profile and is_first() and step == start + PROFILED_STEPS.start:
                    self._profile(profiler)
                if step == start + PROFILED_STEPS.stop:
                    profiler.close()
                with_moments = self._due(step, experiment.log.moments_every)
                if with_moments not in self._compiled:
                    self._write(late)  # first, as compiling would fall into its time
                    late = None
                    self._compile(with_moments=with_moments)
                train_step = self._compiled[with_moments]
                state, metrics = train_step(state, next(batches))
                self._write(late)
                late = (step, metrics)
                self.checkpointer.raise_if_save_failed()

                stopping = guard.preempted(step)
                saving = stopping or step == experiment.steps or self._due(step, experiment.checkpoint.every)
                evaluating = not stopping and step < experiment.steps and self._due(step, experiment.evaluation.every)
                if saving or evaluating:
                    self._write(late, state if evaluating else None)
                    late = None
                if saving:
                    self._save(step, state)
                if stopping:
                    self.checkpointer.wait()
                    raise Preempted(f"stopped at step {step} of {experiment.steps}; run the same command to go on")
            return self._finish(state)

    def _restore_or_init(self) -> tuple[TrainState, dict[str, Any]]:
        note("looking for a checkpoint")
        restored = self.checkpointer.restore_latest({"state": self.program.abstract_state})
        if restored is None:
            note(f"initialising {counts.parameters(self.experiment.model).total:,} parameters")
            return self.program.init(), {"step": 0, "next_example": 0, "seconds": 0.0}
        saved = identity_fields(config.from_dict(restored.record["config"]), restored.record["data_fingerprint"])
        if saved != identity_fields(self.experiment, self.data.fingerprint):
            raise ConfigError(f"checkpoint {restored.step} of {self.run.path} belongs to another run: choose another --workdir")
        note(f"restored step {restored.step}")
        return restored.items["state"], restored.record

    def _batches(self, first_example: int) -> Iterator[Batch]:
        cfg, sharding = self.experiment, self.program.abstract_batch.tokens.sharding
        rows = pipeline.local_rows(sharding, cfg.global_batch)
        for tokens in pipeline.batches(self.train_windows, cfg.data.seed, cfg.global_batch, first_example, rows):
            segments = pipeline.segments(tokens[:, :-1], self.data.eos_id) if cfg.model.document_masking else None
            yield pipeline.to_devices(Batch(tokens, segments), rows, sharding, cfg.global_batch)

    def _compile(self, *, with_moments: bool) -> None:
        note(f"compiling the train step{' with moments' if with_moments else ''}")
        began = time.perf_counter()
        self._compiled[with_moments] = self.program.lower(with_moments=with_moments).compile()
        seconds = time.perf_counter() - began
        self.compile_seconds += seconds
        note(f"compiled in {seconds:.1f} s")
        self.progress.resume()

    def _profile(self, open_while_it_lasts: contextlib.ExitStack) -> None:
        mirror = files.Mirror(self.run.profile)
        open_while_it_lasts.callback(mirror.close)
        open_while_it_lasts.callback(mirror.upload)
        open_while_it_lasts.enter_context(jax.profiler.trace(os.fspath(mirror.path)))

    @staticmethod
    def _due(step: int, every: int) -> bool:
        return every > 0 and step % every == 0

    def _write(self, late: tuple[int, dict] | None, evaluated: TrainState | None = None) -> None:
        """Reads a dispatched step's metrics, which waits for the device, and writes them, with held-out metrics if asked."""
        if late is None:
            return
        step, on_device = late
        metrics = jax.device_get(on_device)
        tokens = self.experiment.tokens_per_step
        tokens_per_second = tokens / self.progress.step()
        values = {
            "step": step,
            "tokens": step * tokens,
            "first_example": (step - 1) * self.experiment.global_batch,
            "tokens_per_second": tokens_per_second,
            "perplexity": np.exp(np.minimum(metrics["loss"], 80.0)),
        }
        if evaluated is not None:
            values |= {f"evaluation/{name}": value for name, value in self._evaluate(step, evaluated).items()}
        line = plain(values | metrics)
        logged = self._due(step, self.experiment.log.every) or evaluated is not None or step == self.experiment.steps
        if is_first():
            self.writers.write(line, tensorboard=logged)
        if logged:
            say(self.progress.line(line))
        skipped, budget = line["skipped_updates"], self.experiment.execution.max_skipped_updates
        if skipped > budget:
            raise Diverged(f"{skipped} updates up to step {step} were not finite, {budget} are allowed: lower optimizer.peak_lr")

    def _save(self, step: int, state: TrainState) -> None:
        first_decides(lambda: self.writers.sync())  # only the first has writers; raises Fenced
        record = {
            "config": config.to_dict(self.experiment),
            "next_example": step * self.experiment.global_batch,
            "data_fingerprint": self.data.fingerprint,
            "seconds": self.progress.seconds,
        }
        self.checkpointer.save(step, {"state": state}, record)

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        note("evaluating on the validation split")
        result = self.evaluate(state.params)
        say(f"step {step} | " + " | ".join(f"held-out {name} {value:,.4f}" for name, value in result.items()))
        self.progress.resume()
        return result

    def _finish(self, state: TrainState) -> dict[str, Any]:
        experiment, seconds = self.experiment, self.progress.seconds
        held_out = self._evaluate(experiment.steps, state)
        note("waiting for the last checkpoint")
        self.checkpointer.wait()
        tokens = experiment.steps * experiment.tokens_per_step
        skipped = int(jax.device_get(state.skipped))
        if 2 * skipped > experiment.steps:
            raise Diverged(f"{skipped} of {experiment.steps} updates were not finite, so this is no trained model: lower optimizer.peak_lr")
        final = {
            **plain(held_out),
            "identity": identity(identity_fields(experiment, self.data.fingerprint)),
            "skipped_updates": skipped,
            "unigram_entropy": self.data.validation.unigram_entropy,
            "steps": experiment.steps,
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "compile_seconds": self.compile_seconds,
            "flops": tokens * counts.flops_per_token(experiment.model, experiment.data.seq_len),
            "mfu": self.progress.mfu(tokens / seconds),
            "flops_convention": counts.FLOPS_CONVENTION,
        }
        first_decides(self.attempt.check_still_owner)
        first_decides(lambda: write_record(self.run.final, final))
        if skipped:
            note(f"{skipped} of {experiment.steps} updates were left out, as they were not finite")
        note(f"held-out loss {held_out['loss']:.4f} nats; a guess by token frequency alone would have {final['unigram_entropy']:.4f}")
        return final
