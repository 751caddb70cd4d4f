"""Model FLOPs counted by hand on a model whose every size is known."""

from pathlib import Path

import torch

from calrec_lite.method.batch import Collator
from calrec_lite.model.base import add_adapter, load_model
from calrec_lite.recipe import Base, Lora, Loss
from calrec_lite.training.mfu import StepFlops, matmul_rate


def test_a_step_by_hand(tiny_folder: Path, encoder, catalogue) -> None:
    base = Base(model=str(tiny_folder), dtype="float32", load_in_4bit=False, lora=Lora(r=4))
    plain = load_model(tiny_folder, base)
    decoder = plain.get_decoder()
    linear = [m for m in decoder.modules() if isinstance(m, torch.nn.Linear)]
    frozen = sum(m.weight.numel() for m in linear)
    adapter = sum(4 * (m.in_features + m.out_features) for m in linear)
    config = plain.config
    model = add_adapter(plain, base)
    loss = Loss(alpha=0, beta=0, softmax="vocabulary", targets="last")
    row = encoder.row([0, 1], catalogue.tokens, "shop")
    batch = Collator({"shop": catalogue}, loss, int(encoder.start[0]), encoder.pad, 1)([row])
    tokens, supervised = len(row.tokens), len(row.tokens) - row.starts[-1]
    pairs = tokens * (tokens + 1) // 2
    width = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    expected = (
        tokens * (4 * frozen + 6 * adapter)
        + 12 * pairs * width
        + 4 * supervised * config.vocab_size * config.hidden_size
    )
    assert StepFlops(model.get_base_model().get_decoder(), config)(batch) == expected


def test_a_rate_is_that_of_a_machine() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14
