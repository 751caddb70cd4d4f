"""One step in several processes: their gradients add up to those of one process, however each cuts its share."""

from pathlib import Path

import pytest
import torch

from calrec_lite.method.batch import Collator
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.step import two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.processes import joined
from calrec_lite.recipe import Loss
from calrec_lite.text.encoding import Encoder, Row
from calrec_lite.training.shared_step import SharedStep
from tests.method.conftest import collate, gradients
from tests.together import together

CASES = [
    ({}, 100, 100),  # all at once in both
    ({}, 1, 100),  # the first in single rows, the second at once
    ({"softmax": "catalogue", "vocabulary_weight": 0.3}, 2, 2),
    ({"direction": "both"}, 100, 1),
    ({"direction": "item_to_user", "targets": "last"}, 2, 2),
    ({"alpha": 0.0, "beta": 0.0}, 1, 100),
    ({"contrast_per_row": 1}, 2, 1),
]


def shared(
    model: torch.nn.Module, rows: list[Row], encoder: Encoder, catalogue: EncodedCatalogue, loss: Loss, micro: tuple
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradient of this process and the others."""
    processes = joined()
    start = int(encoder.start[0])
    cut = micro[processes.rank]
    batch = Collator({"shop": catalogue}, loss, start, encoder.pad, cut, share=processes.share)(rows)
    model.zero_grad()
    step = SharedStep(processes, batch, loss.vocabulary_weight)
    result = two_tower_step(Towers(model), step.share(batch), loss, torch.Tensor.backward)
    processes.sum_gradients(model.parameters())
    return result.loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_do_not_depend_on_the_number_of_processes(
    model, rows, encoder, catalogue, plain_loss: Loss, tmp_path: Path, size: int
) -> None:
    losses = [plain_loss.model_copy(update=changes) for changes, *_ in CASES]
    micros = [(first, second, first) for _, first, second in CASES]
    one_text = [row for row in rows if len(row.items) == 2][:1] * 3  # the second process has rows, but no text
    cases = [*((loss, rows) for loss in losses), (plain_loss.model_copy(update={"targets": "last"}), one_text)]
    of_all = together(size, tmp_path, _all, model, encoder, catalogue, cases, [*micros, (1, 1, 1)])
    for number, (loss, step) in enumerate(cases):
        whole_loss, whole = gradients(model, collate(step, encoder, catalogue, loss, 100), loss)
        for found in of_all:
            shared_loss, added = found[number]
            torch.testing.assert_close(shared_loss, whole_loss, rtol=1e-5, atol=1e-6)
            for name, gradient in whole.items():
                most = float(gradient.abs().max())
                torch.testing.assert_close(added[name], gradient, rtol=1e-5, atol=1e-5 * most, msg=f"{number} {name}")


def _all(model, encoder, catalogue, cases: list, micros: list) -> list:
    return [
        shared(model, rows, encoder, catalogue, loss, micro) for (loss, rows), micro in zip(cases, micros, strict=True)
    ]
