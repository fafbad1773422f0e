"""What files beside a foreign vocabulary say of it; ids by `tests/oracle`."""

import io
import json

import pytest
import sentencepiece
import tokenizers as hf

from lm.text import tokenizers
from lm.types import UserError

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT = [*MARKS, "cafe", "café", "Café", "明", "月", "明月", "[", "]"]
TEXT = ["a rose is a rose is a rose", "the cat sat on the mat", "明月几时有"] * 50


def pieces(tokenizer, text):
    return [tokenizer.token(id) for id in tokenizer.encode(text).tolist()]


def write(folder, **files):
    """Writes files, whose names have "__" for a full stop."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def wordpiece(folder, config, **files):
    vocabulary = ("\n".join(BERT) + "\n").encode()
    return write(folder, vocab__txt=vocabulary, tokenizer_config__json=config, **files)


def byte_bpe(folder, config, extra=(), **files):
    ids = {c: i for i, c in enumerate(sorted(hf.pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary = {**ids, "Ġa": 256, **{name: 257 + i for i, name in enumerate(extra)}}
    return write(
        folder,
        vocab__json=vocabulary,
        merges__txt="#version: 0.2\nĠ a\n".encode(),
        tokenizer_config__json=config,
        **files,
    )


def sentencepiece_model(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"do_lower_case": False}, ["Café", "明", "月"]),
        ({"do_lower_case": True}, ["cafe", "明", "月"]),
        ({"do_lower_case": True, "strip_accents": False}, ["café", "明", "月"]),
        ({"do_lower_case": True, "strip_accents": None}, ["cafe", "明", "月"]),
        ({"do_lower_case": False, "tokenize_chinese_chars": False}, ["Café", "明月"]),
    ],
)
def test_the_options_of_bert_stand_in_its_config(config, expected, tmp_path):
    folder = wordpiece(tmp_path / "vocab", config)
    assert pieces(tokenizers.load(folder), "Café 明月") == expected
    # They count beside a `tokenizer.json`, too, whatever that says.
    other = tokenizers.load(wordpiece(tmp_path / "other", {}))
    other.save(tmp_path / "json")
    write(tmp_path / "json", tokenizer_config__json=config)
    assert pieces(tokenizers.load(tmp_path / "json"), "Café 明月") == expected
    # Ours keep them.
    tokenizers.load(folder).save(tmp_path / "saved")
    assert pieces(tokenizers.load(tmp_path / "saved"), "Café 明月") == expected


@pytest.mark.parametrize("prefix, first", [(True, "▁a"), (False, "a"), (None, "a")])
def test_a_space_may_come_before_byte_level_text(prefix, first, tmp_path):
    config = {"add_prefix_space": prefix}
    tokenizer = tokenizers.load(byte_bpe(tmp_path / "pair", config))
    assert pieces(tokenizer, "a a") == [first, "▁a"]
    assert tokenizer.lossless == (not prefix)
    plain = tokenizers.load(byte_bpe(tmp_path / "plain", {}))
    plain.save(tmp_path / "json")
    write(tmp_path / "json", tokenizer_config__json=config)
    assert pieces(tokenizers.load(tmp_path / "json"), "a a") == [first, "▁a"]


def test_a_mark_that_is_null_is_none(tmp_path):
    extra = ("<|endoftext|>", "<|im_end|>")
    config = {"bos_token": None, "pad_token": "<|endoftext|>"}
    folder = byte_bpe(tmp_path / "qwen", config, extra)
    tokenizer = tokenizers.load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (-1, 257, 257)
    tokenizer.save(tmp_path / "saved")
    again = tokenizers.load(tmp_path / "saved")
    assert (again.bos_id, again.eos_id, again.pad_id) == (-1, 257, 257)
    assert again.fingerprint == tokenizer.fingerprint
    # Where one of two names is null, the other counts.
    both = {"bos_token": None, "cls_token": "[CLS]", "eos_token": None}
    tokenizer = tokenizers.load(wordpiece(tmp_path / "bert", both))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (2, -1)


def test_marks_are_named_in_a_map_unless_in_the_config(tmp_path):
    extra = ("<|im_start|>", "<|im_end|>", "<|pad|>")
    added = {"257": {"content": "<|im_start|>", "special": True}}
    added |= {"258": {"content": "<|im_end|>", "special": True}}
    config = {"added_tokens_decoder": added, "bos_token": {"content": "<|im_start|>"}}
    names = {"bos_token": "<|im_end|>", "eos_token": {"content": "<|im_end|>"}}
    folder = byte_bpe(tmp_path, config, extra, special_tokens_map__json=names)
    tokenizer = tokenizers.load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (257, 258, 259)
    assert tokenizer.decode([257, *tokenizer.encode("<|im_end|>")]) == "<|im_end|>"


@pytest.mark.parametrize("write_folder", [wordpiece, byte_bpe])
def test_a_vocabulary_has_further_tokens(write_folder, tmp_path):
    size = tokenizers.load(write_folder(tmp_path / "plain", {})).vocab_size
    listed = {"[NAME]": size + 1, "[USER]": size}
    config = {"additional_special_tokens": ["[USER]"]}
    folder = write_folder(tmp_path / "more", config, added_tokens__json=listed)
    tokenizer = tokenizers.load(folder)
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.is_special[size:].tolist() == [True, False]
    ids = tokenizer.encode("[NAME] [USER]").tolist()
    assert ids[0] == size + 1 and size not in ids
    tokenizer.save(tmp_path / "saved")
    assert tokenizers.load(tmp_path / "saved").fingerprint == tokenizer.fingerprint
    folder = write_folder(tmp_path / "hole", config, added_tokens__json={"x y": 999})
    with pytest.raises(UserError, match="'x y' has the id 999, which the vocabulary"):
        tokenizers.load(folder)


def test_a_mark_that_a_file_adds_as_a_word_is_a_mark(tmp_path):
    model = hf.Tokenizer(hf.models.BPE())
    model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(["a"], trainer)
    model.decoder = hf.decoders.ByteLevel()
    model.add_tokens(["<mask>", "<turn>", "<s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    mask = {"mask_token": {"content": "<mask>"}}
    write(tmp_path, tokenizer_config__json={"eos_token": "<turn>", **mask})
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer.token(tokenizer.mask_id) == "<mask>"
    assert tokenizer.token(tokenizer.eos_id) == "<turn>"
    text = "a<mask><turn><s>"
    ids = tokenizer.encode(text)
    assert not tokenizer.is_special[ids].any() and tokenizer.decode(ids) == text
    assert tokenizer.token(int(ids[-1])) == "<s>"
    assert tokenizer.bos_id == -1
    tokenizer.save(tmp_path / "saved")
    assert tokenizers.load(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_t5_has_sentinels_after_the_pieces_of_its_model(tmp_path):
    model = sentencepiece_model(**T5)
    config = {"tokenizer_class": "T5Tokenizer"}
    folder = write(tmp_path / "t5", spiece__model=model, tokenizer_config__json=config)
    tokenizer = tokenizers.load(folder)
    own = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = own.vocab_size()
    assert tokenizer.vocab_size == size + 100
    assert tokenizer.sentinel_ids == tuple(range(size + 99, size - 1, -1))
    assert tokenizer.token(size) == "<extra_id_99>"
    for text in ("a rose <extra_id_0> is", " the  cat ", "明月☃", ""):
        assert tokenizer.encode(text).tolist() == own.encode(text)
    tokenizer.save(tmp_path / "saved")
    again = tokenizers.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.sentinel_ids == tokenizer.sentinel_ids
    # As many as are said; none where the model has them itself.
    write(folder, tokenizer_config__json={**config, "extra_ids": 3})
    assert tokenizers.load(folder).sentinel_ids == (size + 2, size + 1, size)
    model = sentencepiece_model(**T5, user_defined_symbols=["<extra_id_0>"])
    write(folder, spiece__model=model)
    assert tokenizers.load(folder).sentinel_ids == (3,)


def test_tokens_are_added_to_a_sentencepiece_model(tmp_path):
    model = sentencepiece_model(user_defined_symbols=["<|x|>", "<|y|>", "▁cat"])
    size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    added = {
        "0": {"content": "<unk>", "special": True},
        "5": {"content": "▁cat", "special": True},
        f"{size + 1}": {"content": "<|im_end|>", "special": True},
        f"{size}": {"content": "<think>", "special": False},
    }
    config = {"added_tokens_decoder": added, "eos_token": "<|im_end|>"}
    folder = write(tmp_path, tokenizer__model=model, tokenizer_config__json=config)
    tokenizer = tokenizers.load(folder)
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.is_special[[0, 5, size + 1]].all()
    ids = tokenizer.encode("the cat<think><|im_end|>").tolist()
    assert size in ids and 5 not in ids and size + 1 not in ids
    # The model's own end is </s>, but conversations end otherwise.
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (size + 1, 1, 0)
    added["4"] = {"content": "other", "special": True}
    write(folder, tokenizer_config__json=config)
    with pytest.raises(UserError, match="'other' has the id 4"):
        tokenizers.load(folder)


@pytest.mark.parametrize(
    "name, write_folder",
    [
        ("Qwen2Tokenizer", byte_bpe),
        ("CLIPTokenizerFast", byte_bpe),
        ("BertJapaneseTokenizer", wordpiece),
        ("AlbertTokenizer", None),
    ],
)
def test_rules_that_no_vocabulary_holds_are_asked_for(name, write_folder, tmp_path):
    config = {"tokenizer_class": name}
    if write_folder:
        folder = write_folder(tmp_path / "folder", config)
    else:
        model = sentencepiece_model()
        folder = write(tmp_path, spiece__model=model, tokenizer_config__json=config)
    with pytest.raises(UserError, match=f"^{name} has rules of its own; give a folder"):
        tokenizers.load(folder)
    plain = tokenizers.load(wordpiece(tmp_path / "plain", {}))
    plain.save(tmp_path / "json")
    write(tmp_path / "json", tokenizer_config__json=config)
    assert tokenizers.load(tmp_path / "json").kind == "wordpiece"
