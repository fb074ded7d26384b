"""How does a Hugging Face model folder become a run? The subcommand `import`.

Import: the run has a checkpoint of step 0 and no training. The folder's card, licence and
tokenizer settings are kept, and leave with the model when it is exported.
"""

import contextlib
import dataclasses
from collections.abc import Iterable
from typing import Any

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
    """Makes a run of a model and returns its path.

    Args:
      hf: a Hugging Face model folder.
      workdir: the run directory to make.

    Raises:
      ConfigError: the folder can't be used, or `workdir` is not empty; nothing was written.
    """
    run = RunDir(files.absolute(workdir))
    check_free_or_ours(
        run.path, ours=False, option="--workdir", kind="a run to be made"
    )
    folder = open_folder(files.absolute(hf))
    source, side_files = model_of_folder(folder), folder.side_files()
    tokenizer = source.tokenizer()
    left_behind = _left_behind(folder.path, side_files)
    if left_behind:
        log_phase(shown(f"not imported: {', '.join(left_behind)}"))
    model = load_model(source)
    # How the model was trained is unknown, so all but its sizes are defaults.
    experiment = config.Experiment(
        model=source.model, data=config.Data(seq_len=source.max_seq_len)
    )
    # Nothing was written so far; from here on the directory belongs to this process.
    with claim(run):
        _save_parameters(run, model, experiment)
        files.write(run.tokenizer, (source.path / TOKENIZER).read_bytes())
        files.make_folder(run.origin)
        for name, content in side_files.items():
            files.write(run.origin / name, content)
        manifest = _manifest(model, tokenizer)
        manifest["tokenizer_digest"] = files.digest(run.tokenizer)
        write_record(run.manifest, manifest)
        write_record(run.config, config.to_dict(experiment))
        run.set_status("finished")
    return run.path


def _left_behind(folder: epath.Path, side_files: Iterable[str]) -> list[str]:
    """The names of the files that the run does not keep in any form."""
    kept = {*side_files, TOKENIZER, CONFIG, INDEX, DIGESTS}
    names = {file.name for file in folder.iterdir()} - kept
    return sorted(name for name in names if not name.endswith(".safetensors"))


def _save_parameters(
    run: RunDir, model: LoadedModel, experiment: config.Experiment
) -> None:
    """The checkpoint of step 0, with parameters and nothing of an optimizer."""
    items = {"state": {"params": model.params}}
    record = {"config": config.to_dict(experiment)}
    with contextlib.closing(Checkpointer(run, keep=1)) as checkpointer:
        checkpointer.save(0, items, record)
        checkpointer.wait()


def _manifest(model: LoadedModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """What is known of an imported run; the folder's path is reduced to its name."""
    devices = jax.devices()
    return {
        "sparsecod_jax": __version__,
        "imported": {"folder": model.source.path.name, "weights": model.weights},
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
        "parameters": dataclasses.asdict(counts.parameters(model.source.model)),
        "tokenizer": {
            "eos_id": tokenizer.eos_id,
            "start_id": tokenizer.start_id,
            "before": list(tokenizer.before),
        },
        "identity_fields": {"imported": model.weights},
    }
