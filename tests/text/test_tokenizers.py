import json
import random
import re

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.text import tokenizers
from lm.text.tokenizer import MARKS, ByteTokenizer
from lm.types import UserError

ENGLISH = (
    "in the beginning God created the heaven and the earth and the earth was without "
    "form and void and darkness was upon the face of the deep and he said let there "
    "be light; day 365, year 1611. The cat's hat is 20% off: naïve café"
)
CHINESE = (
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。白日依山尽，黄河入海流。欲穷千里目，"
    "更上一层楼。春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
)
SIZES = {"unigram": 420, "bpe": 420, "chars": 0, "wordpiece": 200, "byte_bpe": 420}
LOSSLESS = ("unigram", "bpe", "chars", "byte_bpe", "bytes")
NAMES = ["<extra_id_0>", "<0x41>", *(n for names in MARKS.values() for n in names)]

# Whatever a tokenizer may trip over, often, among any other text.
TEXTS = st.lists(
    st.text()
    | st.sampled_from(ENGLISH.split())
    | st.sampled_from(CHINESE)
    | st.sampled_from(("\u2581", "\u2585", "\0", " ", "  ", "\n", "\r\n", "\t"))
    | st.sampled_from(("\u0301", "\ufeff", "\ufffd", "\u3000", "👩‍🚀", "##", "Ġ"))
    | st.sampled_from(NAMES)
).map("".join)


def corpus(number=400):
    rng = random.Random(0)
    for _ in range(number):
        start = rng.randrange(len(CHINESE) - 12)
        words = rng.choices(ENGLISH.split(), k=12)
        yield f"{' '.join(words)}\n{CHINESE[start : start + 12]}\n"


@pytest.fixture(scope="module")
def trained():
    return {
        kind: tokenizers.train(kind, corpus(), SIZES.get(kind, 0), num_sentinels=2)
        for kind in tokenizers.KINDS
    }


@pytest.fixture(params=tokenizers.KINDS)
def tokenizer(request, trained):
    return trained[request.param]


def pieces(tokenizer, text):
    return [tokenizer.token(id) for id in tokenizer.encode(text).tolist()]


# Laws of every kind.


def test_only_lossy_kinds_say_so(trained):
    assert [kind for kind, t in trained.items() if t.lossless] == [
        kind for kind in tokenizers.KINDS if kind in LOSSLESS
    ]


@settings(max_examples=200)
@given(text=TEXTS)
def test_lossless_kinds_give_text_back_and_count_it(trained, text):
    for kind in LOSSLESS:
        tokenizer = trained[kind]
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert tokenizer.num_bytes[ids].sum() == len(text.encode())
        assert tokenizer.num_chars[ids].sum() == len(text)


@settings(max_examples=200)
@given(text=TEXTS)
def test_no_mark_comes_out_of_text(trained, text):
    for tokenizer in trained.values():
        ids = tokenizer.encode(text)
        if not tokenizer.lossless:
            ids = ids[ids != tokenizer.unk_id]
        assert not tokenizer.is_special[ids].any()


def test_the_name_of_a_mark_is_ordinary_text(tokenizer):
    for name in NAMES:
        ids = tokenizer.encode(f"the {name} earth")
        assert len(ids) > 4
        known = ids if tokenizer.lossless else ids[ids != tokenizer.unk_id]
        assert not tokenizer.is_special[known].any()


def test_a_batch_is_encoded_like_its_texts(tokenizer):
    texts = [*corpus(20), "", "▁a▁", "\ud800x", "</s>"]
    for ids, text in zip(tokenizer.encode_batch(texts), texts):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode("").shape == (0,)


def test_marks_come_first_and_have_ids(tokenizer):
    t = tokenizer
    assert (t.pad_id, t.unk_id, t.bos_id, t.eos_id, t.mask_id) == (0, 1, 2, 3, 4)
    assert t.sentinel_ids == (5, 6)
    assert t.is_special.tolist() == [True] * 7 + [False] * (t.vocab_size - 7)
    assert t.token(6) == "<extra_id_1>"
    assert len(t.num_bytes) == len(t.num_chars) == len(t.starts_word) == t.vocab_size
    assert not t.num_bytes[:7].any() and not t.starts_word[:7].any()


def test_decode_skips_marks_and_ids_that_are_none(tokenizer):
    ids = tokenizer.encode("the earth").tolist()
    noise = [tokenizer.bos_id, -1, *ids, tokenizer.vocab_size, tokenizer.eos_id]
    assert tokenizer.decode(noise) == tokenizer.decode(np.array(ids)) == "the earth"
    assert tokenizer.decode([]) == ""


def test_decode_shows_unknown_text_and_broken_bytes(trained):
    assert trained["wordpiece"].decode([1]) == "\ufffd"
    for kind in LOSSLESS:
        ids = trained[kind].encode("☃")
        assert trained[kind].decode(ids[:-1]) == "\ufffd"


def test_halves_of_surrogates_become_one_or_are_replaced(trained):
    for kind in LOSSLESS:
        decoded = trained[kind].decode(trained[kind].encode("a\ud83d\ude00b\ud83d"))
        assert decoded == "a😀b\ufffd"


def test_words_begin_at_spaces_and_at_chinese(trained):
    for kind in ("unigram", "bpe", "byte_bpe", "chars", "bytes"):
        tokenizer = trained[kind]
        ids = tokenizer.encode("and the earth")
        starts = np.cumsum(tokenizer.num_bytes[ids])[:-1]
        assert starts[tokenizer.starts_word[ids][1:]].tolist() == [3, 7]
        chinese = tokenizer.encode("明月")
        assert tokenizer.starts_word[chinese[0]]
    wordpiece = trained["wordpiece"]
    assert pieces(wordpiece, "hats 明月") == ["hat", "##s", "明", "月"]
    starts = wordpiece.starts_word[wordpiece.encode("hats 明月")]
    assert starts.tolist() == [True, False, True, True]


# Saving and loading.


def test_saved_tokenizers_load_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "deep" / "folder")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["folder"]
    again = tokenizers.load(tmp_path / "deep" / "folder")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.kind == tokenizer.kind and again.lossless == tokenizer.lossless
    np.testing.assert_array_equal(again.is_special, tokenizer.is_special)
    np.testing.assert_array_equal(again.num_bytes, tokenizer.num_bytes)
    assert again.sentinel_ids == tokenizer.sentinel_ids
    text = "the </s> [MASK] 明月 ☃\n"
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
    again.save(tmp_path / "twice")
    assert tokenizers.load(tmp_path / "twice").fingerprint == tokenizer.fingerprint


def test_a_killed_save_leaves_no_folder(tokenizer, tmp_path, monkeypatch):
    def fail(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tokenizer), "_files", fail)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_save_replaces_only_tokenizers_and_only_if_told(trained, tmp_path):
    first, second = trained["bytes"], trained["chars"]
    first.save(tmp_path / "t")
    with pytest.raises(UserError, match="has a tokenizer.*--overwrite"):
        second.save(tmp_path / "t")
    second.save(tmp_path / "t", overwrite=True)
    assert tokenizers.load(tmp_path / "t").kind == "chars"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(UserError, match="is no tokenizer"):
        second.save(tmp_path / "photos", overwrite=True)
    (tmp_path / "empty").mkdir()
    second.save(tmp_path / "empty")


def test_fingerprints_tell_tokenizers_apart(trained):
    fewer = tokenizers.train("bpe", corpus(), SIZES["bpe"] - 1, num_sentinels=2)
    other_marks = tokenizers.train("bpe", corpus(), SIZES["bpe"], num_sentinels=1)
    lossy = tokenizers.train(
        "bpe", corpus(), SIZES["bpe"], num_sentinels=2, normalization="nfkc"
    )
    all_of_them = [*trained.values(), fewer, other_marks, lossy, ByteTokenizer(3)]
    assert len({t.fingerprint for t in all_of_them}) == len(all_of_them)


def test_training_is_deterministic_quiet_and_writes_no_file(
    trained, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    for kind, tokenizer in trained.items():
        size = SIZES.get(kind, 0)
        again = tokenizers.train(kind, corpus(), size, num_sentinels=2)
        assert again.fingerprint == tokenizer.fingerprint
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


# What others saved.


def test_a_foreign_sentencepiece_model(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=150,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=["<extra_id_1>", "<extra_id_0>"],
        minloglevel=2,
    )
    tokenizer = tokenizers.load(tmp_path)
    own = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    assert (tokenizer.kind, tokenizer.lossless) == ("unigram", False)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, -1)
    assert tokenizer.sentinel_ids == (4, 3)
    text = "  ｔｈｅ  hat is 明月 "
    assert tokenizer.encode(text).tolist() == own.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == own.decode(own.encode(text))
    spelled = tokenizer.encode("a <extra_id_0> b</s>")
    assert "id" in tokenizer.decode(spelled)
    assert not tokenizer.is_special[spelled[spelled != tokenizer.unk_id]].any()
    assert tokenizer.decode(tokenizer.encode("☃")) == "\ufffd"


def write_vocab(folder, words):
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return folder / "vocab.txt"


def test_a_foreign_wordpiece_vocabulary(tmp_path):
    path = write_vocab(tmp_path, ["cafe", "play", "##ing", "[", "]", "mask", "."])
    tokenizer = tokenizers.load(path)
    assert (tokenizer.kind, tokenizer.vocab_size) == ("wordpiece", 12)
    assert pieces(tokenizer, "Café PLAYING [MASK] ☃.") == (
        ["cafe", "play", "##ing", "[", "mask", "]", "[UNK]", "."]
    )
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.mask_id) == (0, 1, 4)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.sentinel_ids) == (2, 3, ())
    assert tokenizer.decode(tokenizer.encode("playing cafe.")) == "playing cafe."
    assert tokenizers.load(tmp_path).fingerprint == tokenizer.fingerprint


def test_capitals_of_a_foreign_wordpiece_vocabulary(tmp_path):
    path = write_vocab(tmp_path, ["cat", "Cat"])
    assert pieces(tokenizers.load(path), "Cat") == ["Cat"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert pieces(tokenizers.load(path), "Cat") == ["cat"]
    path = write_vocab(tmp_path, ["cat", "C", "##at"])
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert pieces(tokenizers.load(path), "Cat") == ["C", "##at"]


@pytest.mark.parametrize(
    "names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")]
)
def test_a_foreign_byte_level_vocabulary(names, tmp_path):
    model = hf.Tokenizer(hf.models.BPE())
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(corpus(), trainer)
    vocab = model.get_vocab() | {"<|endoftext|>": 400}
    model.model.save(str(tmp_path))
    for old, new in zip(("vocab.json", "merges.txt"), names):
        (tmp_path / old).rename(tmp_path / new)
    (tmp_path / names[0]).write_text(json.dumps(vocab))
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        tokenizer = tokenizers.load(path)
        assert (tokenizer.kind, tokenizer.vocab_size) == ("byte_bpe", 401)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (400, 400, -1)
        assert (tokenizer.unk_id, tokenizer.mask_id) == (-1, -1)
        text = "The earth\n\n <|endoftext|> 明月 ☃"
        ids = tokenizer.encode(text)
        assert ids.tolist() == model.encode(text).ids
        assert tokenizer.lossless and tokenizer.decode([*ids, 400]) == text
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=f"no use without {names[1]}"):
        tokenizers.load(tmp_path)


def test_a_foreign_file_that_pads_truncates_and_adds_marks(trained, tmp_path):
    trained["byte_bpe"].save(tmp_path / "ours")
    model = hf.Tokenizer.from_file(str(tmp_path / "ours" / "tokenizer.json"))
    model.enable_truncation(3)
    model.enable_padding(length=8)
    model.post_processor = hf.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizers.load(tmp_path / "tokenizer.json")
    text = "In the beginning"
    np.testing.assert_array_equal(
        tokenizer.encode(text), trained["byte_bpe"].encode(text)
    )
    assert tokenizer.fingerprint == trained["byte_bpe"].fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": hf.normalizers.NFC()},
        {"pre_tokenizer": hf.pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": hf.pre_tokenizers.WhitespaceSplit()},
    ],
)
def test_a_byte_level_file_that_changes_text_is_not_lossless(change, trained, tmp_path):
    trained["byte_bpe"].save(tmp_path / "ours")
    model = hf.Tokenizer.from_file(str(tmp_path / "ours" / "tokenizer.json"))
    for name, value in change.items():
        setattr(model, name, value)
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizers.load(tmp_path / "tokenizer.json")
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode("e\u0301 a")) != "e\u0301 a"


def test_marks_that_a_foreign_file_has_among_its_pieces(tmp_path):
    # As in T5's file: marks can be pieces of the model, and sentinels run backwards.
    names = ["<pad>", "</s>", "<unk>", "▁", "a", "<", "/", "s", ">", "<extra_id_1>"]
    names += ["<extra_id_0>"]
    model = hf.Tokenizer(hf.models.Unigram([(name, 0.0) for name in names], unk_id=2))
    model.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    model.decoder = hf.decoders.Metaspace()
    model.add_special_tokens([name for name in names if name[0] == "<" and name[1:]])
    model.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<extra_id_1>"}, "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = tokenizers.load(tmp_path)
    assert (tokenizer.kind, tokenizer.lossless) == ("unigram", False)
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    assert (tokenizer.bos_id, tokenizer.sentinel_ids) == (9, (10, 9))
    ids = tokenizer.encode("a </s>a")
    assert not tokenizer.is_special[ids].any()
    assert tokenizer.decode(ids).replace(" ", "") == "a</s>a"
    assert tokenizer.decode([4, 2, 10, 1]) == "a\ufffd"


# Training.


def test_pieces_are_learnt_from_both_languages(trained):
    for kind in ("unigram", "bpe", "byte_bpe", "wordpiece"):
        assert len(trained[kind].encode("and the earth")) <= 5
    rng = random.Random(0)
    words = ["明月", "故乡", "黄河", "春天", "我们", "看", "在"]
    chinese = ["".join(rng.choices(words, k=9)) + "。" for _ in range(200)]
    for kind in ("unigram", "bpe"):
        tokenizer = tokenizers.train(kind, chinese, 280)
        assert pieces(tokenizer, "我们看明月。") == ["我们", "看", "明月", "。"]
    assert pieces(trained["wordpiece"], "明月") == ["明", "月"]


def number_named(error):
    return int(re.search(r"set it to (\d+)", str(error))[1])


def train_largest(kind, texts, **options):
    if kind == "chars":
        return tokenizers.train(kind, texts, **options)
    with pytest.raises(UserError) as error:
        tokenizers.train(kind, texts, 30_000, **options)
    return tokenizers.train(kind, texts, number_named(error.value), **options)


@pytest.mark.parametrize("kind", ["unigram", "chars", "wordpiece"])
def test_rare_characters_have_no_piece_below_full_coverage(kind):
    texts = ["明月" * 1000, "霜"]
    for coverage, has_piece in ((0.999, False), (1.0, True)):
        tokenizer = train_largest(kind, texts, character_coverage=coverage)
        assert ("霜" in pieces(tokenizer, "霜")) is has_piece


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordpiece", "byte_bpe"])
def test_digits_can_be_kept_apart(kind):
    texts = ["the year 1611 of 1611 and 365 1611", "hello 365"] * 50
    for split_digits in (False, True):
        tokenizer = train_largest(kind, texts, split_digits=split_digits)
        longest = max(sum(map(str.isdigit, t)) for t in pieces(tokenizer, "1611 365"))
        assert (longest == 1) is split_digits
        assert tokenizer.lossless is (kind != "wordpiece")


@pytest.mark.parametrize("kind", ["unigram", "bpe", "chars", "byte_bpe", "wordpiece"])
def test_normalization_makes_a_kind_lossy(kind):
    for normalization, text in (("nfkc", "The cat"), ("nfkc_cf", "the cat")):
        size = SIZES[kind] and SIZES[kind] - 60
        tokenizer = tokenizers.train(
            kind, corpus(), size, normalization=normalization, character_coverage=1.0
        )
        assert not tokenizer.lossless
        decoded = tokenizer.decode(tokenizer.encode("Ｔｈｅ ｃａｔ"))
        assert decoded == text


def test_long_lines_and_odd_characters_are_learnt_from():
    # SentencePiece by itself drops lines over 4,192 bytes, and those with U+2585.
    for text in ("月光" * 5000, "月光\u2585" * 50):
        tokenizer = tokenizers.train("bpe", [text], 264)
        assert "月光" in pieces(tokenizer, "月光")


def test_a_sample_is_drawn_from_all_of_the_text():
    texts = ["a"] * 500 + ["b"] * 500
    tokenizer = tokenizers.train("chars", texts, max_sentences=50)
    assert tokenizer.vocab_size == 5 + 256 + 2


@pytest.mark.parametrize(
    "kind, low", [("unigram", 280), ("bpe", 280), ("wordpiece", 9), ("byte_bpe", 99)]
)
def test_a_size_that_does_not_fit_names_one_that_does(kind, low):
    texts = list(corpus(50))
    for size, fault in ((low, "low"), (30_000, "high")):
        with pytest.raises(UserError, match=f"vocab_size {size} is too {fault}") as e:
            tokenizers.train(kind, texts, size)
        limit = number_named(e.value)
        assert tokenizers.train(kind, texts, limit).vocab_size == limit


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("unigramm", {}, "unknown kind 'unigramm'; did you mean 'unigram'"),
        ("bpe", {"normalization": "nfd"}, "unknown normalization"),
        ("bpe", {}, "bpe needs a vocab_size"),
        ("bytes", {"vocab_size": 300}, "bytes make 261 tokens, not 300"),
        ("bytes", {"normalization": "nfkc"}, "never normalised"),
        ("chars", {"character_coverage": 0.5}, "character_coverage is 0.5"),
        ("chars", {"num_sentinels": -1}, "num_sentinels must be at least 0"),
        ("chars", {"max_sentences": 0}, "max_sentences must be at least 1"),
    ],
)
def test_options_that_do_not_fit(kind, options, message):
    with pytest.raises(UserError, match=message):
        tokenizers.train(kind, ["some text"], **options)


@pytest.mark.parametrize("kind", ["unigram", "chars", "byte_bpe", "wordpiece"])
@pytest.mark.parametrize("texts", [[], [""], [" \n"]])
def test_no_text_is_an_error(kind, texts):
    with pytest.raises(UserError, match="no text to train"):
        tokenizers.train(kind, texts, 400)


def test_what_is_missing_or_broken_is_one_line_with_the_cure(tmp_path):
    def error_of(path):
        with pytest.raises(UserError) as error:
            tokenizers.load(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    cure = "train one with python -m tools.train_tokenizer"
    assert error_of(tmp_path / "none") == f"no tokenizer at {tmp_path}/none; {cure}"
    assert error_of(tmp_path) == f"no tokenizer at {tmp_path}; {cure}"
    for name in ("a.model", "tokenizer.json", "x.vocab", "vocab.txt"):
        (tmp_path / name).write_bytes(b"\xff{")
        assert name in error_of(tmp_path / name)
    assert "several" not in error_of(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "b.model").write_bytes(b"")
    assert "has a.model, b.model; name one of them" in error_of(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    assert "has no [UNK]" in error_of(tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").write_text("{")
    assert "cannot be read" in error_of(tmp_path / "a.model")


# Words.


def test_words_are_counted_and_stay_so(tmp_path):
    texts = ["The cat's hat.", "the HAT, the cat...", "a\u00a0\u210bat"]
    words = tokenizers.train("words", texts, normalization="nfkc_cf", min_count=2)
    assert pieces(words, "The  hat: cat?") == ["the", "hat", "<unk>", "cat", "<unk>"]
    assert [words.token(i) for i in range(5, words.vocab_size)] == ["hat", "the", "cat"]
    # Once each are: ' s . , ... a
    assert words.counts.tolist() == [0, 6, 0, 0, 0, 3, 3, 2]
    words.save(tmp_path / "words")
    again = tokenizers.load(tmp_path / "words")
    assert again == words
    np.testing.assert_array_equal(again.counts, words.counts)
    assert words.starts_word.tolist() == [False] * 5 + [True] * 3
    for broken in ('{"hat": "a"}', '{"hat": -3}', '{"hat": 3}', '{"other": 3}'):
        (tmp_path / "words" / "counts.json").write_text(broken)
        with pytest.raises(UserError, match="counts.json"):
            tokenizers.load(tmp_path / "words")


def test_the_commonest_words_are_taken():
    texts = ["b b b c c a a d"] * 2
    words = tokenizers.train("words", texts, 8)
    assert [words.token(i) for i in range(5, 8)] == ["b", "a", "c"]
    assert words.counts[words.unk_id] == 2
    encoded = np.concatenate(words.encode_batch(texts))
    np.testing.assert_array_equal(np.bincount(encoded, minlength=8), words.counts)
    for size in (5, 10):
        with pytest.raises(UserError, match="vocab_size"):
            tokenizers.train("words", texts, size)
    with pytest.raises(UserError, match="min_count is for words"):
        tokenizers.train("bpe", texts, 300, min_count=2)
    with pytest.raises(UserError, match="no text"):
        tokenizers.train("words", ["  "])


def test_others_have_no_counts(trained):
    assert [k for k, t in trained.items() if t.counts is not None] == ["words"]
