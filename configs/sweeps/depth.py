"""Does depth pay?

The same width at several depths, and a wide shallow model with blocks of as many parameters as
a narrow deep one.

Command:   sparsecod sweep --sweep=configs/sweeps/depth.py:nano --workdir=runs/depth --jobs=2
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 64 TPU v5p chips, or 8 GPUs of 80 GB
           per run
Run time:  nano 15 minutes of two H100s for all seven studies, or 12.5 minutes per run of 16
           blocks on two CPU cores, two at a time; mini 1 to 5.5 minutes per run, two at a time
           on an H200, and 1 to 7 its scores; paper not yet run
Result:    nano variance of the last block 30, 78, 199, 558 with 4 to 32 blocks, mean scores per
           block fall; loss undecided; see docs/results/nano/depth; mini variance 192, 526,
           1,637 with 12, 24, 48 blocks, all scores fall, the loss does not; see
           docs/results/mini/depth
"""

from sparsecod_jax.study import claims
from sparsecod_jax.study.study import Study

DEPTHS = {"nano": (4, 8, 16, 32), "mini": (12, 24, 48), "paper": (12, 16, 24, 32)}
# Twice the width and a quarter of the depth of an arm: equal blocks, but embedding and head
# double, 11 % more parameters without input embedding at nano size and 4 % at mini. The paper
# has no such pair.
WIDE = {
    "nano": (
        "depth-16",
        {
            "model.n_layers": 4,
            "model.d_model": 128,
            "model.n_heads": 8,
            "model.d_ff": 512,
        },
    ),
    "mini": (
        "depth-48",
        {
            "model.n_layers": 12,
            "model.d_model": 1024,
            "model.n_heads": 16,
            "model.d_ff": 4096,
        },
    ),
}


def get_study(scale="nano"):
    arms = {f"depth-{depth:02d}": {"model.n_layers": depth} for depth in DEPTHS[scale]}
    shallow, deep = min(arms), max(arms)
    expected = [
        claims.more_variance(
            "the deepest model's residual stream has the largest variance",
            deep,
            shallow,
        ),
        claims.more_useful(
            "blocks of the shallowest model are more useful each", shallow, deep
        ),
        claims.more_causal(
            "blocks of the shallowest model have more effect on later ones",
            shallow,
            deep,
        ),
        claims.more_ordered(
            "the order of blocks matters more in the shallowest model", shallow, deep
        ),
        claims.worse("depth lowers the held-out loss", shallow, deep),
    ]
    if scale in WIDE:
        narrow, wide = WIDE[scale]
        arms["wide"] = wide
        expected.append(
            claims.worse(
                "with as many parameters in blocks, a wide shallow model has a "
                "lower loss than a narrow deep one",
                narrow,
                "wide",
            )
        )
    return Study(
        question="Do the blocks of a deeper model contribute less each?",
        held_fixed=(
            "width, except in the wide arm",
            "tokens per step",
            "total tokens",
            "learning rate",
            "evaluation length",
            "data order",
        ),
        config=f"configs/dense_1b.py:{scale}",
        arms=arms,
        claims=tuple(expected),
        not_testable=claims.NOT_TESTABLE[scale],
        published=(
            "tables/depth_scores",
            "curves/last_layer_variance_by_step/depth",
            "curves/jacobian_distance_by_block",
        ),
        analyze=claims.ANALYZE[scale],
    )
