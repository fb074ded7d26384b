"""Does weight decay keep the stream small, and deep blocks at work?

What decay can do is bounded by learning rate x decay x steps: 0.4 in the published run at 0.1. Arms are chosen by that product.

Command:   sparsecod sweep --sweep=configs/sweeps/weight_decay.py:nano --workdir=runs/weight_decay
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 64 TPU v5p chips, or 8 GPUs of 80 GB a run
Run time:  not yet run
Result:    not yet run
"""

from sparsecod_jax.sweep.study import Claim, Study

# Peak learning rate x decay x steps, half of it under the cosine: nano 4e-3 x 1465 is 5.9 a unit of decay, mini 7.6, paper 7.6.
DECAYS = {"nano": (0.0, 0.3, 1.0, 3.0), "mini": (0.0, 0.1, 0.3), "paper": (0.0, 0.01, 0.1, 1.0, 3.0)}
SMALLEST = {"score": 0.05, "variance": 0.1}


def get_study(scale="nano"):
    decays = DECAYS[scale]
    arms = {f"decay-{decay:g}".replace(".", "p"): {"optimizer.weight_decay": decay} for decay in decays}
    none, *others = arms
    moderate = others[-1 if scale == "mini" else -2]
    return Study(
        question="Does weight decay lower the variance of the stream, and are deep blocks then more useful?",
        held_fixed=("size", "tokens a step", "total tokens", "learning rate", "data order of a seed"),
        config=f"configs/dense_1b.py:{scale}",
        arms=arms,
        claims=(
            Claim("decay lowers the variance of the last block", "metrics/variance/residual/-1", none, moderate, SMALLEST["variance"]),
            Claim("decay makes blocks more useful", "scores/usefulness/score", moderate, none, SMALLEST["score"]),
        ),
        not_testable=("accuracy on downstream tasks", "absolute perplexities") if scale != "paper" else (),
    )
