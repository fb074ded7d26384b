"""What memory can't hold is refused in a sentence that helps, before a run directory exists."""

import dataclasses
import json

import jax
import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.train import programs
from sparsecod_jax.train.loop import train
from sparsecod_jax.train.programs import compile_steps, explained
from sparsecod_jax.train.step import build
from tests.support import process, tiny_configs


@pytest.mark.parametrize(
    ("every", "needed"), [(0, [False]), (1, [True]), (3, [False, True])]
)
def test_only_the_programs_that_a_run_needs_are_compiled(every, needed):
    compiled = compile_steps(
        build(tiny_configs.experiment(log={"moments_every": every}), jax.devices()[:1])
    )
    assert list(compiled.steps) == needed
    assert compiled.seconds > 0


def test_a_step_that_is_too_large_is_refused_with_the_change_that_fits(
    tokens, tmp_path, monkeypatch
):
    """The limit lies between what 1 and what 2 microbatches take; the advice fits."""
    experiment = tiny_configs.experiment(
        steps=3,
        global_batch=64,
        data={"path": str(tokens)},
        execution={"remat": "full"},
    )
    compiled = compile_steps(build(experiment, jax.devices()))
    analysis = compiled.steps[False].memory_analysis()
    taken = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    monkeypatch.setattr(
        programs, "_host_memory", lambda: 0.8 * taken * jax.local_device_count()
    )
    problem = "a step takes .* GiB .* and a device has .*"
    remedy = r"try --config\.execution\.accumulation=2$"
    with pytest.raises(ConfigError, match=f"{problem}: {remedy}"):
        train(experiment, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    halved = dataclasses.replace(
        experiment, execution=dataclasses.replace(experiment.execution, accumulation=2)
    )
    assert train(halved, str(tmp_path / "run"))["steps"] == 3


def test_memory_that_runs_out_later_is_one_sentence_too():
    experiment = tiny_configs.experiment(execution={"remat": "none"})
    for error in (
        MemoryError(),
        jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes."
        ),
    ):
        with (
            pytest.raises(
                ConfigError, match=r"memory.*: try --config.execution.remat=full"
            ),
            explained(experiment),
        ):
            raise error
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        explained(experiment),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_a_model_that_this_machine_can_not_hold_leaves_the_directory_to_a_smaller_one(
    tokens, tmp_path
):
    def start(width):
        experiment = tiny_configs.experiment(
            steps=3,
            data={"path": str(tokens)},
            model={"d_model": width, "d_ff": 4 * width},
        )
        return process.finish(
            process.start(experiment, tmp_path / "run"),
            code=0 if width == 32 else ConfigError.exit_code,
        )

    output = start(2**13)
    assert "lower model.d_model" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
    assert json.loads(start(32).splitlines()[-1])["steps"] == 3
