"""The smallest runs that have all that a run has."""

import ml_collections


def get_config(scale="dense"):
    model = {
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 32,
        "vocab_size": 280,
        "compute_dtype": "float32",
    }
    if scale == "moe":
        experts = {"n_experts": 4, "top_k": 2, "shared_expert": True, "d_shared": 8}
        model.update(d_ff=8, **experts)
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "steps": 8,
            "global_batch": 8,
            "model": model,
            "data": {"path": "data", "source": "corpus", "seq_len": 32, "seed": 0},
            "optimizer": {"peak_lr": 3e-3},
            "schedule": {"warmup_steps": 2},
            "execution": {"remat": "none"},
            "evaluation": {
                "every": 2,
                "seq_len": 32,
                "batch_size": 8,
                "max_tokens": 1024,
            },
            "checkpoint": {"every": 4, "keep": 1},
            "log": {"every": 2, "moments_every": 4},
        }
    )
