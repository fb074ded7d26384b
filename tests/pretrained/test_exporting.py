"""What leaves is what stock transformers compute, and the same bytes every time."""

import dataclasses
import json
import os
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sparsecod_jax.analysis.scores import analyze
from sparsecod_jax.cli import main
from sparsecod_jax.config import Model
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained import exporting
from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.pretrained.hf_tensors import tensors
from sparsecod_jax.pretrained.importing import import_model
from sparsecod_jax.pretrained.load import find_model, load_model
from sparsecod_jax.storage.records import read_record, write_json, write_record
from tests.support import saved_runs, tiny_configs

TOKENS = (
    np.random.default_rng(0)
    .integers(0, tiny_configs.MODEL.vocab_size, (8, 21))
    .astype(np.int32)
)
WITHOUT_SHARED = {"shared_expert": False, "d_shared": 0}
MODELS: dict[str, Model] = {
    "multi-head": dataclasses.replace(tiny_configs.MODEL, n_kv_heads=4),
    "grouped-query": tiny_configs.MODEL,
    "multi-query": dataclasses.replace(tiny_configs.MODEL, n_kv_heads=1, head_dim=6),
    "LayerNorm Scaling": dataclasses.replace(
        tiny_configs.MODEL, layer_norm_scaling=True, rope_theta=500.0
    ),
    "scaled FFN": dataclasses.replace(tiny_configs.MODEL, ffn_scale=0.3),
    "mixture": dataclasses.replace(tiny_configs.MIXTURE, **WITHOUT_SHARED),
    "mixture, shared": dataclasses.replace(tiny_configs.MIXTURE, top_k=3),
    "mixture, odd widths": dataclasses.replace(
        tiny_configs.MIXTURE, d_ff=19, d_shared=13
    ),
    "mixture, renormalised": dataclasses.replace(
        tiny_configs.MIXTURE, **WITHOUT_SHARED, normalize_gates=True
    ),
    "mixture, shared, renormalised": dataclasses.replace(
        tiny_configs.MIXTURE, normalize_gates=True, layer_norm_scaling=True
    ),
}


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def _weights(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: array
        for file in folder.glob("*.safetensors")
        for name, array in safetensors.numpy.load_file(file).items()
    }


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A run and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("exported")
    run = saved_runs.run(folder / "run", MODELS[request.param])
    export(str(run.path), str(folder / "hf"))
    return run, folder / "hf"


def test_logits_equal_those_of_transformers(exported):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip(
        "transformers", reason="the parity extra is not installed"
    )
    run, folder = exported
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    ours = saved_runs.logits(load_model(find_model(str(run.path))), TOKENS)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)


def test_goes_in_and_out_without_a_changed_byte(exported, tmp_path):
    run, folder = exported
    export(str(run.path), str(tmp_path / "again"))
    assert _files(tmp_path / "again") == _files(folder)
    imported = import_model(str(folder), str(tmp_path / "imported"))
    export(str(imported), str(tmp_path / "back"))
    assert _files(tmp_path / "back") == _files(folder)
    ours, back = (
        saved_runs.logits(load_model(find_model(str(path))), TOKENS)
        for path in (run.path, imported)
    )
    np.testing.assert_allclose(back, ours, rtol=0, atol=2e-5)


def test_tokenizer_and_settings_are_those_of_the_run(exported):
    transformers = pytest.importorskip(
        "transformers", reason="the parity extra is not installed"
    )
    run, folder = exported
    theirs, ours = (
        transformers.AutoTokenizer.from_pretrained(folder),
        find_model(str(run.path)).tokenizer(),
    )
    text = " größer\n two  spaces"
    assert theirs(text)["input_ids"] == ours.ids(text)
    assert theirs.decode(ours.ids(text)) == text
    assert (theirs.eos_token_id, theirs.model_max_length) == (ours.eos_id, 32)
    settings = transformers.GenerationConfig.from_pretrained(folder)
    assert (settings.bos_token_id, settings.eos_token_id) == (ours.eos_id, ours.eos_id)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["grouped-query", "mixture, shared"])
def test_sixteen_bits_are_the_rounded_weights(dtype, name, tmp_path):
    run = saved_runs.run(tmp_path / "run", MODELS[name])
    export(str(run.path), str(tmp_path / "wide"))
    export(str(run.path), str(tmp_path / "narrow"), dtype=dtype)
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    for name, array in _weights(tmp_path / "wide").items():
        np.testing.assert_array_equal(
            _weights(tmp_path / "narrow")[name], array.astype(kind)
        )
    imported = import_model(str(tmp_path / "narrow"), str(tmp_path / "imported"))
    export(str(imported), str(tmp_path / "back"), dtype=dtype)
    assert _files(tmp_path / "back") == _files(tmp_path / "narrow")

    transformers = pytest.importorskip(
        "transformers", reason="the parity extra is not installed"
    )
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "narrow", output_loading_info=True
    )
    assert not any(info.values()), info
    assert str(theirs.dtype) == f"torch.{dtype}"


def test_a_large_model_is_written_as_shards(tmp_path):
    run = saved_runs.run(tmp_path / "run", MODELS["mixture, shared"])
    export(str(run.path), str(tmp_path / "whole"))
    export(str(run.path), str(tmp_path / "shards"), shard_bytes=60_000)
    whole, shards = _weights(tmp_path / "whole"), _weights(tmp_path / "shards")
    index = json.loads(
        (tmp_path / "shards" / "model.safetensors.index.json").read_text()
    )
    assert index["metadata"]["total_size"] == sum(
        array.nbytes for array in whole.values()
    )
    assert set(index["weight_map"]) == set(whole) == set(shards)
    for name in whole:
        np.testing.assert_array_equal(whole[name], shards[name])
    for file in (tmp_path / "shards").glob("*.safetensors"):
        contained = safetensors.numpy.load_file(file)
        assert {
            name for name, place in index["weight_map"].items() if place == file.name
        } == set(contained)
        assert sum(array.nbytes for array in contained.values()) <= 60_000
    imported = import_model(str(tmp_path / "shards"), str(tmp_path / "imported"))
    export(str(imported), str(tmp_path / "back"), shard_bytes=60_000)
    assert _files(tmp_path / "back") == _files(tmp_path / "shards")
    transformers = pytest.importorskip(
        "transformers", reason="the parity extra is not installed"
    )
    _, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "shards", output_loading_info=True
    )
    assert not any(info.values()), info


def test_the_card_tells_of_training_results_and_layers(tmp_path):
    run = saved_runs.run(
        tmp_path / "run", dataclasses.replace(tiny_configs.MODEL, document_masking=True)
    )
    weights = load_model(find_model(str(run.path))).weights
    write_json(
        run.final, {"steps": 3, "loss": 1.25, "perplexity": 3.49, "bits_per_byte": 0.9}
    )
    result = {
        "usefulness": {"loss_ratio": [1.5, 1.25, 1.125]},
        "block_influence": [0.3, 0.2, 0.1],
    }
    run.analysis.path.mkdir()
    write_json(
        run.analysis.scores,
        {
            "model": {"weights": weights},
            "data": {"sequences": 5, "seq_len": 9},
            **result,
        },
    )
    card = (export(str(run.path), str(tmp_path / "a")) / "README.md").read_text()
    for expected in (
        "| loss | 1.2500 |",
        "| 3 | 1.125 | 0.1 |",
        '"commit": "none"',
        "one document at a time",
        "5 sequences of 9 tokens",
    ):
        assert expected in card
    write_json(
        run.analysis.scores,
        {
            "model": {"weights": "of another step"},
            "data": {"sequences": 5, "seq_len": 9},
            **result,
        },
    )
    write_json(run.final, {"steps": 4, "loss": 1.25})
    card = (export(str(run.path), str(tmp_path / "b")) / "README.md").read_text()
    assert "1.125" not in card
    assert "Held-out" not in card


def test_numbers_that_are_missing_are_dashes_in_the_card(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    tokens = np.random.default_rng(0).integers(0, 257, (4, 16))
    np.save(tmp_path / "tokens.npy", tokens)
    analyze(str(run.path), tokens=str(tmp_path / "tokens.npy"), scores="causal")
    write_json(run.final, {"steps": 3, "loss": None, "perplexity": 2.0})
    card = (export(str(run.path), str(tmp_path / "a")) / "README.md").read_text()
    assert "| loss | – |" in card
    assert "each layer" not in card
    analyze(str(run.path), tokens=str(tmp_path / "tokens.npy"), scores="profile")
    result = read_record(run.analysis.scores)
    result["block_influence"][1] = None
    write_record(run.analysis.scores, result)
    card = (export(str(run.path), str(tmp_path / "b")) / "README.md").read_text()
    assert f"| 2 | – | {result['variance']['residual'][1]:.4g} |" in card


def test_nothing_is_left_of_an_export_that_fails(tmp_path):
    params = tiny_configs.init(tiny_configs.MODEL)
    params["final_norm"]["gain"] = params["final_norm"]["gain"].at[3].set(1e5)
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL, params)
    with pytest.raises(
        ConfigError,
        match=r"model\.norm\.weight reaches 100000, which float16 does not hold:"
        " export another --dtype",
    ):
        export(str(run.path), str(tmp_path / "hf"), dtype="float16")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    export(str(run.path), str(tmp_path / "hf"), dtype="bfloat16")


def test_a_diverged_run_does_not_leave(tmp_path):
    params = tiny_configs.init(tiny_configs.MODEL)
    params["final_norm"]["gain"] = params["final_norm"]["gain"].at[3].set(np.nan)
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL, params)
    with pytest.raises(
        ConfigError,
        match=r"model\.norm\.weight has values that are not finite: the run has diverged",
    ):
        export(str(run.path), str(tmp_path / "hf"))


def test_what_lies_beside_is_left_alone(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    (tmp_path / "hf.partial").mkdir()
    (tmp_path / "hf.partial" / "precious").touch()
    export(str(run.path), str(tmp_path / "hf"))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "hf", "hf.partial"}
    assert (tmp_path / "hf.partial" / "precious").exists()
    modes = {
        file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "hf").iterdir()
    }
    assert set(modes.values()) == {modes["config.json"]}
    with pytest.raises(ConfigError, match=r"can't be made .*: choose another place"):
        export(str(run.path), str(tmp_path / "hf" / "config.json" / "inner"))


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    (tmp_path / "hf").mkdir()
    with pytest.raises(ConfigError, match="is there already: choose another --out"):
        export(str(run.path), str(tmp_path / "hf"))
    assert not list((tmp_path / "hf").iterdir())


def test_a_damaged_checkpoint_does_not_leave(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    for file in Path(run.checkpoints / "3" / "state").rglob("d/*"):
        file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    with pytest.raises(ConfigError, match=r"no checkpoint .* can be used"):
        export(str(run.path), str(tmp_path / "hf"))
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_verbs(tmp_path, capsys):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    main(
        [
            "export",
            f"--workdir={run.path}",
            f"--out={tmp_path / 'hf'}",
            "--dtype=bfloat16",
        ]
    )
    main(["import", f"--hf={tmp_path / 'hf'}", f"--workdir={tmp_path / 'imported'}"])
    text = capsys.readouterr().out
    assert f"exported: {tmp_path / 'hf'}" in text
    assert f"imported: {tmp_path / 'imported'}" in text
    assert (
        json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    )


def test_what_an_origin_has_that_is_no_word_stays(tmp_path):
    """Somebody else's run may have anything there."""
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    origin = Path(run.origin)
    (origin / "inner").mkdir(parents=True)
    (origin / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Config"}}')
    (origin / "evil.py").write_text("raise SystemExit")
    (origin / "model.safetensors").write_bytes(b"")
    (origin / "tokenizer.json").write_text("{}")
    (origin / "README.md").write_text("# Mine\n")
    export(str(run.path), str(tmp_path / "hf"))
    assert "auto_map" not in (tmp_path / "hf" / "config.json").read_text()
    assert (tmp_path / "hf" / "README.md").read_text() == "# Mine\n"
    assert not (tmp_path / "hf" / "evil.py").exists()
    assert find_model(hf=str(tmp_path / "hf")).tokenizer().vocab_size == 257


@pytest.mark.parametrize("plant", ["link", "pipe", "code", "large", "many"])
def test_an_origin_that_leads_elsewhere_is_refused(tmp_path, plant):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    origin, secret = Path(run.origin), tmp_path / "secret"
    origin.mkdir()
    secret.write_text("secret")
    if plant == "many":
        for number in range(5):
            (origin / f"LICENSE{number}").write_bytes(bytes(15 * 2**20))
    elif plant == "link":
        (origin / "README.md").symlink_to(secret)
    elif plant == "pipe":
        os.mkfifo(origin / "LICENSE")
    elif plant == "code":
        (origin / "tokenizer_config.json").write_text(
            '{"auto_map": {"AutoTokenizer": ["theirs/repository--evil.Tokenizer", null]}}'
        )
    else:
        with open(origin / "README.md", "wb") as file:
            file.truncate(2**40)
    with pytest.raises(
        ConfigError,
        match=r"is a link|is not a plain file|names code of its own|bytes, where|bytes of card",
    ):
        export(str(run.path), str(tmp_path / "hf"))
    assert not (tmp_path / "hf").exists()


def test_an_origin_that_is_no_folder_of_the_run_is_refused(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    origin, private = Path(run.origin), tmp_path / "private"
    private.mkdir()
    (private / "README.md").write_text("secret")
    for plant in (
        lambda: origin.symlink_to(private),
        lambda: origin.write_text("secret"),
    ):
        plant()
        with pytest.raises(
            ConfigError, match="origin is not a folder of the run itself"
        ):
            export(str(run.path), str(tmp_path / "hf"))
        origin.unlink()


def test_the_card_does_not_tell_where_things_lay(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    values = read_record(run.config)
    values["data"] |= {
        "path": "/home/someone/private/sotu",
        "source": "../corpus/",
        "tokenizer": "gs://bucket/words/tokenizer.json",
    }
    write_record(run.config, values)
    places = {"host": "cluster-7", "data": {"place": "/home/someone/sotu"}}
    write_record(run.manifest, read_record(run.manifest) | places)
    export(str(run.path), str(tmp_path / "hf"))
    for file in (tmp_path / "hf").iterdir():
        for private in (
            b"someone",
            b"bucket",
            b"cluster-7",
            b"../",
            str(tmp_path).encode(),
        ):
            assert private not in file.read_bytes(), file
    assert '"path": "sotu"' in (tmp_path / "hf" / "README.md").read_text()


def _flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_of_an_export_is_named(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    folder = Path(export(str(run.path), str(tmp_path / "hf")))
    for place, name in (
        (-1, r"\S+"),
        (-tiny_configs.MODEL.d_model * 4 - 1, r"\S+"),
        (20_000, r"\S+"),
    ):
        _flip(folder / "model.safetensors", place)
        with pytest.raises(
            ConfigError, match=rf"^{name} of .* was changed after it was exported"
        ):
            import_model(str(folder), str(tmp_path / "imported"))
        _flip(folder / "model.safetensors", place)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "digests.json",
    ):
        place = (folder / name).read_bytes().index(b"a")
        _flip(folder / name, place)
        with pytest.raises(ConfigError, match=rf"{name} was changed after it was"):
            import_model(str(folder), str(tmp_path / "imported"))
        _flip(folder / name, place)
    assert not (tmp_path / "imported").exists()
    (folder / "digests.json").unlink()
    import_model(str(folder), str(tmp_path / "imported"))


CONFIGS = sorted(path.stem for path in Path("configs").glob("*.py"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_stock_transformers_run_every_config_at_nano(name, dtype, tmp_path):
    """With the implementations that they choose, with which our experts' widths have to agree."""
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip(
        "transformers", reason="the parity extra is not installed"
    )
    model = dataclasses.replace(
        load_experiment(f"configs/{name}.py:nano").model, vocab_size=304, n_layers=2
    )
    run = saved_runs.run(tmp_path / "run", model)
    folder = export(str(run.path), str(tmp_path / "hf"), dtype=dtype)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=getattr(torch, dtype)
    )
    assert not any(info.values()), info
    with torch.no_grad():
        result = theirs(torch.tensor(TOKENS)).logits.float().numpy()
    imported = load_model(find_model(hf=str(folder)))
    assert imported.source.model.d_ff == model.d_ff
    expected = saved_runs.logits(imported, TOKENS)
    tolerance = 1e-4 if dtype == "float32" else 0.1
    assert np.abs(expected).max() > 0.5
    assert np.linalg.norm(result - expected) <= tolerance * np.linalg.norm(expected)


def test_a_parameter_that_no_tensor_holds_is_refused(tmp_path):
    """A variant may add parameters: none is left out in silence."""
    model = MODELS["multi-head"]
    tensor = next(tensors(model))
    run = saved_runs.run(tmp_path / "run", model)
    with mock.patch.object(exporting, "tensors", return_value=[tensor]):
        message = r"no tensor of the stock architecture holds blocks/attention/key, "
        with pytest.raises(ConfigError, match=message):
            export(str(run.path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
