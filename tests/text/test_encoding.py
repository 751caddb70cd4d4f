"""Items tokenised once and put together give what the tokenizer gives for the whole text."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from calrec_lite.data.domain import Catalogue, Domain
from calrec_lite.errors import InputError
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.recipe import Text
from calrec_lite.text.encoding import Encoder
from calrec_lite.text.template import Template

ITEMS = ["Title: Fargo", "Title: L.A. Confidential (1997)", "Title: 12 Monkeys, Genres: Sci-Fi!", "Title: M*A*S*H?"]
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def _bpe(kind: str) -> PreTrainedTokenizerFast:
    """Small tokenizers of the kinds the supported bases have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "gemma"))
    alphabet: list[str] = []
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind == "llama3":  # punctuation takes the line break after it along
        from tokenizers import Regex

        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    elif kind == "metaspace":  # a mark before the first word of every text
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    elif kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # its merges were learnt within words
        mark = decoders.Replace("▁", " ")
        tokenizer.decoder = decoders.Sequence([mark, decoders.ByteFallback(), decoders.Fuse()])
    if kind == "metaspace":
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    if kind in ("gpt2", "llama3"):
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, max_token_length=12
    )
    text = Text()
    tokenizer.train_from_iterator([f"{text.next} {i}\n" for i in ITEMS] * 3, trainer)
    if kind == "gemma":  # but are applied to whole texts
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "metaspace", "gemma"])
def test_assembled_ids_equal_those_of_the_whole_text(kind: str) -> None:
    tokenizer, text = _bpe(kind), Text()
    encoder = Encoder(tokenizer, text)
    items = encoder.items(ITEMS)
    for history in (ITEMS[:1], ITEMS[1:3], ITEMS):
        prompt = encoder.prompt([items[ITEMS.index(i)] for i in history])
        whole = tokenizer(Template(text, ("Title",)).prompt(history), add_special_tokens=False)["input_ids"]
        assert prompt[1:].tolist() == whole
        assert prompt[0] == tokenizer.bos_token_id
    assert encoder.prompt([])[1:].tolist() == tokenizer(text.first, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "metaspace", "gemma"])
def test_generated_ids_read_as_the_item_they_spell(kind: str) -> None:
    """Also where the token that ends an item holds its last "!" too; what a tokenizer adds to a break is cut off."""
    encoder = Encoder(_bpe(kind), Text())
    written = encoder.items(ITEMS)
    stop = [tokens[-1] for tokens in written]
    assert set(stop) <= set(encoder.stops.tolist())
    assert len(set(stop)) > 1 or kind not in ("llama3", "metaspace")  # which merge "!" and the line break
    for text, tokens in zip(ITEMS, written):
        assert encoder.text_of(tokens) == text
        assert encoder.text_of([*tokens, *written[0]]) == text
        assert encoder.text_of([*tokens[:-1], encoder.end]) == encoder.text_of(tokens[:-1])


def test_row_layout_and_supervised_stop(encoder: Encoder, catalogue: EncodedCatalogue) -> None:
    row = encoder.row(np.array([3, 1, 4]), catalogue.tokens, "shop")
    for k, item in enumerate(row.items):
        assert row.tokens[row.starts[k] : row.ends[k]].tolist() == catalogue.tokens[item].tolist()
    assert row.tokens[-1] == encoder.end
    assert row.ends[-1] == len(row.tokens) - 1
    assert row.tokens[: row.starts[2]].tolist() == encoder.prompt([catalogue.tokens[3], catalogue.tokens[1]]).tolist()


def test_oldest_items_go_first_and_the_target_is_never_cut(encoder: Encoder, catalogue: EncodedCatalogue) -> None:
    short = Encoder(encoder.tokenizer, Text(max_items=20, max_history_tokens=120))
    row = short.row(np.arange(10), catalogue.tokens, "shop")
    assert row.items.tolist() == list(range(10 - len(row.items), 10))
    assert 2 <= len(row.items) < 10
    assert row.starts[-1] <= 120
    assert row.tokens[row.starts[-1] : row.ends[-1]].tolist() == catalogue.tokens[9].tolist()
    assert len(short.row(np.arange(10), [np.arange(80)] * 10, "shop").items) == 2  # one item of history, however long


def test_limit_cuts_items_but_keeps_them_apart(encoder: Encoder) -> None:
    short = Encoder(encoder.tokenizer, Text(max_item_tokens=8))
    same = "Title: a very long name that begins as another one does "
    items = short.items([same + "first", same + "second", "Title: some other very long and winding name"])
    limited = short.limit(items)
    assert limited[0].tolist() == items[0].tolist()
    assert limited[1].tolist() == items[1].tolist()
    assert len(limited[2]) == 8
    assert limited[2][-1] == short.newline


def test_items_the_tokenizer_cannot_tell_apart_are_refused(domain: Domain) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, ".": 2, "x": 3, "\n": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    items = Catalogue(["a", "b"], [{"Title": "one"}, {"Title": "two"}], {"a": 0, "b": 1})
    with pytest.raises(InputError, match="cannot tell"):
        encode_catalogue("shop", items, Encoder(fast, Text()))


def test_slow_tokenizers_and_missing_end_are_refused(tiny_folder: Path) -> None:
    fast = _bpe("gpt2")
    fast.eos_token = None
    with pytest.raises(InputError, match="end-of-text"):
        Encoder(fast, Text())


def test_missing_fields_are_written_or_left_out() -> None:
    labels = ("Title", "Brand", "Price")
    assert Template(Text(), labels).item({"Title": "Pen", "Price": "2"}) == "Title: Pen, Brand: Unknown, Price: 2"
    assert Template(Text(missing=None), labels).item({"Title": "Pen", "Price": "2"}) == "Title: Pen, Price: 2"
