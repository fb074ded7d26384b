"""What do the studies of this repository have in common?

Claims: their metrics, with the minimum effects of interest, and how finished runs are scored.

The minimum effects were chosen before the first run: a quarter in variance, a hundredth of a
bit in loss; in usefulness a fifth of log 1.10, the threshold above which the paper calls a
block useful; in causal and permutation scores less than the difference of published
neighbours (0.02 and 0.13).
"""

from sparsecod_jax.study.study import Claim

ANALYZE = {
    "nano": {"sequences": 64, "seq_len": 128},
    "mini": {"sequences": 100, "seq_len": 256},
    "paper": {"sequences": 100},
}
NOT_TESTABLE = {
    "nano": ("accuracy on downstream tasks", "absolute perplexities and variances"),
    "mini": ("accuracy on downstream tasks", "absolute perplexities and variances"),
    "paper": (
        "accuracy on downstream tasks, which `sparsecod eval` measures after the study",
    ),
}


def more_variance(text: str, greater: str, than: str) -> Claim:
    """The last block's output varies more, over the tokens of the last training step."""
    return Claim(text, "last/variance/residual/-1", greater, than, 1.25, ratio=True)


def more_variance_of_probe(text: str, greater: str, than: str) -> Claim:
    """The same over the scored sequences, which have one length in all arms."""
    return Claim(text, "scores/variance/residual/-1", greater, than, 1.25, ratio=True)


def more_useful(text: str, greater: str, than: str) -> Claim:
    """Replacing a block by an affine map per token costs more, mean over blocks."""
    return Claim(text, "scores/usefulness/score", greater, than, 0.02)


def more_causal(text: str, greater: str, than: str) -> Claim:
    """Skipping a block changes a later one's output more, mean over pairs."""
    return Claim(text, "scores/causal/score", greater, than, 0.02)


def more_ordered(text: str, greater: str, than: str) -> Claim:
    """Swapping two blocks costs more, mean over pairs."""
    return Claim(text, "scores/permutation/score", greater, than, 0.05)


def worse(text: str, greater: str, than: str) -> Claim:
    """The held-out loss is larger."""
    return Claim(text, "final/bits_per_byte", greater, than, 0.01)
