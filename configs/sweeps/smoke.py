"""The smallest study: the quickstart, and an example of a study for any machine.

Command:   sparsecod sweep --sweep=configs/sweeps/smoke.py:nano --workdir=runs/quickstart --jobs=2
Hardware:  nano two CPU cores; mini and paper any one accelerator
Run time:  nano 6 minutes with the data; mini and paper not yet run
Result:    nano variance of the last block 7.5 times (2.7 to 21) as large with 16 blocks as with
           4, their order matters less; usefulness undecided
"""

from sparsecod_jax.study import claims
from sparsecod_jax.study.study import Study


def get_study(scale="nano"):
    return Study(
        question="Do the blocks of a deeper model contribute less each?",
        held_fixed=(
            "width",
            "tokens per step",
            "total tokens",
            "learning rate",
            "evaluation length",
            "data order",
        ),
        config=f"configs/smoke.py:{scale}",
        arms={"depth-04": {"model.n_layers": 4}, "depth-16": {"model.n_layers": 16}},
        claims=(
            claims.more_variance(
                "the deeper model's residual stream has the larger variance",
                "depth-16",
                "depth-04",
            ),
            claims.more_useful(
                "blocks of the shallower model are more useful each",
                "depth-04",
                "depth-16",
            ),
            claims.more_ordered(
                "the order of blocks matters more in the shallower model",
                "depth-04",
                "depth-16",
            ),
        ),
        not_testable=("whether depth pays: these models have seen too few tokens",),
        published=("tables/depth_scores", "curves/last_layer_variance_by_step/depth"),
        changes={"steps": 80, "schedule.warmup_steps": 8},
        seeds=(0, 1),
        analyze={"sequences": 32, "seq_len": 128},
    )
