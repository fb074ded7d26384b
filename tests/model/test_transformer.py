"""The model against numpy, against transformers, and against itself computed in other ways."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsecod_jax.config import Kernels
from sparsecod_jax.model.attention import rope_angles
from sparsecod_jax.model.block import Block, Depth
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.stats import router
from tests.support import numpy_model, tiny_configs

TOKENS = np.random.default_rng(0).integers(0, 304, (2, 17))
# Residual variance of each block at init, d=2048, from the specification of the paper's code.
PUBLISHED = [
    0.78,
    1.64,
    2.51,
    3.37,
    4.24,
    5.09,
    5.97,
    6.87,
    7.74,
    8.63,
    9.51,
    10.42,
    11.31,
    12.21,
    13.07,
    13.99,
]
VARIANTS = {
    "grouped": {},
    "multi-head": {"n_kv_heads": 4},
    "multi-query": {"n_kv_heads": 1},
    "layer norm scaling": {"layer_norm_scaling": True},
    "own head size": {"head_dim": 6},
    "scaled FFN": {"ffn_scale": 0.3},
    "mixture of experts": {"n_experts": 6, "top_k": 2},
    "mixture with normalised gates": {
        "n_experts": 6,
        "top_k": 3,
        "normalize_gates": True,
        "layer_norm_scaling": True,
    },
    "mixture with a shared expert": {
        "n_experts": 4,
        "top_k": 1,
        "shared_expert": True,
        "d_shared": 80,
    },
    "mixture of one expert": {"n_experts": 1, "top_k": 1},
}


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_equals_numpy(change):
    cfg = dataclasses.replace(tiny_configs.MODEL, **change)
    params = tiny_configs.init(cfg)
    logits, stats = jax.jit(Transformer(cfg).apply)({"params": params}, TOKENS)
    stats = router.summarise(stats)
    expected_logits, expected_stats = numpy_model.forward(params, TOKENS, cfg)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-5)
    assert set(stats) == set(expected_stats)
    for name, values in expected_stats.items():
        np.testing.assert_allclose(
            np.atleast_1d(stats[name]), values, rtol=1e-5, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_equal_the_llama_of_transformers(kv_heads):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip(
        "transformers", reason="the parity extra is not installed"
    )
    cfg = dataclasses.replace(tiny_configs.MODEL, n_kv_heads=kv_heads)
    params = jax.tree.map(np.array, tiny_configs.init(cfg))
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.d_model,
            intermediate_size=cfg.d_ff,
            num_hidden_layers=cfg.n_layers,
            num_attention_heads=cfg.n_heads,
            num_key_value_heads=cfg.n_kv_heads,
            rms_norm_eps=cfg.norm_eps,
            tie_word_embeddings=False,
        )
    ).eval()

    def kernel(path, layer, rows):
        leaf = params["blocks"]
        for key in path.split("."):
            leaf = leaf[key]
        return torch.from_numpy(np.ascontiguousarray(leaf[layer].reshape(rows, -1).T))

    weights = {
        "model.embed_tokens.weight": torch.from_numpy(params["embedding"]),
        "model.norm.weight": torch.from_numpy(params["final_norm"]["gain"]),
        "lm_head.weight": torch.from_numpy(np.ascontiguousarray(params["head"].T)),
    }
    for layer in range(cfg.n_layers):
        prefix = f"model.layers.{layer}."
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            weights[f"{prefix}self_attn.{theirs}_proj.weight"] = kernel(
                f"attention.{ours}", layer, cfg.d_model
            )
        weights[f"{prefix}self_attn.o_proj.weight"] = kernel(
            "attention.out", layer, cfg.n_heads * cfg.head_dim
        )
        for name, rows in (
            ("gate", cfg.d_model),
            ("up", cfg.d_model),
            ("down", cfg.d_ff),
        ):
            weights[f"{prefix}mlp.{name}_proj.weight"] = kernel(
                f"ffn.{name}", layer, rows
            )
        weights[f"{prefix}input_layernorm.weight"] = torch.from_numpy(
            params["blocks"]["attention_norm"]["gain"][layer]
        )
        weights[f"{prefix}post_attention_layernorm.weight"] = torch.from_numpy(
            params["blocks"]["ffn_norm"]["gain"][layer]
        )
    llama.load_state_dict(weights, strict=True)
    with torch.no_grad():
        expected = llama(torch.from_numpy(TOKENS)).logits.numpy()
    logits, _ = jax.jit(Transformer(cfg).apply)({"params": params}, TOKENS)
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def _loss(cfg, kernels, params):
    logits, stats = Transformer(cfg, kernels).apply({"params": params}, TOKENS)
    return jnp.sum(jnp.sin(logits)), stats


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing(remat):
    params = tiny_configs.init(tiny_configs.MODEL)
    grad = jax.value_and_grad(_loss, argnums=2, has_aux=True)
    without = jax.jit(
        lambda p: grad(tiny_configs.MODEL, Kernels(remat="none", attention="xla"), p)
    )(params)
    rematerialised = jax.jit(
        lambda p: grad(tiny_configs.MODEL, Kernels(remat=remat, attention="xla"), p)
    )(params)
    tiny_configs.assert_relative(rematerialised, without, 1e-5)
    text = str(
        jax.make_jaxpr(
            lambda p: _loss(
                tiny_configs.MODEL, Kernels(remat=remat, attention="xla"), p
            )
        )(params)
    )
    assert "remat" in text


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_unrolling_changes_nothing(remat):
    params = tiny_configs.init(tiny_configs.MODEL)
    grad = jax.value_and_grad(_loss, argnums=2, has_aux=True)

    def run(**kernels):
        return jax.jit(
            lambda p: grad(tiny_configs.MODEL, Kernels(attention="xla", **kernels), p)
        ).lower(params)

    looped, unrolled = run(remat=remat), run(remat=remat, unroll=True)
    assert "stablehlo.while" in looped.as_text()
    assert "stablehlo.while" not in unrolled.as_text()
    # Without a barrier the compiler would keep what `full` is to compute again.
    assert ("optimization_barrier" in unrolled.as_text()) == (remat == "full")
    tiny_configs.assert_relative(
        unrolled.compile()(params), looped.compile()(params), 1e-5
    )


def test_the_program_with_moments_keeps_its_loop():
    net = Transformer(
        tiny_configs.MODEL, Kernels(attention="xla", unroll=True), with_moments=True
    )
    assert (
        "stablehlo.while"
        in jax.jit(net.apply)
        .lower({"params": tiny_configs.init(tiny_configs.MODEL)}, TOKENS)
        .as_text()
    )


def test_scan_equals_unrolled_and_jit_equals_no_jit():
    cfg, kernels = (
        dataclasses.replace(tiny_configs.MODEL, n_layers=2),
        Kernels(remat="none", attention="xla"),
    )
    params = tiny_configs.init(cfg)
    block = Block(cfg, "xla", False)
    depth = Depth(norm_scale=jnp.float32(1))

    def unrolled(params):
        x_BTD = params["embedding"][TOKENS]
        collected = []
        for layer in range(cfg.n_layers):
            weights = jax.tree.map(operator.itemgetter(layer), params["blocks"])
            angles = rope_angles(TOKENS.shape[1], cfg.head_dim, cfg.rope_theta)
            x_BTD, stats = block.apply({"params": weights}, x_BTD, depth, angles, None)
            collected.append(stats)
        inverse = jax.lax.rsqrt(jnp.mean(x_BTD**2, -1, keepdims=True) + cfg.norm_eps)
        h_BTD = x_BTD * inverse * params["final_norm"]["gain"][None, None]
        stacked = jax.tree.map(lambda *values: jnp.stack(values), *collected)
        return jnp.sum(jnp.sin(h_BTD @ params["head"])), stacked

    def scanned(params):
        loss, stats = _loss(cfg, kernels, params)
        return loss, {
            name: value
            for name, value in stats.items()
            if name != "variance/final_norm"
        }

    expected = jax.value_and_grad(unrolled, has_aux=True)(params)
    with jax.disable_jit():
        tiny_configs.assert_relative(
            jax.value_and_grad(scanned, has_aux=True)(params), expected, 1e-5
        )
    tiny_configs.assert_relative(
        jax.jit(jax.value_and_grad(scanned, has_aux=True))(params), expected, 1e-5
    )


def test_no_position_sees_a_later_one():
    """By gradients: the logits at t depend on the embeddings of positions 0..t and on no other."""
    cfg = tiny_configs.MODEL
    params = tiny_configs.init(cfg)
    tokens = np.arange(12)[
        None
    ]  # all different, so that a row of the table is a position

    @jax.jit
    @jax.grad
    def gradient(table, t):
        return jnp.sum(
            jnp.sin(
                Transformer(cfg).apply(
                    {"params": params | {"embedding": table}}, tokens
                )[0][0, t]
            )
        )

    for t in (0, 5, 11):
        reach = jnp.abs(gradient(params["embedding"], t)).sum(-1)[:12] > 0
        np.testing.assert_array_equal(reach, np.arange(12) <= t)


def test_document_masking_isolates_documents():
    cfg = dataclasses.replace(tiny_configs.MODEL, document_masking=True)
    params = {"params": tiny_configs.init(cfg)}
    segments = np.array([[0] * 9 + [1] * 8] * 2, np.int32)
    apply = jax.jit(Transformer(cfg).apply)
    logits, _ = apply(params, TOKENS, segments)
    alone, _ = apply(params, TOKENS[:, :9])
    np.testing.assert_allclose(logits[:, :9], alone, atol=1e-5)
    other_start = TOKENS.copy()
    other_start[:, :9] = (other_start[:, :9] + 1) % 304
    unchanged, _ = apply(params, other_start, segments)
    np.testing.assert_allclose(unchanged[:, 9:], logits[:, 9:], atol=1e-5)


def test_dtypes_are_as_asked():
    cfg = dataclasses.replace(tiny_configs.MODEL, compute_dtype="bfloat16")
    for residual in ("float32", "bfloat16"):
        text = str(
            jax.make_jaxpr(
                Transformer(dataclasses.replace(cfg, residual_dtype=residual)).apply
            )({"params": tiny_configs.init(cfg)}, TOKENS)
        )
        carries = [
            line
            for line in text.splitlines()
            if ":bf16[2,17,32]" in line and "= scan[" in line.replace("] =", "] =")
        ]
        assert bool(carries) == (residual == "bfloat16")
    logits, stats = jax.jit(Transformer(cfg).apply)(
        {"params": tiny_configs.init(cfg)}, TOKENS
    )
    assert logits.dtype == jnp.float32
    assert {value.dtype for value in stats.values()} == {jnp.dtype("float32")}


def test_float64_stays_float64():
    with jax.enable_x64():
        cfg = dataclasses.replace(
            tiny_configs.MODEL, compute_dtype="float64", residual_dtype="float64"
        )
        params = tiny_configs.init(cfg, dtype=jnp.float64)
        logits, stats = jax.jit(Transformer(cfg, Kernels(attention="reference")).apply)(
            {"params": params}, TOKENS
        )
        expected, expected_stats = numpy_model.forward(params, TOKENS, cfg)
        np.testing.assert_allclose(logits, expected, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(
            stats["variance/residual"], expected_stats["variance/residual"], rtol=1e-12
        )


@pytest.mark.parametrize(("width", "heads"), [(64, 4), (128, 8)])
def test_scaled_widths_start_from_the_published_variance_profile(width, heads):
    cfg = dataclasses.replace(
        tiny_configs.MODEL,
        d_model=width,
        n_layers=16,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=width // heads,
        d_ff=4 * width,
        init_std=0.0,
    )
    cfg = dataclasses.replace(cfg, vocab_size=2048)
    tokens = jax.random.randint(jax.random.key(1), (4, 256), 0, 2048)

    @jax.jit
    def profile(key):
        model = Transformer(cfg)
        return model.apply(model.init(key, tokens[:, :8]), tokens, method="hidden")[1][
            "variance/residual"
        ]

    mean = np.mean([profile(jax.random.key(seed)) for seed in range(4)], axis=0)
    np.testing.assert_allclose(mean, PUBLISHED, rtol=0.15)


@pytest.mark.slow
def test_published_width_starts_from_the_published_variance_profile():
    cfg = dataclasses.replace(
        tiny_configs.MODEL,
        d_model=2048,
        n_layers=16,
        n_heads=16,
        n_kv_heads=16,
        head_dim=128,
        d_ff=8192,
        vocab_size=2048,
        init_std=0.02,
        norm_eps=1e-6,
    )
    tokens = jax.random.randint(jax.random.key(1), (1, 1024), 0, 2048)
    model = Transformer(cfg)
    params = jax.jit(model.init)(jax.random.key(0), tokens[:, :8])
    stats = jax.jit(lambda p: model.apply(p, tokens, method="hidden")[1])(params)
    print("\nresidual variance", np.round(stats["variance/residual"], 3))
    print("attention variance", np.round(stats["variance/attention"], 3))
    np.testing.assert_allclose(stats["variance/residual"], PUBLISHED, rtol=0.04)
    assert stats["variance/attention"][0] == pytest.approx(0.008, rel=0.3)
    assert all(0.09 < value < 0.14 for value in stats["variance/attention"][1:])
