"""Do all four kinds of sparsity together make a deep model worth its depth?

The paper's ladder, one step more in each arm.

Command:   sparsecod sweep --sweep=configs/sweeps/recipe.py:nano --workdir=runs/recipe --jobs=2
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 64 TPU v5p chips, or 8 GPUs of 80 GB
           per run
Run time:  nano 15 minutes of two H100s for all seven studies, or half an hour per run of 32
           blocks on two CPU cores, two at a time; mini and paper not yet run
Result:    nano variance of 32 blocks 483 without, 0.56 with it; mean usefulness undecided; see
           docs/results/nano/recipe
"""

from sparsecod_jax.study import claims
from sparsecod_jax.study.study import Study

HEADS = {"nano": 4, "mini": 4, "paper": 16}
DENSE = {"model.n_experts": 0, "model.top_k": 0}
# Of the dense arms: as many active parameters as the MoE has.
D_FF = {"nano": 384, "mini": 2240, "paper": 8960}
LENGTHS = {"nano": (128, 256), "mini": (1024, 4096), "paper": (1024, 4096)}
TOKENS = {"nano": 2048, "mini": 16384, "paper": 1048576}  # per step


def _length(scale: str, seq_len: int) -> dict[str, int]:
    return {"data.seq_len": seq_len, "global_batch": TOKENS[scale] // seq_len}


def get_study(scale="nano"):
    short, long = LENGTHS[scale]
    shallow = DENSE | {
        "model.n_layers": 16,
        "model.d_ff": D_FF[scale],
        "model.n_kv_heads": HEADS[scale],
        "optimizer.weight_decay": 0.1,
        **_length(scale, short),
    }
    deep = shallow | {"model.n_layers": 32}
    with_context = deep | _length(scale, long)
    with_decay = with_context | {"optimizer.weight_decay": 0.3}
    with_groups = with_decay | {"model.n_kv_heads": HEADS[scale] // 2}
    return Study(
        question=(
            "Do longer sequences, weight decay, shared keys and values, and experts "
            "make 32 blocks worth their depth?"
        ),
        held_fixed=(
            "width",
            "active parameters of the deep arms (within 4 %)",
            "tokens per step and in total",
            "learning rate",
            "evaluation length",
        ),
        config=f"configs/recipe_1b_32l.py:{scale}",
        arms={
            "shallow": shallow,
            "deep": deep,
            "with-context": with_context,
            "with-decay": with_decay,
            "with-groups": with_groups,
            "with-experts": _length(scale, long),
        },
        claims=(
            claims.more_useful(
                "blocks of the deep model are less useful", "shallow", "deep"
            ),
            claims.more_variance_of_probe(
                "the whole recipe lowers the variance of the deep model",
                "deep",
                "with-experts",
            ),
            claims.more_useful(
                "the whole recipe makes blocks of the deep model more useful",
                "with-experts",
                "deep",
            ),
            claims.worse(
                "the whole recipe lowers the held-out loss of the deep model",
                "deep",
                "with-experts",
            ),
        ),
        not_testable=claims.NOT_TESTABLE[scale],
        published=("tables/recipe_ladder",),
        mechanism={
            "attention density": "scores/sparsity/attention/heads/density/mean",
            "sum of squared gates": "last/router/gate_square_sum/mean",
        },
        changes={"evaluation.seq_len": short},
        analyze=claims.ANALYZE[scale],
    )
