"""How does a folder of Hugging Face become a run? The verb `import`.

The run has a checkpoint of step 0 and no training. What the folder says about itself (card, licence, settings of its tokenizer) is kept,
and leaves with it when it is exported.
"""

import contextlib
import dataclasses

import jax
from etils import epath

from sparsecod_jax import __version__, config, counts, files, finished
from sparsecod_jax.checkpoint import Checkpointer
from sparsecod_jax.data.tokenizer import TOKENIZER
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.files import write_json
from sparsecod_jax.rundir import RunDir, claim

KEPT = (
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def import_model(hf: str, workdir: str) -> epath.Path:
    """Makes a run of the model in the folder `hf` and returns its path.

    Raises:
      ConfigError: the folder can't be used, or `workdir` holds a run already; nothing was written.
    """
    run, folder = RunDir(files.absolute(workdir)), files.absolute(hf)
    if run.config.exists():
        raise ConfigError(f"{run.path} holds a run already: choose another --workdir")
    source = finished.find(hf=hf)
    tokenizer = source.tokenizer()
    model = finished.load(source)
    with claim(run), contextlib.closing(Checkpointer(run, keep=1)) as checkpointer:
        checkpointer.save(0, {"state": {"params": model.params}}, {})
        checkpointer.wait()
        files.write(run.tokenizer, (folder / TOKENIZER).read_bytes())
        for name in KEPT:
            if (folder / name).is_file():
                run.origin.mkdir(parents=True, exist_ok=True)
                files.write(run.origin / name, (folder / name).read_bytes())
        experiment = config.Experiment(model=source.model, data=config.Data(seq_len=source.longest))
        write_json(run.manifest, _manifest(model, tokenizer.eos_id, tokenizer.start_id))
        write_json(run.config, config.to_dict(experiment))
        run.set_status("finished")
    return run.path


def _manifest(model: finished.Finished, eos_id: int, start_id: int) -> dict:
    return {
        "sparsecod_jax": __version__,
        "imported": {"folder": model.source.path.name, "weights": model.weights},
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
        "parameters": dataclasses.asdict(counts.parameters(model.source.model)),
        "tokenizer": {"eos_id": eos_id, "start_id": start_id},
        "identity_fields": {"imported": model.weights},
    }
