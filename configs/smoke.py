r"""The smallest model that learns English.

It serves the quickstart, and a first look at a machine with the batch and length of a scale.

Command:   sparsecod data --source=sotu --tokenizer=bpe --vocab_size=2048 --out=data/sotu
           sparsecod train --config=configs/smoke.py:nano --workdir=runs/smoke
           sparsecod data --source=corpus --tokenizer=bpe --vocab_size=16384 --out=data/mini
           sparsecod train --config=configs/smoke.py:mini --workdir=runs/smoke_mini
           sparsecod data --source=hf:HuggingFaceFW/fineweb-edu:sample-10BT \
               --tokenizer=tokenizer.json --out=data/fineweb_edu
           sparsecod train --config=configs/smoke.py:paper --workdir=runs/smoke_paper
Hardware:  nano two CPU cores; mini and paper any one accelerator
Run time:  nano about 2.5 minutes with 4 blocks, 6 with 16, two at a time (from 100 steps); mini
           and paper not yet run
Result:    nano held-out loss after 80 steps (the quickstart) 5.67 nats (2.22 bits per byte)
           with 4 blocks, 5.89 with 16; token frequencies alone have 6.34
"""

from sparsecod_jax.config import scales


def get_config(scale="nano"):
    config = scales.base(scale)
    config.steps = 160
    config.model.update(d_model=64, n_layers=4, n_heads=4, d_ff=256)
    config.schedule.warmup_steps = 16
    config.checkpoint.every = 80
    config.log.update(every=10, moments_every=80)
    if scale == "nano":
        config.global_batch = 32
        config.data.seq_len = 128
        config.evaluation.update(seq_len=128, batch_size=32)
    config.evaluation.update(every=80, max_tokens=2**15)
    return config
