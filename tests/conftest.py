"""What the tests share: a tiny model and tokenizer made once a run, a small domain, and where real data lies."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calrec_lite.cli import main
from calrec_lite.data.domain import Catalogue, Domain, Sequences
from calrec_lite.data.transitions import Transitions
from calrec_lite.method.catalogue import EncodedCatalogue, encode_catalogue
from calrec_lite.model.compiling import compiler
from calrec_lite.recipe import Loss, Text
from calrec_lite.text.encoding import Encoder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes tests start; a tiny model is slower on many threads
torch.set_num_threads(1)
# Beside other work a machine is slow at times: that says nothing of the code.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
SHARED = Path(__file__).parents[2] / "shared"
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
slow = pytest.mark.skipif(os.environ.get("CALREC_LITE_SLOW") != "1", reason="slow: CALREC_LITE_SLOW=1 runs it")
needs_compiler = pytest.mark.skipif(not shutil.which(compiler()), reason="torch.compile needs a C++ compiler")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first: of two processes one would else end with nothing beside it."""
    slow = ("tests/real/test_smollm2.py", "tests/real/", "tests/method/test_compiled", "tests/training/test_compiled")
    items.sort(key=lambda item: next((i for i, name in enumerate(slow) if name in item.nodeid), len(slow)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the libraries hold stays: looking through it takes .3 s at each of a run's collections of garbage."""
    gc.collect()
    gc.freeze()


WORDS = tuple("red blue green small large steel glass paper tea cup lamp pen book box pot fan rug mat jar key".split())


def item_names(n: int) -> list[str]:
    """Distinct item names that share first words, as real catalogues do."""
    rng = np.random.default_rng(7)
    names: dict[str, None] = {}
    while len(names) < n:
        names[" ".join(rng.choice(WORDS, rng.integers(1, 5)))] = None
    return list(names)


def save_tiny(folder: Path) -> Path:
    """A random Llama of 2 layers with a byte-level BPE tokenizer, saved as transformers saves it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    corpus = [f"The next item bought is as follows. Title: {name}\n" for name in item_names(120)]
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,  # NF4 on a CPU wants multiples of 64
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of one layer over whole words."""
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Title", ":", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains, as files, of users who go round a ring of items."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, n in (("shop", 30), ("other", 20)):
        names = item_names(n)
        lines = ["user,item,time,title"]
        for user in range(40):
            start = rng.integers(n)
            lines += [f"{user},{(start + t) % n},{t},{names[(start + t) % n]}" for t in range(rng.integers(4, 12))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def ring_domains(data: Path) -> dict[str, dict]:
    """The domains of `data` as a recipe names them."""
    return {
        name: {"interactions": str(data / f"{name}.csv"), "fields": {"Title": "title"}, "columns": {"time": "time"}}
        for name in ("shop", "other")
    }


def make_domain(name: str = "shop", items: int = 30, users: int = 24, seed: int = 0) -> Domain:
    """Users who go round a ring of items, so that the last item predicts the next."""
    rng = np.random.default_rng(seed)
    names = sorted(item_names(items))
    histories = [
        [(start + step) % items for step in range(length)]
        for start, length in zip(rng.integers(0, items, users), rng.integers(3, 12, users))
    ]
    catalogue = Catalogue(
        [f"id{i}" for i in range(items)], [{"Title": n} for n in names], {f"id{i}": i for i in range(items)}
    )
    offsets = np.cumsum([0, *map(len, histories)])
    flat = np.array([i for history in histories for i in history], np.int32)
    return Domain(
        name, catalogue, Sequences([f"u{u}" for u in range(users)], flat, offsets, None), {"fingerprint": "0"}
    )


@pytest.fixture(scope="session")
def domain() -> Domain:
    return make_domain()


@pytest.fixture(scope="session")
def encoder(tiny_folder: Path) -> Encoder:
    from calrec_lite.model.tokenizer import load_tokenizer

    return Encoder(load_tokenizer(tiny_folder), Text(max_items=6))


@pytest.fixture(scope="session")
def catalogue(domain: Domain, encoder: Encoder) -> EncodedCatalogue:
    return encode_catalogue(domain.name, domain.catalogue, encoder, domain.train_counts(), prior=1.0, logit_scale=0.5)


@pytest.fixture(scope="session")
def mixed(domain: Domain, encoder: Encoder) -> EncodedCatalogue:
    """As `catalogue`, where a user's own transitions have a share in the prior."""
    counted = Transitions.of(domain)
    options: dict = {"prior": 1.0, "logit_scale": 0.5, "collaborative": 0.6, "transitions": counted}
    return encode_catalogue(domain.name, domain.catalogue, encoder, domain.train_counts(), **options)


@pytest.fixture
def plain_loss() -> Loss:
    """Every term with weight, every target an anchor."""
    return Loss(alpha=0.2, beta=0.1, tau=0.3, softmax="vocabulary", contrast_per_row=None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not BROWSER:
        pytest.skip("no Chromium or Chrome here; Debian has it as `chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"] if os.geteuid() == 0 else ["--disable-gpu"]
        opened = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield opened
        opened.close()


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command that runs in this process."""
    monkeypatch.setattr(sys, "argv", ["calrec-lite", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
