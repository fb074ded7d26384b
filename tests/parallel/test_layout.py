"""Which mesh, microbatches and kernel are chosen, for which devices, and what is refused."""

import dataclasses
import itertools
import math
import random
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from sparsecod_jax import config
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel.layout import Layout, describe, resolve
from sparsecod_jax.parallel.sharding import MESH_AXES
from tests.support import tiny_configs

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = (
    "dense_1b",
    "dense_400m",
    "moe_1b_7b",
    "moe_400m_2b",
    "recipe_1b_32l",
    "smoke",
)


def _paper(name, *overrides):
    return load_experiment(
        f"{ROOT}/configs/{name}.py:paper",
        [f"--config.{override}" for override in overrides],
    )


def _devices(count, slices=1, kind="cpu", platform="cpu"):
    """What a choice reads of devices; `slices` of equal size."""
    return [
        SimpleNamespace(
            slice_index=i * slices // count, device_kind=kind, platform=platform, id=i
        )
        for i in range(count)
    ]


def _resolve(experiment, devices, *sizes) -> Layout:
    """On a mesh of those sizes."""
    return resolve(dataclasses.replace(experiment, mesh=config.Mesh(*sizes)), devices)


def _sizes(layout):
    return dataclasses.astuple(layout.mesh)


CHOSEN = {  # data, fsdp, expert, tensor
    1: dict.fromkeys(PUBLISHED, (1, 1, 1, 1)),
    2: dict.fromkeys(PUBLISHED, (1, 2, 1, 1)),
    8: dict.fromkeys(PUBLISHED, (1, 8, 1, 1)),
    16: dict.fromkeys(PUBLISHED, (1, 16, 1, 1)),
    32: dict.fromkeys(PUBLISHED, (1, 32, 1, 1)),
    64: dict.fromkeys(PUBLISHED, (2, 32, 1, 1)),
    512: dict.fromkeys(PUBLISHED, (8, 32, 1, 2))
    | {"recipe_1b_32l": (16, 16, 1, 2)},  # 256 rows; 1120 is 35 times 32
}


@pytest.mark.parametrize(
    ("count", "name"), [(count, name) for count in CHOSEN for name in PUBLISHED]
)
def test_published_configs_on_powers_of_two(count, name):
    assert _sizes(resolve(_paper(name), _devices(count))) == CHOSEN[count][name]


@pytest.mark.parametrize(
    ("count", "name", "sizes"),
    [
        # 256 rows over 2, width 1536 over 6, 12 heads over 3.
        (6, "dense_400m", (1, 2, 1, 3)),
        (3, "moe_400m_2b", (1, 1, 1, 3)),
        (2048, "dense_1b", (8, 32, 1, 8)),
        (2048, "moe_1b_7b", (8, 32, 1, 8)),
        (2048, "recipe_1b_32l", (64, 4, 1, 8)),
    ],
)
def test_other_counts_split_what_divides(count, name, sizes):
    assert _sizes(resolve(_paper(name), _devices(count))) == sizes


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (3, "dense_1b"),
        (6, "moe_1b_7b"),
        # At least 8 tensor-parallel partners for 256 rows, but 12 heads.
        (2048, "dense_400m"),
    ],
)
def test_devices_among_which_nothing_divides_are_refused(count, name):
    with pytest.raises(ConfigError) as refused:
        resolve(_paper(name), _devices(count))
    assert str(refused.value) == (
        f"global_batch / execution.accumulation=256 is not a multiple of {count}"
        " (mesh.data x mesh.fsdp x mesh.expert):"
        f" change one of them, as no other mesh of the {count} devices fits either"
    )


def _divides(experiment, data, fsdp, expert, tensor):
    """The rules, independently of the code."""
    model = experiment.model
    rows = experiment.global_batch // (experiment.execution.accumulation or 1)
    tensored = [model.n_heads, model.d_ff, model.d_shared, model.vocab_size]
    return (
        (expert == 1 or model.n_experts > 0)
        and rows % (data * fsdp * expert) == 0
        and all(size % tensor == 0 for size in tensored)
        and model.n_experts % expert == 0
        and model.d_model % (fsdp * expert * tensor) == 0
    )


def test_a_mesh_is_chosen_whenever_one_divides():
    """Sizes at random.

    What is chosen divides, keeps what was asked for, and nothing that divides is missed.
    """
    rng = random.Random(0)
    chosen = refused = 0
    for _ in range(400):
        heads = rng.choice((1, 2, 3, 4, 6, 8))
        mixture = rng.random() < 0.5
        model = dataclasses.replace(
            tiny_configs.MODEL,
            d_model=rng.choice((24, 32, 36, 48, 60, 64, 96)),
            n_heads=heads,
            n_kv_heads=heads,
            head_dim=8,
            d_ff=rng.choice((6, 24, 30, 32, 48)),
            vocab_size=rng.choice((60, 96, 100, 303)),
            **({"n_experts": rng.choice((2, 4, 6, 8)), "top_k": 2} if mixture else {}),
        )
        batch, accumulation = rng.choice((4, 6, 8, 12, 24, 30)), rng.choice((0, 1, 2))
        count, slices = (
            rng.choice((1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)),
            rng.choice((1, 1, 1, 2)),
        )
        if count % slices:
            continue
        asked = config.Mesh(
            **{axis: rng.choice((1, 2, 3)) for axis in MESH_AXES if rng.random() < 0.15}
        )
        experiment = tiny_configs.experiment(
            model=model,
            global_batch=batch,
            execution={"accumulation": accumulation},
            mesh=asked,
        )
        divisors = [size for size in range(1, count + 1) if count % size == 0]
        any_divides = any(
            math.prod(sizes) == count
            and sizes[0] % slices == 0
            and all(
                wanted in (0, size)
                for wanted, size in zip(dataclasses.astuple(asked), sizes, strict=True)
            )
            and _divides(experiment, *sizes)
            for sizes in itertools.product(divisors, repeat=4)
        )
        try:
            sizes = _sizes(resolve(experiment, _devices(count, slices)))
        except ConfigError:
            assert not any_divides, (experiment, count)
            refused += 1
        else:
            assert math.prod(sizes) == count
            assert sizes[0] % slices == 0
            assert all(
                wanted in (0, size)
                for wanted, size in zip(dataclasses.astuple(asked), sizes, strict=True)
            )
            assert _divides(experiment, *sizes)
            chosen += 1
    assert min(chosen, refused) > 50


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({"data": 2}, (2, 4, 1, 1)),
        ({"fsdp": 1}, (8, 1, 1, 1)),
        ({"tensor": 4}, (1, 2, 1, 4)),
        ({"expert": 2}, (1, 4, 2, 1)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 1, 2)),
        ({"data": 1, "fsdp": 1}, (1, 1, 8, 1)),
        ({"data": 1, "fsdp": 2, "expert": 2, "tensor": 2}, (1, 2, 2, 2)),
        ({"data": 8, "fsdp": 1, "expert": 1, "tensor": 1}, (8, 1, 1, 1)),
    ],
)
def test_what_is_asked_for_is_kept(asked, sizes):
    experiment = tiny_configs.experiment(model=tiny_configs.MIXTURE, mesh=asked)
    assert _sizes(resolve(experiment, _devices(8))) == sizes


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"data": 3}, "mesh.data=3"),
        ({"tensor": 16}, "mesh.tensor=16"),
        (
            {"data": 1, "fsdp": 1, "expert": 1, "tensor": 1},
            "mesh.data=1, mesh.fsdp=1, mesh.expert=1, mesh.tensor=1",
        ),
        (
            {"data": 2, "fsdp": 2, "expert": 2, "tensor": 2},
            "mesh.data=2, mesh.fsdp=2, mesh.expert=2, mesh.tensor=2",
        ),
    ],
)
def test_a_product_that_is_not_the_number_of_devices_is_refused(asked, given):
    with pytest.raises(ConfigError) as refused:
        resolve(tiny_configs.experiment(mesh=asked), _devices(8))
    assert str(refused.value) == (
        f"{given} does not multiply to the 8 devices here:"
        " change an axis, or set it to 0 to have it chosen"
    )


def test_only_data_runs_between_slices():
    experiment = _paper("dense_1b")
    assert _sizes(resolve(experiment, _devices(16, slices=2))) == (2, 8, 1, 1)
    assert _sizes(resolve(experiment, _devices(128, slices=4))) == (4, 32, 1, 1)
    # A caller who compiles for other devices gives the number of slices.
    assert _sizes(resolve(experiment, _devices(16), slices=2)) == (2, 8, 1, 1)
    recipe = _paper("recipe_1b_32l")
    assert _sizes(resolve(recipe, _devices(128, slices=2))) == (4, 32, 1, 1)
    with pytest.raises(ConfigError) as refused:
        resolve(_paper("dense_1b", "mesh.data=3"), _devices(48, slices=2))
    assert str(refused.value) == (
        "mesh.data=3 does not multiply to the 48 devices here"
        " with mesh.data a multiple of the 2 slices:"
        " change an axis, or set it to 0 to have it chosen"
    )


def _mixture(**change):
    return dataclasses.replace(tiny_configs.MIXTURE, **change)


ROWS = "mesh.data x mesh.fsdp x mesh.expert"
MISFITS = [
    (
        {"global_batch": 12},
        (2, 4, 1, 1),
        f"global_batch / execution.accumulation=12 is not a multiple of 8 ({ROWS})",
    ),
    (
        {"model": tiny_configs.MIXTURE, "global_batch": 12},
        (2, 2, 2, 1),
        f"global_batch / execution.accumulation=12 is not a multiple of 8 ({ROWS})",
    ),
    (
        {"execution": {"accumulation": 4}},
        (2, 2, 1, 2),
        f"global_batch / execution.accumulation=2 is not a multiple of 4 ({ROWS})",
    ),
    (
        {"model": {"n_heads": 6, "head_dim": 4}},
        (1, 2, 1, 4),
        "model.n_heads=6 is not a multiple of 4 (mesh.tensor)",
    ),
    (
        {"model": {"d_ff": 50}},
        (1, 2, 1, 4),
        "model.d_ff=50 is not a multiple of 4 (mesh.tensor)",
    ),
    (
        {"model": {"vocab_size": 303}},
        (1, 4, 1, 2),
        "model.vocab_size=303 is not a multiple of 2 (mesh.tensor)",
    ),
    (
        {"model": {"d_model": 36}},
        (1, 4, 1, 2),
        "model.d_model=36 is not a multiple of 8 (mesh.fsdp x mesh.expert x mesh.tensor)",
    ),
    (
        {"model": _mixture(d_model=36)},
        (1, 2, 4, 1),
        "model.d_model=36 is not a multiple of 8 (mesh.fsdp x mesh.expert x mesh.tensor)",
    ),
    (
        {"model": _mixture(n_experts=6)},
        (1, 2, 4, 1),
        "model.n_experts=6 is not a multiple of 4 (mesh.expert)",
    ),
    (
        {"model": _mixture(d_shared=22)},
        (1, 1, 2, 4),
        "model.d_shared=22 is not a multiple of 4 (mesh.tensor)",
    ),
    ({}, (1, 4, 2, 1), "mesh.expert=2 but model.n_experts=0"),
]


@pytest.mark.parametrize(
    ("sections", "sizes", "misfit"),
    MISFITS,
    ids=[misfit.split(" is not")[0] for _, _, misfit in MISFITS],
)
def test_sizes_that_a_mesh_can_not_divide_are_refused(sections, sizes, misfit):
    experiment = tiny_configs.experiment(**sections)
    with pytest.raises(ConfigError) as refused:
        _resolve(experiment, _devices(8), *sizes)
    assert str(refused.value) == f"{misfit}: change one of them"
    _resolve(experiment, _devices(1), 1, 1, 1, 1)


def test_key_and_value_heads_need_not_divide():
    _resolve(tiny_configs.experiment(model={"n_kv_heads": 1}), _devices(8), 1, 2, 1, 4)


def test_nothing_is_left_open():
    asked = tiny_configs.experiment(execution={"accumulation": 0, "attention": "auto"})
    layout = _resolve(asked, jax.devices(), 1, 4, 1, 2)
    assert layout == Layout(
        config.Mesh(1, 4, 1, 2), 1, config.Kernels("xla", "full", False)
    )
    decided = layout.decided(asked.execution)
    assert decided == dataclasses.replace(
        asked.execution, accumulation=1, attention="xla"
    )
    again = dataclasses.replace(asked, mesh=layout.mesh, execution=decided)
    assert resolve(again, jax.devices()) == layout


def _microbatches(kind, *sizes, platform="tpu", **change):
    experiment = dataclasses.replace(_paper("dense_1b"), **change)
    devices = _devices(math.prod(sizes), kind=kind, platform=platform)
    return _resolve(experiment, devices, *sizes).microbatches


def test_microbatches_are_the_fewest_whose_residual_stream_takes_an_eighth_of_the_memory():
    """The residual stream of a row is 16 blocks x 1024 positions x 2048 x 4 bytes, 128 MiB."""
    # 32 rows per device, 15 of them in an eighth of 15.75 GiB, and 8 divides.
    assert _microbatches("TPU v5 lite", 1, 8, 1, 1) == 4
    assert _microbatches("TPU v5 lite", 1, 16, 1, 1) == 2
    assert _microbatches("TPU v5 lite", 1, 64, 1, 1) == 1
    # 128 rows per device, 95 of them in an eighth of 95.74 GiB.
    assert _microbatches("TPU v5", 1, 2, 1, 1) == 2
    # Tensor-parallel partners hold the same residual stream.
    assert _microbatches("TPU v5", 1, 2, 1, 4) == 2
    assert _microbatches("TPU v5", 1, 4, 1, 1) == 1
    given = config.Execution(accumulation=8)
    assert _microbatches("TPU v5 lite", 1, 8, 1, 1, execution=given) == 8
    devices = _devices(8, kind="TPU v5 lite", platform="tpu")
    assert _resolve(_paper("moe_1b_7b"), devices, 1, 8, 1, 1).microbatches == 1
    longer = config.Data(seq_len=32 * 1024)
    # Not even one row is that small.
    assert _microbatches("TPU v5 lite", 1, 8, 1, 1, data=longer) == 32


def test_more_memory_never_takes_more_microbatches():
    by_memory = [
        "TPU v5 lite",
        "TPU v4",
        "TPU v6 lite",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA H100 80GB HBM3",
        "TPU v5",
        "NVIDIA H200",
    ]
    for fsdp in (1, 2, 4, 8, 16):
        counts = [_microbatches(kind, 1, fsdp, 1, 1) for kind in by_memory]
        assert counts == sorted(counts, reverse=True)
        assert all(256 // fsdp % count == 0 for count in counts)


def test_devices_of_unknown_memory_take_one_microbatch():
    assert _microbatches("TPU v9", 1, 2, 1, 1) == 1


def test_on_a_cpu_the_scores_of_a_microbatch_stay_in_a_cache():
    def rows(length, fsdp=1):
        data = config.Data(seq_len=length)
        # With 16 heads.
        count = _microbatches("cpu", 1, fsdp, 1, 1, platform="cpu", data=data)
        return 256 // (fsdp * count)

    assert [rows(length) for length in (8, 32, 64, 128, 1024)] == [128, 8, 2, 1, 1]
    assert rows(32, fsdp=8) == 8


def _kernel(platform, kind, asked="auto", **model):
    experiment = tiny_configs.experiment(
        model={"compute_dtype": "bfloat16"} | model, execution={"attention": asked}
    )
    devices = _devices(1, kind=kind, platform=platform)
    return _resolve(experiment, devices, 1, 1, 1, 1).kernels.attention


def test_attention_is_the_platforms_own_where_it_serves():
    assert _kernel("tpu", "TPU v5") == "splash"
    assert _kernel("tpu", "TPU v5", head_dim=256) == "splash"
    assert _kernel("tpu", "TPU v5", compute_dtype="float32") == "xla"
    assert _kernel("gpu", "NVIDIA H100 80GB HBM3") == "cudnn"
    assert _kernel("gpu", "NVIDIA H100 80GB HBM3", head_dim=70) == "cudnn"
    assert _kernel("gpu", "NVIDIA H100 80GB HBM3", head_dim=130) == "xla"
    assert _kernel("gpu", "NVIDIA H100 80GB HBM3", compute_dtype="float32") == "xla"
    assert _kernel("cpu", "cpu") == "xla"
    for asked in ("xla", "reference"):
        assert {_kernel(platform, "", asked) for platform in ("tpu", "gpu", "cpu")} == {
            asked
        }
    assert _kernel("tpu", "TPU v5", "splash") == "splash"
    assert _kernel("gpu", "NVIDIA H100 80GB HBM3", "cudnn") == "cudnn"


@pytest.mark.parametrize(
    ("platform", "asked", "needed"),
    [
        ("cpu", "splash", "a TPU"),
        ("gpu", "splash", "a TPU"),
        ("cpu", "cudnn", "an NVIDIA GPU"),
        ("tpu", "cudnn", "an NVIDIA GPU"),
    ],
)
def test_a_kernel_of_another_platform_is_refused(platform, asked, needed):
    with pytest.raises(ConfigError) as refused:
        _kernel(platform, "", asked)
    assert str(refused.value) == (
        f"execution.attention={asked} needs {needed}, this is a {platform}:"
        " set execution.attention=auto"
    )


def _described(asked, count, kind="TPU v5"):
    devices = _devices(count, kind=kind, platform="tpu")
    return describe(resolve(asked, devices), asked)


def test_more_than_32_ways_of_fsdp_are_only_asked_for():
    assert _sizes(resolve(_paper("dense_1b"), _devices(256))) == (8, 32, 1, 1)
    wide = _paper("dense_1b", "mesh.fsdp=64")
    assert _sizes(resolve(wide, _devices(256))) == (4, 64, 1, 1)
    widest = _paper("dense_1b", "mesh.data=1")
    assert _sizes(resolve(widest, _devices(256))) == (1, 256, 1, 1)


def test_what_was_chosen_is_described_with_its_reason():
    assert _described(_paper("dense_400m"), 6) == (
        "mesh fsdp 2 x tensor 3"
        f" (global_batch / execution.accumulation=256 is not a multiple of 6 ({ROWS}));"
        " microbatches 8 of 16 rows a device; remat full; attention by splash"
    )
    assert "rows a device; blocks one by one; remat full; " in _described(
        _paper("dense_400m", "execution.unroll=True"), 1
    )
    assert _described(_paper("dense_1b"), 1).startswith(
        "mesh one device (FSDP within a slice, at most 32 ways); "
    )
    assert _described(_paper("recipe_1b_32l"), 64).startswith(
        "mesh data 2 x fsdp 32 (FSDP within a slice, at most 32 ways); "
    )
    assert _described(_paper("dense_1b"), 512).startswith(
        "mesh data 8 x fsdp 32 x tensor 2"
        " (global_batch / execution.accumulation=256 is not a multiple of 512 "
    )
    asked = _paper(
        "dense_1b", "mesh.data=4", "mesh.fsdp=2", "mesh.expert=1", "mesh.tensor=2"
    )
    assert _described(asked, 16).startswith(
        "mesh data 4 x fsdp 2 x tensor 2"
        " (as mesh.data=4, mesh.fsdp=2, mesh.expert=1, mesh.tensor=2 asks); "
    )
    assert _described(_paper("dense_1b", "mesh.fsdp=4"), 8).startswith(
        "mesh data 2 x fsdp 4 (as mesh.fsdp=4 asks); "
    )
