"""Which finished model is used, and where does it come from? A run's newest checkpoint, or a Hugging Face directory.

Provisional: dense Llama only.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from tokenizers import Tokenizer as HFTokenizer

from sparsecod_jax import config, files, placement
from sparsecod_jax.checkpoint import Checkpointer
from sparsecod_jax.data.store import prepare_command, read_manifest
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.files import read_json
from sparsecod_jax.model import Transformer
from sparsecod_jax.rundir import RunDir
from sparsecod_jax.sharding import make_mesh, tree_shardings


class Tokenizer(Protocol):
    """Text to ids and back."""

    eos_id: int
    start_id: int  # stands before a text without context
    vocab_size: int

    def ids(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class FileTokenizer:
    """A tokenizer.json."""

    def __init__(self, path: epath.Path, eos_id: int, start_id: int):
        self._inner = HFTokenizer.from_str(path.read_text())
        self.eos_id, self.start_id = eos_id, start_id
        self.vocab_size = max(self._inner.get_vocab().values()) + 1

    def ids(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._inner.decode(list(ids), skip_special_tokens=False)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a finished model lies."""

    run: RunDir | None
    hf: epath.Path | None


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished model with float32 arithmetic, its parameters laid out over `mesh`."""

    net: Transformer
    params: Any
    mesh: Mesh
    tokenizer: Tokenizer
    longest: int  # tokens of a sequence at most
    name: str
    step: int
    weights: str  # a digest of the parameters


def find(workdir: str | None, hf: str | None) -> Source:
    """The model that is named by exactly one of a run directory and a Hugging Face directory; cheap checks only."""
    if (workdir is None) == (hf is None):
        raise ConfigError("a model is named by --workdir=RUN or by --hf=DIR: give one of them")
    source = Source(RunDir(files.absolute(workdir)) if workdir else None, files.absolute(hf) if hf else None)
    if source.run and not source.run.config.exists():
        raise ConfigError(f"{source.run.path} holds no run: give a --workdir that `sparsecod train` wrote")
    if source.hf and not (source.hf / "config.json").exists():
        raise ConfigError(f"{source.hf} has no config.json: give a Hugging Face directory")
    return source


def load(source: Source) -> Finished:
    """Reads the model, laid out over all devices."""
    return _load_run(source.run) if source.run else _load_hf(source.hf)


def _placed(model: config.Model) -> tuple[Transformer, Mesh, Any]:
    model = dataclasses.replace(model, compute_dtype="float32", residual_dtype="float32")
    execution = config.Execution(accumulation=1, remat="none", attention="xla")
    experiment = config.Experiment(model=model, execution=execution, global_batch=len(jax.devices()))
    mesh = make_mesh(placement.choose_mesh(experiment, jax.devices()))
    net = Transformer(model, execution)
    boxed = jax.eval_shape(partial(net.init, jax.random.key(0)), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"]
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), nn.unbox(boxed), tree_shardings(mesh, boxed)
    )
    return net, mesh, abstract


def _load_run(run: RunDir) -> Finished:
    experiment = config.from_dict(read_json(run.config))
    net, mesh, abstract = _placed(experiment.model)
    with contextlib.closing(Checkpointer(run, experiment.checkpoint.keep, read_only=True)) as checkpointer:
        restored = checkpointer.restore_latest({"state": {"params": abstract}})
    if restored is None:
        raise ConfigError(f"{run.path} has no checkpoint: train it first, with `sparsecod train`")
    directory = files.absolute(experiment.data.path)
    manifest = read_manifest(directory, prepare_command(experiment))
    tokenizer = FileTokenizer(directory / "tokenizer.json", manifest.eos_id, manifest.eos_id)
    weights = hashlib.sha256(json.dumps(restored.record["digests"], sort_keys=True).encode()).hexdigest()[:16]
    return Finished(net, restored.items["state"]["params"], mesh, tokenizer, experiment.data.seq_len, run.path.name, restored.step, weights)


def from_llama(weights: dict[str, np.ndarray], model: config.Model) -> dict[str, Any]:
    """Our parameters from the tensors of a LlamaForCausalLM, which keeps matrices transposed."""
    D, H, J, K = model.d_model, model.n_heads, model.n_kv_heads, model.head_dim

    def stacked(name: str, shape: tuple[int, ...]) -> np.ndarray:
        layers = (weights[f"model.layers.{layer}.{name}.weight"] for layer in range(model.n_layers))
        return np.stack([np.asarray(z, np.float32).T.reshape(shape) for z in layers])

    embedding = np.asarray(weights["model.embed_tokens.weight"], np.float32)
    return {
        "embedding": embedding,
        "head": np.asarray(weights.get("lm_head.weight", embedding), np.float32).T,
        "final_norm": {"gain": np.asarray(weights["model.norm.weight"], np.float32)},
        "blocks": {
            "attention": {
                "query": stacked("self_attn.q_proj", (D, H, K)),
                "key": stacked("self_attn.k_proj", (D, J, K)),
                "value": stacked("self_attn.v_proj", (D, J, K)),
                "out": stacked("self_attn.o_proj", (H, K, D)),
            },
            "ffn": {name: stacked(f"mlp.{name}_proj", (-1, D) if name == "down" else (D, -1)) for name in ("gate", "up", "down")},
            "attention_norm": {"gain": stacked("input_layernorm", (D,))},
            "ffn_norm": {"gain": stacked("post_attention_layernorm", (D,))},
        },
    }


def of_llama(values: dict[str, Any]) -> config.Model:
    """The model that a Llama's config.json describes."""
    theta = (values.get("rope_parameters") or {}).get("rope_theta") or values.get("rope_theta", 10000.0)
    return config.Model(
        d_model=values["hidden_size"],
        n_layers=values["num_hidden_layers"],
        n_heads=values["num_attention_heads"],
        n_kv_heads=values["num_key_value_heads"],
        head_dim=values.get("head_dim") or 0,
        d_ff=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        rope_theta=float(theta),
        norm_eps=values["rms_norm_eps"],
    )


def _load_hf(path: epath.Path | None) -> Finished:
    from safetensors.numpy import load_file

    assert path is not None
    values = read_json(path / "config.json")
    net, mesh, abstract = _placed(of_llama(values))
    params = from_llama(load_file(path / "model.safetensors"), net.cfg)
    params = jax.tree.map(lambda leaf, wanted: jax.device_put(leaf, wanted.sharding), params, abstract)
    eos_id, bos_id = values["eos_token_id"], values.get("bos_token_id")
    tokenizer = FileTokenizer(path / "tokenizer.json", eos_id, eos_id if bos_id is None else bos_id)
    return Finished(net, params, mesh, tokenizer, values["max_position_embeddings"], path.name, 0, "")
