"""The number type follows the machine: chosen by a probe, kept by a run, and nothing is multiplied in another one."""

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.export.bundle import export_run
from calrec_lite.fitting.opening import open_recommender
from calrec_lite.method.towers import Towers
from calrec_lite.model import device as device_module
from calrec_lite.model.base import load_model
from calrec_lite.model.device import Choice, choose_dtype, dtype_here, half_time, slow_at
from calrec_lite.recipe import Base
from calrec_lite.recipe.file import check_recipe
from calrec_lite.recommend import Recommender
from calrec_lite.run import Run
from calrec_lite.training.stage import train_run
from tests.conftest import needs_compiler
from tests.training.conftest import values

GPU = torch.device("cuda")
OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
PROBE = """
from pathlib import Path
from calrec_lite.model.device import Choice, choose_dtype, half_time
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from calrec_lite.method.towers import Towers
from calrec_lite.recipe import Base
print(choose_dtype(Base(model="m"), Path("nowhere")).dtype, half_time(torch.bfloat16, 576, 1536))
"""


def takes(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """A machine on which bfloat16 takes so many times as long as float32."""
    monkeypatch.setattr(device_module, "half_time", lambda half, hidden, inner: factor)


def test_the_probe_leaves_threads_and_random_numbers_alone() -> None:
    before, drawn = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    half_time.cache_clear()
    try:
        assert 0.01 < half_time(torch.bfloat16, 576, 1536) < 1000
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), drawn)
    finally:
        torch.set_num_threads(before)


def test_a_process_probes_once_and_a_tiny_layer_is_no_matter_of_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers in one process are two fingerprints of one model, and all item vectors are encoded again."""
    half_time.cache_clear()
    assert half_time(torch.bfloat16, 64, 128) == 1.0
    first = half_time(torch.bfloat16, 576, 1536)
    monkeypatch.setattr(device_module, "_seconds", lambda states, weight: 1.0)
    assert half_time(torch.bfloat16, 576, 1536) == first
    half_time.cache_clear()
    assert half_time(torch.bfloat16, 576, 1536) == 1.0
    half_time.cache_clear()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="imitates an older x86 processor")
def test_a_processor_without_bfloat16_computes_in_float32() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=os.environ | OLDER, capture_output=True, text=True, check=True
    )
    dtype, factor = done.stdout.split()
    assert dtype == "float32"
    assert float(factor) > 2


@pytest.mark.parametrize(("factor", "expected"), [(0.3, "bfloat16"), (0.97, "float32"), (20.0, "float32")])
def test_the_type_follows_the_probe(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, factor: float, expected: str
) -> None:
    takes(monkeypatch, factor)
    base = Base(model=str(tiny_folder), load_in_4bit=False)
    assert base.dtype == "auto"
    choice = choose_dtype(base, tiny_folder)
    assert choice.dtype == expected
    assert f"{factor:.2g} times" in choice.why
    assert load_model(tiny_folder, base).dtype is getattr(torch, expected)


def test_the_probe_is_of_the_bases_own_sizes(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(device_module, "half_time", lambda half, *sizes: asked.append(sizes) or 1.0)
    choose_dtype(Base(model="m"), tiny_folder)
    assert asked == [(64, 128)]


@pytest.mark.parametrize(
    ("capability", "quantised", "expected"),
    [
        ((7, 5), True, "float16"),
        ((7, 5), False, "float32"),
        ((8, 0), True, "bfloat16"),
        ((8, 9), False, "bfloat16"),
        ((9, 0), True, "bfloat16"),
    ],
)
def test_a_gpus_compute_capability_decides(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], quantised: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    choice = choose_dtype(Base(model="m", load_in_4bit=quantised), Path("nowhere"), GPU)
    assert choice.dtype == expected
    assert f"compute capability {capability[0]}.{capability[1]}" in choice.why
    assert (slow_at("bfloat16", Path("nowhere"), GPU) is None) == (expected == "bfloat16")
    assert slow_at("float16", Path("nowhere"), GPU) is None
    monkeypatch.setattr(device_module, "device", lambda: GPU)
    assert dtype_here(Path("nowhere")).dtype == ("bfloat16" if expected == "bfloat16" else "float32")


def test_an_asked_type_is_obeyed_and_a_slow_one_is_said(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    takes(monkeypatch, 20.4)
    assert choose_dtype(Base(model="m", dtype="bfloat16"), tiny_folder).dtype == "bfloat16"
    assert slow_at("float32", tiny_folder) is None
    train_run(Run.start(check_recipe(short(tiny_folder, data, dtype="bfloat16")), tmp_path))
    said = capsys.readouterr().out
    assert "device: CPU, 1 thread" in said
    assert "; bfloat16: as base.dtype asks\n" in said
    assert "WARNING: bfloat16 is about 20 times slower here than float32" in said
    takes(monkeypatch, 0.5)
    assert slow_at("bfloat16", tiny_folder) is None


def short(tiny_folder: Path, data: Path, **base: Any) -> dict[str, Any]:
    """A recipe of one stage of two steps."""
    made = values(tiny_folder, data, **base)
    made["stages"] = [{"name": "target", "domains": ["shop"], "max_steps": 2}]
    return made


def test_a_run_keeps_its_type_on_another_machine(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes(monkeypatch, 0.5)
    recipe = check_recipe(short(tiny_folder, data, dtype="auto"))
    run = Run.start(recipe, tmp_path)
    train_run(run)
    assert json.loads((run.folder / "run.json").read_text())["dtype"]["dtype"] == "bfloat16"

    takes(monkeypatch, 20.0)  # the other machine
    again = Run.start(recipe, tmp_path)
    assert again.dtype == run.dtype
    assert evaluate_run(again)["dtype"] == "bfloat16"
    assert open_recommender(again, again.final()).strategies.towers.head.dtype is torch.bfloat16
    exported = export_run(again, tmp_path / "export")
    assert json.loads((exported / "calrec.json").read_text())["dtype"] == "bfloat16"
    assert Recommender.from_pretrained(exported).strategies.towers.head.dtype is torch.float32  # chooses anew
    with pytest.raises(InputError, match="dtype: fp16; write one of auto, bfloat16, float16, float32"):
        Recommender.from_pretrained(exported, dtype="fp16")  # type: ignore[arg-type]
    asked = Recommender.from_pretrained(exported, dtype="bfloat16")
    assert asked.strategies.towers.head.dtype is torch.bfloat16

    assert Run.start(check_recipe(short(tiny_folder, data, dtype="bfloat16")), tmp_path).dtype.dtype == "bfloat16"
    with pytest.raises(InputError, match="another recipe .*differs in base"):
        Run.start(check_recipe(short(tiny_folder, data, dtype="float32")), tmp_path)


def test_a_run_begun_with_a_type_keeps_it_under_a_recipe_that_says_auto(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes(monkeypatch, 20.0)
    Run.start(check_recipe(short(tiny_folder, data, dtype="bfloat16")), tmp_path)
    assert Run.start(check_recipe(short(tiny_folder, data, dtype="auto")), tmp_path).asked_or_chosen_dtype == "auto"
    begun = Run.start(check_recipe(short(tiny_folder, data, dtype="bfloat16")), tmp_path)
    begun.stages[0].adapter.mkdir(parents=True)  # something was trained; by an older version, which kept no type
    assert Run.start(check_recipe(short(tiny_folder, data, dtype="auto")), tmp_path).dtype.dtype == "bfloat16"


def test_before_a_model_was_loaded_a_recipe_may_still_ask_for_a_type(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    Run.start(check_recipe(short(tiny_folder, data, dtype="auto")), tmp_path)
    assert Run.start(check_recipe(short(tiny_folder, data, dtype="bfloat16")), tmp_path).dtype.dtype == "bfloat16"


@pytest.mark.parametrize("scale", [1.0, 1e5], ids=["within its range", "beyond it"])
def test_float16_is_tried_before_training_and_float32_stands_in(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """As on a card before Ampere, with NF4: the second base's states are larger than any number of float16."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= scale
    shutil.copytree(tiny_folder, tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    monkeypatch.setattr("calrec_lite.model.device.choose_dtype", lambda *of: Choice("float16", "an older card"))
    recipe = check_recipe(short(tmp_path / "base", data, dtype="auto", load_in_4bit=True))
    run = Run.start(recipe, tmp_path)
    train_run(run)
    (facts,) = run.stage_metrics().values()
    expected = "float16" if scale == 1 else "float32"
    assert (facts["dtype"], run.dtype.dtype) == (expected, expected)
    assert math.isfinite(facts["valid_nats_after"])
    assert ("no numbers in a trial" in run.dtype.why) == (scale > 1)
    assert evaluate_run(run)["dtype"] == expected


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "attention", "gemv_4bit", "int8")


class Multiplied(TorchDispatchMode):
    """Counts products by the floating number types that go into them."""

    def __init__(self) -> None:
        super().__init__()
        self.types: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if any(part in name for part in PRODUCTS):
            for value in (*args, *(kwargs or {}).values()):
                if isinstance(value, torch.Tensor) and value.dtype.is_floating_point:
                    self.types[value.dtype] += 1
            if "gemv_4bit" in name:  # bitsandbytes' fused kernel: bfloat16 inside, whatever goes in
                self.types[torch.bfloat16] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("base", "halves"),
    [
        ({"dtype": "float32"}, False),
        ({"dtype": "float32", "load_in_4bit": True}, False),
        ({"dtype": "bfloat16"}, True),
    ],
    ids=["float32", "float32 NF4", "bfloat16"],
)
def test_nothing_but_the_runs_type_is_multiplied(
    tiny_folder: Path, data: Path, tmp_path: Path, base: dict[str, Any], halves: bool
) -> None:
    """Training, validation, merging, lists by every strategy, and the export's; the last case shows that it counts."""
    run = Run.start(check_recipe(short(tiny_folder, data, **base)), tmp_path)
    with Multiplied() as counted:
        train_run(run)
        exported = export_run(run, tmp_path / "export")
        for strategy in ("beam", "sample", "dense", "rerank"):
            for quantised in (False, bool(base.get("load_in_4bit"))):
                recommender = Recommender.from_pretrained(exported, quantised, strategy, dtype=base["dtype"])
                histories = [run.domain("shop").catalogue.titles[:3]]
                assert recommender.recommend(histories, k=3)[0]
    assert counted.types[torch.float32] > 0  # of a bfloat16 run: exact scores, vectors
    assert (counted.types[torch.bfloat16] > 0) == halves
    assert not counted.types[torch.float16]


@needs_compiler
def test_compiled_kernels_are_kept_apart_by_the_processors_instructions(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of one set of instructions, read by a process with another, gave NaN or crashed."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    towers = Towers(load_model(tiny_folder, Base(model=str(tiny_folder), dtype="float32", load_in_4bit=False)))
    towers.compile()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith("mine")  # torch makes it a whole path
    for default in (None, default_cache_dir()):  # libraries write the default there as they are imported
        if default is None:
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        else:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default)
        towers.compile()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith(torch.backends.cpu.get_cpu_capability())
