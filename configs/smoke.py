"""The smallest model that learns English: the quickstart and the tests.

Command:   sparsecod data --source=sotu --tokenizer=bpe --vocab_size=2048 --out=data/sotu
           sparsecod train --config=configs/smoke.py --workdir=runs/smoke
Hardware:  two CPU cores
Run time:  to be measured
Result:    to be measured
"""

from sparsecod_jax.config import default_config


def get_config():
    config = default_config()
    config.steps = 300
    config.global_batch = 16
    config.model.update(d_model=64, n_layers=4, n_heads=4, d_ff=256, vocab_size=2048, compute_dtype="float32")
    config.data.seq_len = 256
    config.optimizer.peak_lr = 4e-3
    config.schedule.warmup_steps = 30
    config.evaluation.update(every=100, seq_len=256, batch_size=16)
    config.checkpoint.every = 100
    return config
