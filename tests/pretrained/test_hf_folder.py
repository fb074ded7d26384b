"""Folders that other tools wrote are read as those tools read them.

Hostile ones are refused before anything is allocated.
"""

import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import safetensors.numpy

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.pretrained.hf_folder import Folder, open_folder
from sparsecod_jax.pretrained.load import find_model, load_model
from tests.support import saved_runs, tiny_configs

TOKENS = np.random.default_rng(0).integers(0, 304, (8, 21)).astype(np.int32)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """An exported dense model in three files of weights."""
    folder = tmp_path_factory.mktemp("original")
    run = saved_runs.run(folder / "run", tiny_configs.MODEL)
    return Path(export(str(run.path), str(folder / "hf"), shard_bytes=70_000))


@pytest.fixture
def folder(original, tmp_path):
    """A copy that may be spoilt, without the digests that would tell."""
    copy = Path(shutil.copytree(original, tmp_path / "hf"))
    (copy / "digests.json").unlink()
    return copy


def _change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _move_to(folder: Path, place: str) -> None:
    """The first shard under another name in the index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first = next(iter(index["weight_map"].values()))
    index["weight_map"] = {
        name: place if file == first else file
        for name, file in index["weight_map"].items()
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _refused(folder: Path, message: str) -> None:
    """Refused, before a weight is read."""
    with (
        mock.patch.object(
            Folder, "_read", side_effect=AssertionError("a weight was read")
        ),
        pytest.raises(ConfigError, match=message),
    ):
        load_model(find_model(hf=str(folder)))


@pytest.mark.parametrize("name", ["llama", "mistral", "tied"])
def test_models_that_transformers_saved(name, tmp_path):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    transformers = pytest.importorskip(
        "transformers", reason="the parity extra is not installed"
    )
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 304,
    }
    torch.manual_seed(0)
    if name == "mistral":
        config = transformers.MistralConfig(
            **sizes,
            num_key_value_heads=2,
            sliding_window=None,
            max_position_embeddings=64,
        )
        theirs = transformers.MistralForCausalLM(config)
    else:
        config = transformers.LlamaConfig(
            **sizes,
            num_key_value_heads=1,
            tie_word_embeddings=name == "tied",
            rope_theta=500.0,
            max_position_embeddings=64,
        )
        theirs = transformers.LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="40KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    source = find_model(hf=str(tmp_path / "hf"))
    assert source.max_seq_len == 64
    np.testing.assert_allclose(
        saved_runs.logits(load_model(source), TOKENS), expected, rtol=0, atol=2e-5
    )


def test_each_device_gets_its_part(original):
    model = load_model(find_model(hf=str(original)))
    for leaf in jax.tree.leaves(model.params):
        assert {shard.data.shape for shard in leaf.addressable_shards} == {
            leaf.sharding.shard_shape(leaf.shape)
        }
    name = "model.layers.2.mlp.down_proj.weight"
    theirs = open_folder(original).open_files[name].get_tensor(name)
    np.testing.assert_array_equal(
        np.asarray(model.params["blocks"]["ffn"]["down"][2]), theirs.T
    )


@pytest.mark.parametrize(
    "place",
    [
        "../model.safetensors",
        "inner/model.safetensors",
        "..",
        "",
        "a/../model-00001-of-00003.safetensors",
    ],
)
def test_names_of_files_elsewhere_are_refused(folder, place):
    (folder / "inner").mkdir()
    for target in (folder.parent, folder / "inner"):
        shutil.copy(
            folder / "model-00001-of-00003.safetensors", target / "model.safetensors"
        )
    _move_to(folder, place)
    _refused(
        folder,
        "which is not in the folder itself: get the model from a source that you trust",
    )


def test_absolute_names_are_refused(folder):
    _move_to(folder, str(folder / "model-00001-of-00003.safetensors"))
    _refused(folder, "which is not in the folder itself")


@pytest.mark.parametrize(
    "name",
    ["model-00002-of-00003.safetensors", "config.json", "model.safetensors.index.json"],
)
def test_links_are_refused(folder, name):
    (folder / name).rename(folder.parent / "elsewhere")
    os.symlink(folder.parent / "elsewhere", folder / name)
    _refused(
        folder,
        f"{name} is a link to another place: copy the folder with its links resolved",
    )


def test_a_linked_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").rename(folder.parent / "elsewhere")
    os.symlink(folder.parent / "elsewhere", folder / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is a link"):
        find_model(hf=str(folder)).tokenizer()


def test_what_is_no_plain_file_is_refused(folder):
    """A pipe would be waited for, for ever."""
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    _refused(folder, r"config\.json is not a plain file")


def test_two_sets_of_weights_are_one_too_many(folder):
    shutil.copy(
        folder / "model-00001-of-00003.safetensors", folder / "model.safetensors"
    )
    _refused(
        folder,
        r"has both model\.safetensors and model\.safetensors\.index\.json:"
        " delete the one that is not meant",
    )


def test_pickles_are_not_opened(folder):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(folder / "sprung"),)

    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    _refused(
        folder,
        r"pytorch_model\.bin, which may run code when it is read: convert it to safetensors first",
    )
    shutil.copy(folder / "pytorch_model.bin", folder / "model.safetensors")
    _refused(folder, "is not safetensors")
    assert not (folder / "sprung").exists()


def _spoil(folder: Path, change) -> None:
    """Writes the tensors of the last shard after a change to them."""
    file = folder / "model-00003-of-00003.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


@pytest.mark.parametrize(
    ("array", "described"),
    [
        (np.ones((304, 33), np.float32), r"F32 \[304, 33\], not floats \[304, 32\]"),
        (np.ones((32, 304), np.float32), r"F32 \[32, 304\]"),
        (np.ones(304 * 32, np.float32), r"F32 \[9728\]"),
        (np.ones((304, 32), np.int8), r"I8 \[304, 32\]"),
    ],
)
def test_other_shapes_and_kinds_are_refused(folder, array, described):
    _spoil(folder, lambda tensors: tensors.update({"lm_head.weight": array}))
    _refused(folder, rf"has lm_head\.weight as {described}")


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.norm.weight.extra"]
)
def test_tensors_without_a_place_are_named_also_where_the_index_is_silent(folder, name):
    _spoil(folder, lambda tensors: tensors.update({name: np.ones(32, np.float32)}))
    _refused(folder, rf"has {name} \(1 such\), for which the model has no place")


def test_a_tensor_in_two_files_is_refused(folder):
    _spoil(
        folder,
        lambda tensors: tensors.update(
            {"model.embed_tokens.weight": np.ones((304, 32), np.float32)}
        ),
    )
    _refused(folder, r"has model\.embed_tokens\.weight, as another file does")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(folder, value):
    _spoil(folder, lambda tensors: tensors["lm_head.weight"].__setitem__((3, 4), value))
    with pytest.raises(
        ConfigError, match=r"lm_head\.weight of .* has values that are not finite"
    ):
        load_model(find_model(hf=str(folder)))


@pytest.mark.parametrize("value", [304, -7, 10**30, True, "256", 3.0, ["x"]])
@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id"])
def test_tokens_that_the_model_has_not_are_refused(folder, name, value):
    _change(folder / "config.json", **{name: value})
    with pytest.raises(
        ConfigError, match=f"has {name}=.*: correct it to an id below 304"
    ):
        find_model(hf=str(folder)).tokenizer()


def test_the_first_of_several_ends_counts(folder):
    _change(folder / "config.json", eos_token_id=[7, 256], bos_token_id=None)
    result = find_model(hf=str(folder)).tokenizer()
    assert (result.eos_id, result.start_id) == (7, 7)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    run = saved_runs.run(
        tmp_path / "run", dataclasses.replace(tiny_configs.MODEL, vocab_size=256)
    )
    export(str(run.path), str(tmp_path / "hf"))
    (tmp_path / "hf" / "digests.json").unlink()
    _change(tmp_path / "hf" / "config.json", eos_token_id=1, bos_token_id=1)
    with pytest.raises(
        ConfigError, match=r"tokenizer\.json has 257 ids and the model 256"
    ):
        find_model(hf=str(tmp_path / "hf")).tokenizer()


def test_a_head_that_is_there_is_taken_though_tied(folder):
    """As transformers does where the two differ."""
    expected = saved_runs.logits(load_model(find_model(hf=str(folder))), TOKENS)
    _change(folder / "config.json", tie_word_embeddings=True)
    np.testing.assert_array_equal(
        saved_runs.logits(load_model(find_model(hf=str(folder))), TOKENS), expected
    )
    _change(folder / "config.json", tie_word_embeddings="false")
    _refused(folder, "tie_word_embeddings='false': correct it to true or false")


def test_tensors_that_are_missing_are_named(folder):
    _spoil(folder, lambda tensors: tensors.pop("lm_head.weight"))
    _refused(
        folder,
        r"lacks lm_head\.weight, which the index places there: download it again",
    )


def test_a_config_of_another_size_is_refused_at_once(folder):
    _change(folder / "config.json", num_hidden_layers=10**9)
    _refused(
        folder,
        r"has no model\.layers\.3\.input_layernorm\.weight, which its config\.json asks for",
    )
    _change(folder / "config.json", num_hidden_layers=2)
    _refused(
        folder,
        r"has model\.layers\.2\.\S+ \(9 such\), for which the model has no place",
    )


def test_shards_cut_off_are_refused(folder):
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    _refused(folder, "is not safetensors")
    file.unlink()
    _refused(
        folder,
        "there is no .*model-00002-of-00003.safetensors: a Hugging Face model folder has",
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", r"config\.json is not JSON"),
        ("config.json", "[]", r"config\.json does not hold an object"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"lm_head.weight": 3}}',
            "has no weight_map from tensors to files",
        ),
    ],
)
def test_unreadable_descriptions_are_refused(folder, name, text, message):
    (folder / name).write_text(text)
    _refused(folder, message)


def test_what_is_no_folder_is_refused(tmp_path):
    _refused(
        tmp_path / "absent", "is not a folder on this machine: give --hf a local copy"
    )
    _refused(
        tmp_path,
        r"there is no .*config\.json:"
        r" a Hugging Face model folder has config\.json, model\.safetensors",
    )


def test_mixtures_with_gated_shared_experts_are_refused(tmp_path):
    run = saved_runs.run(tmp_path / "run", tiny_configs.MIXTURE)
    folder = Path(export(str(run.path), str(tmp_path / "hf")))
    (folder / "digests.json").unlink()
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    gate = "model.layers.1.mlp.shared_expert_gate.weight"
    tensors[gate] = np.full_like(tensors[gate], 0.5)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ConfigError,
        match=r"layers\.1\.mlp\.shared_expert_gate\.weight of .* is not zero:"
        " of mixtures of experts only those",
    ):
        load_model(find_model(hf=str(folder)))
