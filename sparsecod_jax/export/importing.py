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
from sparsecod_jax.data.tokenizer import TOKENIZER, Tokenizer
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.files import write_json
from sparsecod_jax.huggingface.folder import CONFIG, INDEX, open_folder
from sparsecod_jax.processes import note
from sparsecod_jax.rundir import RunDir, claim


def import_model(hf: str, workdir: str) -> epath.Path:
    """Makes a run of the model in the folder `hf` and returns its path.

    Raises:
      ConfigError: the folder can't be used, or `workdir` is not empty; nothing was written.
    """
    run = RunDir(files.absolute(workdir))
    if run.path.exists() and not (run.path.is_dir() and not any(run.path.iterdir())):
        raise ConfigError(f"{run.path} is there already: choose another --workdir, or delete what an interrupted import left")
    folder = open_folder(files.absolute(hf))
    source, words = finished.of_folder(folder), folder.words()
    tokenizer = source.tokenizer()
    left = {file.name for file in source.path.iterdir()} - {*words, TOKENIZER, CONFIG, INDEX}
    if others := sorted(name for name in left if not name.endswith(".safetensors")):
        note(f"not taken along: {', '.join(others)}")
    model = finished.load(source)
    with claim(run), contextlib.closing(Checkpointer(run, keep=1)) as checkpointer:
        checkpointer.save(0, {"state": {"params": model.params}}, {})
        checkpointer.wait()
        files.write(run.tokenizer, (source.path / TOKENIZER).read_bytes())
        run.origin.mkdir(parents=True, exist_ok=True)
        for name, content in words.items():
            files.write(run.origin / name, content)
        experiment = config.Experiment(model=source.model, data=config.Data(seq_len=source.longest))
        write_json(run.manifest, _manifest(model, tokenizer))
        write_json(run.config, config.to_dict(experiment))
        run.set_status("finished")
    return run.path


def _manifest(model: finished.Finished, tokenizer: Tokenizer) -> dict:
    return {
        "sparsecod_jax": __version__,
        "imported": {"folder": model.source.path.name, "weights": model.weights},
        "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
        "parameters": dataclasses.asdict(counts.parameters(model.source.model)),
        "tokenizer": {"eos_id": tokenizer.eos_id, "start_id": tokenizer.start_id, "before": list(tokenizer.before)},
        "identity_fields": {"imported": model.weights},
    }
