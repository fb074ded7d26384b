"""Does training on longer sequences keep the residual stream small, and deep blocks at work?

Arms have as many tokens per step and in total; they are compared where all were trained, at the
positions of the shortest.

Command:   sparsecod sweep --sweep=configs/sweeps/context.py:nano --workdir=runs/context --jobs=2
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 64 TPU v5p chips, or 8 GPUs of 80 GB
           per run
Run time:  nano 15 minutes of two H100s for all seven studies, or 12.5 minutes per run of 16
           blocks on two CPU cores, two at a time; mini and paper not yet run
Result:    nano the longer the sequences the more variance and the denser attention; see
           docs/results/nano/context
"""

from sparsecod_jax.study import claims
from sparsecod_jax.study.study import Claim, Study

LENGTHS = {
    "nano": (64, 256, 1024),
    "mini": (256, 1024, 4096),
    "paper": (256, 512, 1024, 2048, 4096, 8192),
}
TOKENS = {"nano": 2048, "mini": 16384, "paper": 2097152}  # per step
STEPS = {"nano": 1000, "mini": 2000, "paper": 2384}


def get_study(scale="nano"):
    lengths = LENGTHS[scale]
    arms = {
        f"length-{length:04d}": {
            "data.seq_len": length,
            "global_batch": TOKENS[scale] // length,
        }
        for length in lengths
    }
    short, long = min(arms), max(arms)
    density = "scores/sparsity/attention/heads/density/mean"
    return Study(
        question=(
            "Does training on longer sequences lower the variance of the residual "
            "stream, and are blocks then more useful?"
        ),
        held_fixed=(
            "size",
            "tokens per step",
            "total tokens",
            "learning rate",
            "positions that are evaluated and scored",
        ),
        config=f"configs/dense_1b.py:{scale}",
        arms=arms,
        claims=(
            claims.more_variance_of_probe(
                "long training sequences lower the variance of the last block",
                short,
                long,
            ),
            claims.more_useful(
                "long training sequences make blocks more useful", long, short
            ),
            Claim(
                "attention of models trained on long sequences is sparser",
                density,
                short,
                long,
                0.02,
            ),
        ),
        not_testable=(
            *claims.NOT_TESTABLE[scale],
            "perplexities at each arm's own length, which mix length and model",
        ),
        published=(
            "tables/sequence_length",
            "curves/last_layer_variance_by_step/sequence_length",
        ),
        mechanism={"attention density at one probe length": density},
        changes={
            "steps": STEPS[scale],
            "schedule.warmup_steps": STEPS[scale] // 10,
            "evaluation.seq_len": lengths[0],
            "evaluation.batch_size": TOKENS[scale] // lengths[0],
        },
        analyze={**claims.ANALYZE[scale], "seq_len": lengths[0]},
    )
