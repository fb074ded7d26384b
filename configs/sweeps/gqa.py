"""Does sharing keys and values keep the residual stream small, and deep blocks at work?

Sharing takes parameters away; one arm gives them back to the FFN, so that sharing and size can
be told apart.

Command:   sparsecod sweep --sweep=configs/sweeps/gqa.py:nano --workdir=runs/gqa --jobs=2
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 64 TPU v5p chips, or 8 GPUs of 80 GB
           per run
Run time:  nano 15 minutes of two H100s for all seven studies, or 12.5 minutes per run of 16
           blocks on two CPU cores, two at a time; mini and paper not yet run
Result:    nano no lower variance, no effect of interest on mean usefulness; see
           docs/results/nano/gqa
"""

from sparsecod_jax.config import scales
from sparsecod_jax.study import claims
from sparsecod_jax.study.study import Study

HEADS = {"nano": 4, "mini": 8, "paper": 16}
GROUPS = {"nano": (1, 2, 4), "mini": (1, 2, 8), "paper": (1, 4, 16)}
# What the largest group saves per block, 2 x width x (heads - 1) x head size parameters, is 3 x
# width x what is added to d_ff.
WIDER_FFN = {"nano": 288, "mini": 2347, "paper": 9472}


def get_study(scale="nano"):
    heads, groups = HEADS[scale], GROUPS[scale]
    arms = {
        f"group-{group:02d}": {"model.n_kv_heads": heads // group} for group in groups
    }
    arms["same-size"] = arms[max(arms)] | {"model.d_ff": WIDER_FFN[scale]}
    alone, shared = f"group-{groups[0]:02d}", f"group-{groups[-1]:02d}"
    return Study(
        question=(
            "Does sharing keys and values lower the variance of the residual stream, "
            "and are blocks then more useful?"
        ),
        held_fixed=(
            "width",
            "depth",
            "tokens per step",
            "total tokens",
            "learning rate",
            "evaluation length",
            "data order",
        ),
        config=f"configs/dense_1b.py:{scale}",
        arms=arms,
        claims=(
            claims.more_variance(
                "the largest group has the smaller variance", alone, shared
            ),
            claims.more_variance(
                "the largest group has the smaller variance at equal parameters too",
                alone,
                "same-size",
            ),
            claims.more_useful(
                "the largest group has the more useful blocks", shared, alone
            ),
            claims.more_useful(
                "the largest group has the more useful blocks at equal parameters too",
                "same-size",
                alone,
            ),
        ),
        not_testable=claims.NOT_TESTABLE[scale],
        published=("tables/gqa", "curves/last_layer_variance_by_step/gqa"),
        mechanism={
            "attention density": "scores/sparsity/attention/heads/density/mean",
            "variance of attention": "last/variance/attention/mean",
        },
        changes=scales.LONG if scale == "paper" else {},
        analyze=claims.ANALYZE[scale],
    )
