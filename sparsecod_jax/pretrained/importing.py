"""How does a folder of Hugging Face become a run? The verb `import`.

The run has a checkpoint of step 0 and no training. What the folder says about itself (card, licence, settings of its tokenizer) is kept,
and leaves with it when it is exported.
"""

import contextlib
import dataclasses

import jax
from etils import epath

from sparsecod_jax import __version__, config
from sparsecod_jax.config import counts
from sparsecod_jax.data.tokenizer import TOKENIZER, Tokenizer
from sparsecod_jax.parallel.processes import log_phase
from sparsecod_jax.pretrained.hf_files import DIGESTS
from sparsecod_jax.pretrained.hf_folder import CONFIG, INDEX, open_folder
from sparsecod_jax.pretrained.load import LoadedModel, load_model, model_of_folder
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files
from sparsecod_jax.storage.attempts import claim
from sparsecod_jax.storage.checkpoint import Checkpointer
from sparsecod_jax.storage.ownership import check_free_or_ours
from sparsecod_jax.storage.records import write_record
from sparsecod_jax.storage.rundir import RunDir


def import_model(hf: str, workdir: str) -> epath.Path:
    """Makes a run of the model in the folder `hf` and returns its path.

    Raises:
      ConfigError: the folder can't be used, or `workdir` is not empty; nothing was written.
    """
    run = RunDir(files.absolute(workdir))
    check_free_or_ours(
        run.path, ours=False, option="--workdir", kind="a run to be made"
    )
    folder = open_folder(files.absolute(hf))
    source, words = model_of_folder(folder), folder.words()
    tokenizer = source.tokenizer()
    left = {file.name for file in source.path.iterdir()} - {
        *words,
        TOKENIZER,
        CONFIG,
        INDEX,
        DIGESTS,
    }
    if others := sorted(name for name in left if not name.endswith(".safetensors")):
        log_phase(shown(f"not taken along: {', '.join(others)}"))
    model = load_model(source)
    with claim(run), contextlib.closing(Checkpointer(run, keep=1)) as checkpointer:
        experiment = config.Experiment(
            model=source.model, data=config.Data(seq_len=source.max_seq_len)
        )
        checkpointer.save(
            0,
            {"state": {"params": model.params}},
            {"config": config.to_dict(experiment)},
        )
        checkpointer.wait()
        files.write(run.tokenizer, (source.path / TOKENIZER).read_bytes())
        files.make_folder(run.origin)
        for name, content in words.items():
            files.write(run.origin / name, content)
        described = _manifest(model, tokenizer)
        write_record(
            run.manifest, described | {"tokenizer_digest": files.digest(run.tokenizer)}
        )
        write_record(run.config, config.to_dict(experiment))
        run.set_status("finished")
    return run.path


def _manifest(model: LoadedModel, tokenizer: Tokenizer) -> dict:
    return {
        "sparsecod_jax": __version__,
        "imported": {"folder": model.source.path.name, "weights": model.weights},
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
        "parameters": dataclasses.asdict(counts.parameters(model.source.model)),
        "tokenizer": {
            "eos_id": tokenizer.eos_id,
            "start_id": tokenizer.start_id,
            "before": list(tokenizer.before),
        },
        "identity_fields": {"imported": model.weights},
    }
