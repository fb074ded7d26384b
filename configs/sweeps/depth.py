"""Does depth pay? The same width at four depths, and narrower ones with as many parameters.

Command:   sparsecod sweep --sweep=configs/sweeps/depth.py:nano --workdir=runs/depth
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 64 TPU v5p chips, or 8 GPUs of 80 GB a run
Run time:  not yet run
Result:    not yet run
"""

from sparsecod_jax.sweep.study import Claim, Study

DEPTHS = {"nano": (4, 8, 16, 32), "mini": (12, 24, 48), "paper": (12, 16, 24, 32)}
SMALLEST = {"score": 0.05, "variance": 0.1}


def get_study(scale="nano"):
    depths = DEPTHS[scale]
    shallow, deep = (f"depth-{depth:02d}" for depth in (depths[0], depths[-1]))
    return Study(
        question="Do the blocks of a deeper model contribute less each?",
        held_fixed=("width", "tokens a step", "total tokens", "learning rate", "evaluation length", "data order of a seed"),
        config=f"configs/dense_1b.py:{scale}",
        arms={f"depth-{depth:02d}": {"model.n_layers": depth} for depth in depths},
        claims=(
            Claim("the deepest stream has the largest variance", "metrics/variance/residual/-1", deep, shallow, SMALLEST["variance"]),
            Claim("shallow blocks are more useful each", "scores/usefulness/score", shallow, deep, SMALLEST["score"]),
            Claim("shallow blocks have more effect on later ones", "scores/causal/score", shallow, deep, SMALLEST["score"]),
            Claim("the order of shallow blocks matters more", "scores/permutation/score", shallow, deep, SMALLEST["score"]),
        ),
        not_testable=("accuracy on downstream tasks", "absolute perplexities") if scale != "paper" else (),
    )
