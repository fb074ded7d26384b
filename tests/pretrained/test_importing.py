"""A folder becomes a run that can be analysed, reported and exported, with its side files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from sparsecod_jax.analysis.scores import analyze
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.pretrained.hf_files import DIGESTS
from sparsecod_jax.pretrained.importing import import_model
from sparsecod_jax.report.writing import write_report
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train.loop import train
from tests.support import saved_runs, tiny_configs


@pytest.fixture
def folder(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    return Path(export(str(run.path), str(tmp_path / "hf")))


def test_an_import_is_a_run_to_every_reader(folder, tmp_path):
    run = RunDir(import_model(str(folder), str(tmp_path / "imported")))
    options = {"data": None, "sequences": 4, "seq_len": 16, "scores": "profile,causal"}
    with pytest.raises(ConfigError, match="does not tell its data"):
        analyze(str(run.path), **options)
    assert not run.analysis.path.exists()
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 257, (4, 16)))
    from_run = json.loads(
        analyze(
            str(run.path), tokens=str(tmp_path / "tokens.npy"), scores="profile,causal"
        ).read_text()
    )
    from_folder = json.loads(
        analyze(
            hf=str(folder),
            tokens=str(tmp_path / "tokens.npy"),
            scores="profile,causal",
            out=str(tmp_path / "scores"),
        ).read_text()
    )
    assert from_run["causal"] == from_folder["causal"]
    assert from_run["model"]["weights"] == from_folder["model"]["weights"]
    page = write_report(str(run.path)).read_text()
    assert "1 of 1 runs finished" in page
    assert "Causal effect" in page


def test_what_the_folder_says_about_itself_leaves_with_it(folder, tmp_path):
    (folder / "README.md").write_text("# A model of somebody\n")
    (folder / "LICENSE").write_text("Do what you like.\n")
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "modeling.py").write_text("raise SystemExit('this is code')")
    run = import_model(str(folder), str(tmp_path / "imported"))
    back = Path(export(str(run), str(tmp_path / "back")))
    assert {file.name for file in back.iterdir()} == {
        file.name for file in folder.iterdir()
    } - {"modeling.py"}
    for file in back.iterdir():
        if file.name != DIGESTS:  # which now includes those of the new words
            assert file.read_bytes() == (folder / file.name).read_bytes()


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "tokenizer_config.json"])
def test_links_do_not_carry_other_files_out(folder, tmp_path, name):
    (tmp_path / "secret").write_text("a private key")
    (folder / name).unlink(missing_ok=True)
    os.symlink(tmp_path / "secret", folder / name)
    with pytest.raises(ConfigError, match=f"{name} is a link to another place"):
        import_model(str(folder), str(tmp_path / "imported"))
    assert not (tmp_path / "imported").exists()


def test_what_a_folder_does_not_say_is_said_for_it(folder, tmp_path, capsys):
    for name in ("README.md", "generation_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").touch()
    run = import_model(str(folder), str(tmp_path / "imported"))
    assert "not imported: vocab.txt" in capsys.readouterr().out
    back = Path(export(str(run), str(tmp_path / "back")))
    assert (
        json.loads((back / "generation_config.json").read_text())["eos_token_id"] == 256
    )
    assert "# imported" in (back / "README.md").read_text()


def test_a_run_is_not_overwritten(folder, tmp_path):
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(
        ConfigError,
        match="holds files but not a run to be made:"
        " choose another --workdir, a folder that is new or empty",
    ):
        import_model(str(folder), str(tmp_path / "run"))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_an_import_is_not_trained_on_by_mistake(folder, tokens, tmp_path):
    import_model(str(folder), str(tmp_path / "imported"))
    with pytest.raises(
        ConfigError,
        match=r"holds another run \(.*: undo the change or choose another --workdir",
    ):
        train(
            tiny_configs.experiment(data={"path": str(tokens)}),
            str(tmp_path / "imported"),
        )


def test_a_refused_folder_leaves_no_run(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"there is no .*tokenizer\.json"):
        import_model(str(folder), str(tmp_path / "imported"))
    assert not (tmp_path / "imported").exists()
