"""Small random Llamas of transformers, and a tokenizer that both sides share."""

import json
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sparsecod_jax import config

MODEL = config.Model(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=48, vocab_size=320, compute_dtype="float32", norm_eps=1e-5)


class Shared:
    """A tokenizer.json in the interface of a finished model."""

    def __init__(self, path):
        self._inner = Tokenizer.from_file(str(path))
        self.eos_id, self.start_id, self.vocab_size = 0, 0, self._inner.get_vocab_size()

    def ids(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        return self._inner.decode(list(ids), skip_special_tokens=False)


def save_tokenizer(folder, texts: list[str]):
    """A byte-level BPE of 300 ids with what transformers wants beside it; returns the path of its tokenizer.json."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    inner.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder / "tokenizer.json"


def save_llama(folder, longest: int) -> Any:
    """A random Llama of MODEL's sizes as a Hugging Face directory, sharpened; returns its parameters as ours."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = LlamaConfig(
        hidden_size=MODEL.d_model,
        num_hidden_layers=MODEL.n_layers,
        num_attention_heads=MODEL.n_heads,
        num_key_value_heads=MODEL.n_kv_heads,
        intermediate_size=MODEL.d_ff,
        vocab_size=MODEL.vocab_size,
        max_position_embeddings=longest,
        rms_norm_eps=MODEL.norm_eps,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(settings).float()
    model.save_pretrained(folder)
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return _ours(weights)


def _ours(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Our layout of a Llama's tensors, which keep their matrices transposed."""
    D, H, J, K = MODEL.d_model, MODEL.n_heads, MODEL.n_kv_heads, MODEL.head_dim

    def stacked(name: str, *shape: int) -> np.ndarray:
        return np.stack([weights[f"model.layers.{layer}.{name}.weight"].T.reshape(shape) for layer in range(MODEL.n_layers)])

    attention = {"query": stacked("self_attn.q_proj", D, H, K), "out": stacked("self_attn.o_proj", H, K, D)}
    attention |= {name: stacked(f"self_attn.{name[0]}_proj", D, J, K) for name in ("key", "value")}
    ffn = {name: stacked(f"mlp.{name}_proj", D, MODEL.d_ff) for name in ("gate", "up")}
    return {
        "embedding": weights["model.embed_tokens.weight"],
        "head": weights["lm_head.weight"].T,
        "final_norm": {"gain": weights["model.norm.weight"]},
        "blocks": {
            "attention": attention,
            "ffn": ffn | {"down": stacked("mlp.down_proj", MODEL.d_ff, D)},
            "attention_norm": {"gain": stacked("input_layernorm", D)},
            "ffn_norm": {"gain": stacked("post_attention_layernorm", D)},
        },
    }
