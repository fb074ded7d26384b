"""Two runs, the first of which is done and the second begun."""

try:
    from sparsecod_jax.study.study import Claim, Study
except ImportError:
    from sparsecod_jax.sweep.study import Claim, Study


def get_study(scale="nano"):
    return Study(
        question="Does a third block pay?",
        held_fixed=("width", "tokens"),
        config="tiny.py:dense",
        arms={"flat": {"model.n_layers": 2}, "deep": {"model.n_layers": 3}},
        claims=(
            Claim("depth lowers the loss", "final/bits_per_byte", "flat", "deep", 0.01),
        ),
        not_testable=("accuracy",),
        changes={"model.d_model": 8},
        seeds=(0,),
        analyze={"scores": "usefulness", "sequences": 2, "seq_len": 24},
    )
