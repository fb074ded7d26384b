"""One text gives the same ids in training, eval, generate and the exported tokenizer.

And the same losses. Whatever a tokenizer's own post-processor adds: nothing, a start, an end,
or both.
"""

import json

import jax
import numpy as np
import pytest
from etils import epath
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sparsecod_jax.analysis.sequences import choose
from sparsecod_jax.data import tokenizer
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.data.store import Windows
from sparsecod_jax.evaluate import generate
from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.pretrained.load import find_model, load_model
from sparsecod_jax.storage.records import write_json
from sparsecod_jax.train.loop import train
from tests.support import saved_runs, tiny_configs

transformers = pytest.importorskip(
    "transformers", reason="the parity extra is not installed"
)
torch = pytest.importorskip("torch", reason="the parity extra is not installed")
pytest.importorskip("lm_eval", reason="needs the extra eval")

START, END = "<s>", "</s>"
TEMPLATES = {
    "none": None,
    "start": f"{START} $A",
    "end": f"$A {END}",
    "both": f"{START} $A {END}",
}
PROMPT = (
    "river stone light under </s> paper"  # spells a special token, which stays text
)


def write_tokenizer(path, texts: list[str], template: str | None) -> None:
    """A byte-level BPE whose post-processor adds what `template` says."""
    inner = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = byte_level  # pyright: ignore[reportAttributeAccessIssue]
    inner.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[START, END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    if template:
        special = [
            (name, number)
            for number, name in enumerate((START, END))
            if name in template
        ]
        inner.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special
        )  # pyright: ignore[reportAttributeAccessIssue]
    inner.save(str(path))


@pytest.fixture(scope="module", params=TEMPLATES)
def everything(request, corpus, tmp_path_factory):
    """Data, a run and its export with one of the tokenizers."""
    folder = tmp_path_factory.mktemp("framing")
    texts = [file.read_text() for file in sorted(corpus.iterdir())]
    write_tokenizer(folder / "tokenizer.json", texts, TEMPLATES[request.param])
    data = epath.Path(folder / "data")
    manifest = prepare(
        Request(str(corpus), str(folder / "tokenizer.json"), validation_fraction=0.2),
        str(data),
    )
    if request.param == "both":
        train(
            tiny_configs.experiment(
                data={"path": str(data)}, steps=2, schedule={"warmup_steps": 1}
            ),
            str(folder / "run"),
        )
    else:
        run = saved_runs.run(folder / "run", tiny_configs.MODEL)
        run.tokenizer.write_bytes((data / "tokenizer.json").read_bytes())
        write_json(run.manifest, {"tokenizer": manifest.framing()})
    export(str(folder / "run"), str(folder / "hf"))
    return request.param, folder, data, manifest, texts


def fed_by_generate(model, prompt: str, monkeypatch) -> list[int]:
    """What stands in the buffer before the first token is written."""
    fed, write = [], generate._write

    def recording(net, ids, eos_id, params, buffer_T, start, *rest):
        fed.extend(buffer_T[:start].tolist())
        return write(net, ids, eos_id, params, buffer_T, start, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "_write", recording)
        generate.generate(model, prompt, 1)
    return fed


def test_all_feed_the_same_ids(everything, monkeypatch):
    from sparsecod_jax.evaluate.lm_eval_model import LanguageModel

    name, folder, data, manifest, texts = everything
    stream = Windows(data, manifest, manifest.train, 1).tokens(0, manifest.train.tokens)
    first = stream[: int(np.argmax(stream == manifest.eos_id))].tolist()
    text = next(
        text
        for text in texts
        if tokenizer.load(data / "tokenizer.json").ids(text) == first
    )
    model = load_model(find_model(str(folder / "run")))
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    assert json.loads((folder / "run" / "manifest.json").read_text())["tokenizer"] == {
        "eos_id": 1,
        "start_id": 1,
        "before": [],
    }
    assert stream[len(first)] == 1, "the end after a document"
    for given in (text[:40], PROMPT, ""):
        trained = model.source.tokenizer().encode([given])[0].tolist()
        fed = {
            "training": trained[:-1],
            "eval": LanguageModel(model).tok_encode(given),
            "generate": fed_by_generate(model, given, monkeypatch) if given else [],
            "exported": theirs(given)["input_ids"],
        }
        print(f"post-processor {name:5}", {who: ids[:8] for who, ids in fed.items()})
        assert all(ids == trained[:-1] for ids in fed.values()), fed
        assert trained[-1] == 1
    assert fed_by_generate(model, "", monkeypatch) == [1] == [theirs.bos_token_id], (
        "a text begins after the end of another"
    )


def test_losses_of_the_first_tokens_are_alike(everything):
    """In a window of training data, in eval, and in the exported model with its tokenizer."""
    from lm_eval.api.instance import Instance

    from sparsecod_jax.evaluate.lm_eval_model import LanguageModel

    _, folder, data, manifest, _ = everything
    stream = Windows(data, manifest, manifest.train, 1).tokens(0, manifest.train.tokens)
    start = int(np.argmax(stream == manifest.eos_id))
    window = stream[start : start + 13]
    model = load_model(find_model(str(folder / "run")))
    text = model.source.tokenizer().decode(window[1:].tolist())
    ours = saved_runs.logits(model, window[None, :-1])[0]
    trained = -np.asarray(jax.nn.log_softmax(ours))[np.arange(12), window[1:]]

    language_model = LanguageModel(model)
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    assert -language_model.loglikelihood_rolling([request], disable_tqdm=True)[
        0
    ] == pytest.approx(trained.sum(), rel=1e-5)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "hf", dtype=torch.float32
    )
    words = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    ids = torch.tensor([[words.bos_token_id, *words(text)["input_ids"]]])
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(
            theirs(ids[:, :-1]).logits[0], ids[0, 1:], reduction="none"
        ).numpy()
    np.testing.assert_allclose(losses, trained, atol=1e-4)


def test_a_start_before_every_text_is_scored_alike_in_run_and_export(corpus, tmp_path):
    from lm_eval.api.instance import Instance

    from sparsecod_jax.evaluate.lm_eval_model import LanguageModel

    texts = [file.read_text() for file in sorted(corpus.iterdir())]
    run = saved_runs.run(tmp_path / "run", tiny_configs.MODEL)
    write_tokenizer(run.tokenizer, texts, TEMPLATES["start"])
    write_json(run.manifest, {"tokenizer": {"eos_id": 1, "start_id": 0, "before": [0]}})
    export(str(run.path), str(tmp_path / "hf"))
    requests = [
        Instance("loglikelihood_rolling", {}, (text[:60],), 0) for text in texts[:2]
    ]
    model = load_model(find_model(str(run.path)))
    ours = LanguageModel(model).loglikelihood_rolling(requests, disable_tqdm=True)
    ids = [0, *model.source.tokenizer().ids(texts[0][:60])]
    log_softmax = np.asarray(
        jax.nn.log_softmax(
            saved_runs.logits(model, np.resize(ids[:-1], (8, len(ids) - 1)))[0]
        )
    )
    assert ours[0] == pytest.approx(
        log_softmax[np.arange(len(ids) - 1), ids[1:]].sum(), rel=1e-5
    )
    exported = LanguageModel(load_model(find_model(hf=str(tmp_path / "hf"))))
    assert exported.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(
        ours, rel=1e-5
    )


def test_an_exported_folder_has_the_same_framing_when_it_comes_back(everything):
    _, folder, data, _, _ = everything
    back = find_model(hf=str(folder / "hf")).tokenizer()
    ours = find_model(str(folder / "run")).tokenizer()
    assert (back.before, back.eos_id, back.start_id) == (
        ours.before,
        ours.eos_id,
        ours.start_id,
    )
    sequences, _ = choose(
        find_model(hf=str(folder / "hf")),
        tokens=None,
        data=str(data),
        sequences=2,
        seq_len=8,
        split=None,
        seed=0,
    )
    assert sequences.shape == (2, 8), (
        "data of the tokenizer as it was is data of the exported one"
    )


def test_a_foreign_folder_keeps_its_own_framing_but_no_end_before_what_follows(
    everything,
):
    name, folder, _, _, _ = everything
    (folder / "hf" / "tokenizer.json").write_bytes(
        (folder / "tokenizer.json").read_bytes()
    )
    (folder / "hf" / "digests.json").unlink()
    foreign = find_model(hf=str(folder / "hf")).tokenizer()
    plain = foreign.ids(PROMPT)
    assert foreign.beginning(PROMPT) == (
        [0, *plain] if name in ("start", "both") else plain
    )
