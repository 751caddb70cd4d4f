"""A trimmed vocabulary computes the same bits as the whole one, and nothing of it is lost."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from calrec_lite.method.batch import Collator
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import add_adapter
from calrec_lite.model.trimming import Trimmed, spared_bytes
from calrec_lite.recipe import Base, Loss
from calrec_lite.text.encoding import Encoder, Row
from tests.method.conftest import FP32, adapted, gradients

LOSSES = {
    "catalogue": Loss(alpha=0.125, beta=0.025, softmax="catalogue"),
    "vocabulary": Loss(alpha=0.125, beta=0.025, softmax="vocabulary"),
}


@pytest.fixture(scope="module")
def rows(encoder: Encoder, catalogue: EncodedCatalogue) -> list[Row]:
    return [encoder.row(np.array(h), catalogue.tokens, "shop", u) for u, h in enumerate([[0, 1, 2, 3], [5, 2], [7, 8]])]


@pytest.fixture(scope="module")
def ids(encoder: Encoder, catalogue: EncodedCatalogue) -> np.ndarray:
    return encoder.ids_with(catalogue.tokens)


def gemma(encoder: Encoder) -> torch.nn.Module:
    """Its embedding multiplies what it looks up, and knows an id of padding that no row has."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    torch.manual_seed(0)
    config = Gemma3TextConfig(vocab_size=len(encoder.tokenizer), num_key_value_heads=1, pad_token_id=340, **shape)
    base = Base.model_validate({"model": "gemma", "lora": {"r": 4}, **FP32})
    model = add_adapter(Gemma3ForCausalLM(config), base).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def parts(model: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.Module]:
    causal = model.get_base_model()
    return causal.get_input_embeddings(), causal.get_output_embeddings()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("softmax", list(LOSSES))
@pytest.mark.parametrize("micro", [1, 100])
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_loss_and_gradients_are_the_same_bits(
    tiny_folder: Path,
    encoder: Encoder,
    catalogue: EncodedCatalogue,
    rows,
    ids,
    kind: str,
    softmax: str,
    tied,
    micro: int,
) -> None:
    model = adapted(tiny_folder, 0, **FP32) if kind == "llama" else gemma(encoder)
    embedding, head = parts(model)
    head.weight = embedding.weight if tied else torch.nn.Parameter(embedding.weight.detach().clone(), False)
    collator = Collator({"shop": catalogue}, LOSSES[softmax], int(encoder.start[0]), encoder.pad, micro)
    expected = gradients(model, collator(rows), LOSSES[softmax])
    before = embedding.weight, head.weight, embedding.weight.detach().clone(), embedding.padding_idx
    forks = softmax == "catalogue"
    spared = spared_bytes(model, ids, forks)
    trimmed = Trimmed(model, ids, forks)
    found = gradients(model, collator(rows), LOSSES[softmax])
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())
    vocabulary, width = before[2].shape
    assert len(embedding.weight) == (vocabulary if tied and not forks else len(ids) + 1)
    assert len(head.weight) == (len(ids) + 1 if forks else vocabulary)
    kept = {id(layer.weight): layer.weight.nbytes for layer in (embedding, head)}
    assert spared == (1 if tied else 2) * vocabulary * width * 4 - sum(kept.values())
    for _ in range(2):
        trimmed.restore()
        assert (embedding.weight, head.weight) == (before[0], before[1])
        assert torch.equal(embedding.weight, before[2])
        assert embedding.padding_idx == before[3]
    assert torch.equal(gradients(model, collator(rows), LOSSES[softmax])[0], expected[0])


def test_what_is_not_kept_is_no_number_and_logits_of_all_tokens_are_refused(tiny_folder: Path, ids: np.ndarray) -> None:
    model = adapted(tiny_folder, 0, **FP32)
    foreign = int(np.setdiff1d(np.arange(len(parts(model)[0].weight)), ids)[0])
    trimmed = Trimmed(model, ids, head=True)
    towers = Towers(model)
    read = torch.tensor([[int(ids[1]), int(ids[2])], [int(ids[1]), foreign]])
    states = towers.states(read)
    assert bool(states[0].isfinite().all())
    assert bool(states[1, 1].isnan().all())
    with pytest.raises(RuntimeError, match="while it is trained this model has no logits of all tokens"):
        model(input_ids=read)
    trimmed.restore()
    assert bool(model(input_ids=read).logits.isfinite().all())


def test_what_is_trained_stays_whole(tiny_folder: Path, ids: np.ndarray) -> None:
    model = adapted(tiny_folder, 0, **FP32)
    parts(model)[0].weight.requires_grad_(True)
    assert spared_bytes(model, ids, True) == 0
    Trimmed(model, ids, True)
    assert len(parts(model)[0].weight) > len(ids) + 1
