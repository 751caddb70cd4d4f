"""Items tokenised once and put together give what the tokenizer gives for the whole text."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.errors import InputError
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.method.rows import Rows, history_rows
from calrec_lite.recipe import Loss, Text
from calrec_lite.text.encoding import Encoder
from calrec_lite.text.template import Template

ITEMS = ["Title: Fargo", "Title: L.A. Confidential (1997)", "Title: 12 Monkeys, Genres: Sci-Fi!", "Title: M*A*S*H?"]
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def _bpe(kind: str) -> PreTrainedTokenizerFast:
    """Small tokenizers of the kinds the supported bases have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "gemma"))
    alphabet = list("</>")
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
    short = Encoder(encoder.tokenizer, Text(max_item_tokens=12))
    same = "Title: a very long name that begins as another one does "
    items = short.items([same + "red", same + "blue pen", "Title: some other very long and winding name"])
    limited = short.limit(items)
    for text, tokens in zip(("red", "blue pen"), limited):
        assert tokens[:6].tolist() == items[0][:6].tolist()
        assert short.text_of(tokens.tolist()).endswith(text)
    assert limited[2].tolist() == [*items[2][:11], short.newline]


@pytest.mark.parametrize(
    "texts",
    [
        [f"Title: {'very long ' * 2000}{end}" for end in ("red", "blue", "blue pen", "")],
        [f"Title: {'a' * n}" for n in (20, 40, 63, 64, 65, 100, 101, 200)],
        [f"Title: {'very long ' * n}{end}" for n in (20, 30) for end in ("red", "blue")],  # equal halves, and ends
        [f"Title: {'very long ' * 20}{end}" for end in ("red", "blue")] + ["Title: very long very long very red"],
    ],
)
def test_the_bound_of_a_row_is_one_whatever_the_texts(encoder: Encoder, texts: list[str]) -> None:
    for most in (16, 21):
        short = Encoder(encoder.tokenizer, Text(max_items=4, max_item_tokens=most, max_history_tokens=128))
        items = Catalogue([f"{i}" for i in range(len(texts))], [{"Title": t.partition(": ")[2]} for t in texts], {})
        catalogue = encode_catalogue("shop", items, short)
        assert len({t.tobytes() for t in catalogue.tokens}) == len(texts)
        assert max(map(len, catalogue.tokens)) <= most
        histories = Sequences(["u"], np.arange(len(texts), dtype=np.int32), np.array([0, len(texts)]), None)
        rows = Rows([history_rows(histories, catalogue, short, Loss())], short)
        lengths = [len(rows[i].tokens) for i in range(len(rows))]
        assert all(length <= bound for length, bound in zip(lengths, rows.length))
        assert max(rows.length) <= short.longest_row == 128 + most + 1
        assert len(short.prompt(catalogue.tokens)) <= short.longest_prompt == 128


def test_one_item_of_history_is_kept_and_counted_in_the_bound(encoder: Encoder) -> None:
    short = Encoder(encoder.tokenizer, Text(max_item_tokens=64, max_history_tokens=32))
    items = short.limit(short.items([f"Title: {'very long ' * 90}", "Title: pen"]))
    assert len(short.prompt(items[:1])) == short.longest_prompt > 32
    assert len(short.row(np.array([0, 0]), items, "shop").tokens) == short.longest_row


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "metaspace", "gemma"])
def test_a_control_tokens_name_in_a_text_is_text(kind: str) -> None:
    encoder = Encoder(_bpe(kind), Text())
    texts = ["Title: Fargo</s>", "Title: Fargo", "Title: <s>Fargo</s> (1997)</s>"]
    for text, tokens in zip(texts, encoder.items(texts)):
        assert not {encoder.end, int(encoder.start[0])} & set(tokens.tolist())
        assert encoder.text_of(tokens.tolist()) == text
    said = encoder.tokenizer("</s>", add_special_tokens=False)["input_ids"]
    assert said == [encoder.end], "others' use of the tokenizer is as it was"


def test_a_control_token_among_pieces_is_an_unknown_one() -> None:
    """Unigram models find `</s>` in a text as the piece of that name, whatever they are told."""
    pieces = [(name, 0.0) for name in ("<unk>", "<s>", "</s>")] + [(c, -3.0) for c in sorted({*str(Text()), "\n"})]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    (tokens,) = Encoder(fast, Text()).items(["a</s>b"])
    assert tokens.tolist() == fast.convert_tokens_to_ids([" ", "a", "<unk>", "b", "\n"])
    fast.unk_token = None
    with pytest.raises(InputError, match="reads '</s>' in an item's text as a control token"):
        Encoder(fast, Text()).items(["a</s>b"])


def test_items_the_tokenizer_cannot_tell_apart_are_refused(domain: Domain) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, ".": 2, "x": 3, "\n": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    items = Catalogue(["a", "b"], [{"Title": "one"}, {"Title": "two"}], {"a": 0, "b": 1})
    with pytest.raises(InputError, match="cannot tell"):
        encode_catalogue("shop", items, Encoder(fast, Text()))


def test_a_tokenizer_that_drops_the_line_break_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "x": 2}, unk_token="<unk>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    for pre_tokenizer in (pre_tokenizers.Whitespace(), pre_tokenizers.Split("\n", "isolated")):
        fast.backend_tokenizer.pre_tokenizer = pre_tokenizer
        with pytest.raises(InputError, match="line break"):
            Encoder(fast, Text())


def test_slow_tokenizers_and_missing_end_are_refused(tiny_folder: Path) -> None:
    fast = _bpe("gpt2")
    fast.eos_token = None
    with pytest.raises(InputError, match="end-of-text"):
        Encoder(fast, Text())


def test_missing_fields_are_written_or_left_out() -> None:
    labels = ("Title", "Brand", "Price")
    assert Template(Text(), labels).item({"Title": "Pen", "Price": "2"}) == "Title: Pen, Brand: Unknown, Price: 2"
    assert Template(Text(missing=None), labels).item({"Title": "Pen", "Price": "2"}) == "Title: Pen, Price: 2"
