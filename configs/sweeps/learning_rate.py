r"""Which learning rate is fair to the shallowest and to the deepest model of the depth study?

The rate whose held-out losses at both ends have the smallest sum is the scale's own
(`sparsecod_jax/config/scales.py`), for every study.

Command:   sparsecod sweep --sweep=configs/sweeps/learning_rate.py:nano \
               --workdir=runs/learning_rate --jobs=2
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 64 TPU v5p chips, or 8 GPUs of 80 GB
           per run
Run time:  nano 15 minutes of two H100s for all seven studies, or half an hour per run of 32
           blocks on two CPU cores, two at a time; mini 1.5 and 5 minutes per run, two at a time
           on an H200; paper not yet run
Result:    nano 8e-3 is best at both ends, mini 1e-3 for both together; see docs/results/nano
           and mini, learning_rate
"""

from sparsecod_jax.study.study import Study

ENDS = {"nano": (4, 32), "mini": (12, 48), "paper": (12, 32)}
RATES = {
    "nano": (2e-3, 4e-3, 8e-3),
    "mini": (5e-4, 1e-3, 2e-3),
    "paper": (2e-4, 4e-4, 8e-4),
}


def get_study(scale="nano"):
    arms = {
        f"depth-{depth:02d}-lr-{rate * 1e4:.0f}e-4": {
            "model.n_layers": depth,
            "optimizer.peak_lr": rate,
        }
        for depth in ENDS[scale]
        for rate in RATES[scale]
    }
    return Study(
        question="Which learning rate is fair to the shallowest and to the deepest model?",
        held_fixed=(
            "width",
            "tokens per step",
            "total tokens",
            "evaluation length",
            "data order",
        ),
        config=f"configs/dense_1b.py:{scale}",
        arms=arms,
        claims=(),
        not_testable=("every claim of the paper: this study chooses a setting",),
        seeds=(0,),
    )
