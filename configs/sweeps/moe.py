"""Does a mixture of experts keep the residual stream small, and deep blocks at work?

Is the cause its sparsity, or the size of its gates?

Gates that are not renormalised add up to far less than 1, so a mixture of experts adds less to
the residual stream from the first step on. One arm renormalises them; another is the dense
model with its FFN scaled to what the MoE with raw gates adds at the start.

Command:   sparsecod sweep --sweep=configs/sweeps/moe.py:nano --workdir=runs/moe --jobs=2
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 64 TPU v5p chips, or 8 GPUs of 80 GB
           per run
Run time:  nano 15 minutes of two H100s for all seven studies, or 12.5 minutes per run of 16
           blocks on two CPU cores, two at a time; mini and paper not yet run
Result:    nano raw gates 2.2 times less variance than dense, no less once renormalised; lower
           loss either way; see docs/results/nano/moe
"""

from sparsecod_jax.config import scales
from sparsecod_jax.study import claims
from sparsecod_jax.study.study import Study

# As many active parameters as the dense model, whose hidden width is d_ff x top_k.
EXPERTS = {
    "nano": {"model.n_experts": 16, "model.top_k": 2, "model.d_ff": 128},
    "mini": {"model.n_experts": 64, "model.top_k": 8, "model.d_ff": 256},
    "paper": {"model.n_experts": 64, "model.top_k": 8, "model.d_ff": 1024},
}
# The root of the expected sum of squared gates at the start (theory.gate_products: 0.0776, and
# 0.0241 for 64 experts) over top_k.
FFN_SCALE = {"nano": 0.197, "mini": 0.0549, "paper": 0.0549}
SMALLER = {  # the published pair of a quarter of the size
    "dense-400m": {"model.d_model": 1536, "model.n_heads": 12, "model.d_ff": 2304},
    "raw-400m": {
        "model.d_model": 768,
        "model.n_heads": 12,
        "model.d_ff": 1536,
        "model.n_experts": 32,
        "model.top_k": 4,
    }
    | {"model.shared_expert": True, "model.d_shared": 1536},
}


def get_study(scale="nano"):
    experts = EXPERTS[scale]
    arms = {
        "dense": {},
        "raw": experts,
        "renormalised": experts | {"model.normalize_gates": True},
        "dense-scaled": {"model.ffn_scale": FFN_SCALE[scale]},
    }
    return Study(
        question=(
            "Does a mixture of experts lower the variance of the residual stream and "
            "make blocks more useful, and are its gates the cause?"
        ),
        held_fixed=(
            "width and active parameters, except in the 400m pair",
            "depth",
            "tokens per step",
            "total tokens",
            "learning rate",
            "evaluation length",
            "data order",
        ),
        config=f"configs/dense_1b.py:{scale}",
        arms=arms | (SMALLER if scale == "paper" else {}),
        claims=(
            claims.more_variance(
                "a MoE with raw gates has the smaller variance", "dense", "raw"
            ),
            claims.more_useful(
                "a MoE with raw gates has the more useful blocks", "raw", "dense"
            ),
            claims.worse(
                "a MoE with raw gates has the lower held-out loss", "dense", "raw"
            ),
            claims.more_variance(
                "renormalising the gates raises the variance of a MoE",
                "renormalised",
                "raw",
            ),
            claims.more_variance(
                "scaling a dense FFN as raw gates do lowers its variance",
                "dense",
                "dense-scaled",
            ),
            claims.more_useful(
                "a MoE with raw gates has more useful blocks than a dense model scaled alike",
                "raw",
                "dense-scaled",
            ),
        ),
        not_testable=claims.NOT_TESTABLE[scale],
        published=("tables/moe", "curves/last_layer_variance_by_step/moe"),
        mechanism={
            "sum of squared gates": "last/router/gate_square_sum/mean",
            "FFN variance at step 1": "first/variance/ffn/mean",
            "FFN variance at the end": "last/variance/ffn/mean",
        },
        changes=scales.LONG if scale == "paper" else {},
        analyze=claims.ANALYZE[scale],
    )
