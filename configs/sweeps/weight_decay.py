r"""Does weight decay keep the residual stream small, and deep blocks at work?

What decay can do is bounded by learning rate x decay, added up over steps: 0.42 in the
published run at 0.1. The report states it.

Command:   sparsecod sweep --sweep=configs/sweeps/weight_decay.py:nano \
               --workdir=runs/weight_decay --jobs=2
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 64 TPU v5p chips, or 8 GPUs of 80 GB
           per run
Run time:  nano 15 minutes of two H100s for all seven studies, or 12.5 minutes per run of 16
           blocks on two CPU cores, two at a time; mini 2 minutes per run, two at a time on an
           H200, and 1 its scores; paper not yet run
Result:    nano variance of the last block 3,933, 199, 1.7, 0.0025, 0.0006 with decay 0, 0.1,
           0.3, 1, 3; mean usefulness does not rise; see docs/results/nano/weight_decay; mini
           678, 285, 62 with 0, 0.1, 0.3, and the loss falls: docs/results/mini
"""

from sparsecod_jax.study import claims
from sparsecod_jax.study.study import Claim, Study

# Learning rate x steps under the cosine: 4.4 per unit of decay at nano size, 1.1 at mini and
# 4.2 at paper size. When these arms were declared it was 2.2 at nano and mini size; the studies
# of the learning rate then doubled the one and halved the other.
DECAYS = {
    "nano": (0.0, 0.1, 0.3, 1.0, 3.0),
    "mini": (0.0, 0.1, 0.3),
    "paper": (0.0, 0.01, 0.1, 1.0, 3.0),
}
MODERATE = {"nano": 0.3, "mini": 0.1, "paper": 0.1}
STRONG = {"nano": 1.0, "mini": 0.3, "paper": 1.0}


def _arm(decay: float) -> str:
    return f"decay-{decay:g}".replace(".", "p")


def get_study(scale="nano"):
    none, moderate, strong = (
        _arm(decay) for decay in (0.0, MODERATE[scale], STRONG[scale])
    )
    down = "scores/sparsity/weights/kinds/ffn/down"
    return Study(
        question=(
            "Does weight decay lower the variance of the residual stream, and are "
            "deep blocks then more useful?"
        ),
        held_fixed=(
            "size",
            "tokens per step",
            "total tokens",
            "learning rate",
            "evaluation length",
            "data order",
        ),
        config=f"configs/dense_1b.py:{scale}",
        arms={
            _arm(decay): {"optimizer.weight_decay": decay} for decay in DECAYS[scale]
        },
        claims=(
            claims.more_variance(
                "moderate decay lowers the variance of the last block", none, moderate
            ),
            claims.more_variance(
                "strong decay lowers the variance below that of moderate decay",
                moderate,
                strong,
            ),
            claims.more_useful(
                "moderate decay makes blocks more useful", moderate, none
            ),
            claims.more_useful(
                "strong decay makes blocks less useful than moderate decay does",
                moderate,
                strong,
            ),
            claims.worse("moderate decay lowers the held-out loss", none, moderate),
            Claim(
                "strong decay brings more weights near zero, relative to their size",
                f"{down}/near_zero_0.1/mean",
                strong,
                none,
                0.02,
            ),
        ),
        not_testable=claims.NOT_TESTABLE[scale],
        published=(
            "tables/weight_decay",
            "curves/last_layer_variance_by_step/weight_decay",
        ),
        mechanism={
            "learning rate x decay x steps": "derived/decay",
            "weight RMS, FFN output": f"{down}/rms/mean",
            "near-zero weights, FFN output": f"{down}/near_zero_0.1/mean",
        },
        analyze=claims.ANALYZE[scale],
    )
