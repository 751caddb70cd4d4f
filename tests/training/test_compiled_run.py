"""A whole run with layers fused by torch.compile."""

from pathlib import Path

import torch
from torch._dynamo.utils import counters

from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.conftest import needs_compiler, slow
from tests.training.conftest import values, weights


@slow  # a minute and a half of compiling
@needs_compiler
def test_a_run_with_compiled_layers_ends_with_the_same_weights(
    trained: Run, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    recipe = values(tiny_folder, data)
    recipe["optim"]["compile"] = True
    recipe["stages"] = recipe["stages"][:1]
    counters.clear()
    run = Run.start(check_recipe(recipe), tmp_path)
    train_run(run)
    assert counters["stats"]["unique_graphs"] > 0
    for own, plain in zip(run.stages, trained.stages):
        of_plain = weights(plain.merged)
        for name, weight in weights(own.merged).items():
            torch.testing.assert_close(weight, of_plain[name], rtol=1e-3, atol=1e-4, msg=name)
