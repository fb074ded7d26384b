"""Small random Llamas of transformers, with a tokenizer."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sparsecod_jax import config

MODEL = config.Model(
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=48,
    vocab_size=320,
    compute_dtype="float32",
    norm_eps=1e-5,
)


def save_tokenizer(folder, texts: list[str], *, framed: bool) -> None:
    """A byte-level BPE of 300 ids, with the settings that transformers needs.

    A framed one puts a token before each text.
    """
    inner = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = byte_level  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    if framed:
        start = ("<|endoftext|>", 0)
        inner.post_processor = processors.TemplateProcessing(
            single=f"{start[0]} $A", special_tokens=[start]
        )  # pyright: ignore[reportAttributeAccessIssue]
    inner.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save_llama(folder, max_seq_len: int) -> None:
    """A random Llama of MODEL's sizes as a Hugging Face model folder.

    Its predictions differ from a uniform guess.
    """
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
        max_position_embeddings=max_seq_len,
        rms_norm_eps=MODEL.norm_eps,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(settings).float().save_pretrained(folder)
