"""The trainer as a library user has it: models by name or loaded, histories and a catalogue from Python."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from calrec_lite import CALRecConfig, CALRecTrainer, Recommender
from calrec_lite.errors import InputError
from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.recipe import Recommend, Text
from tests.conftest import item_names

NAMES = item_names(30)
CATALOGUE = [{"item": f"id{i}", "title": name, "shelf": i % 3} for i, name in enumerate(NAMES)]
HISTORIES = [{"user": f"u{u}", "items": [f"id{(u + t) % 30}" for t in range(3 + u % 6)]} for u in range(24)]


def config(folder: Path, **options: Any) -> CALRecConfig:
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "text": Text(max_items=6), "use_cpu": True} | options
    return CALRecConfig(output_dir=str(folder / "out"), disable_tqdm=True, **options)


def trainer(model: Any, folder: Path, args: dict | None = None, **options: Any) -> CALRecTrainer:
    given = {"train_dataset": HISTORIES, "catalogue": CATALOGUE} | options
    return CALRecTrainer(model, config(folder, **(args or {})), **given)


def test_from_a_model_to_lists_and_back_from_disk(tiny_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)  # by name it might be bfloat16 here
    args = {"recommend": Recommend(strategy="rerank", transitions=2.0, beams=30, rerank=30)}
    made = trainer(model, tmp_path, args, eval_dataset=HISTORIES[:5], peft_config=LoraConfig(r=4))
    made.train()
    assert made.evaluate()["eval_nats_per_item"] > 0
    made.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    recommender = made.recommender()
    lists = recommender.recommend([["id3", "id9"], ["id1"]], k=10)
    assert [len({i.item for i in items}) for items in lists] == [10, 10]
    assert not {"id3", "id9"} & {i.item for i in lists[0]}
    folder = recommender.save_pretrained(tmp_path / "model")
    again = Recommender.from_pretrained(folder, device="cpu", dtype="float32")
    assert again.recommend([["id3", "id9"], ["id1"]], k=10)[0][0].title in NAMES
    for one, other in zip(lists, again.recommend([["id3", "id9"], ["id1"]], k=10)):
        # merged weights are rounded to the base's own type, which here is float32
        assert [i.item for i in one] == [i.item for i in other]
        assert [i.score for i in one] == pytest.approx([i.score for i in other], abs=1e-3)
    copied = Recommender.from_pretrained(folder, strategy="dense").save_pretrained(tmp_path / "copy")
    assert Recommender.from_pretrained(copied).options.strategy == "dense"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="no earlier export"):
        recommender.save_pretrained(tmp_path / "other")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_loaded_model_generates_as_before_and_its_base_is_saved_from_memory(
    tiny_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
    model.config._name_or_path = ""  # made in memory: nobody knows where from
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    prompt = tokenizer("The next item", return_tensors="pt")
    before = adapted.generate(**prompt, max_new_tokens=4, do_sample=False)
    with pytest.raises(InputError, match="processing_class"):
        trainer(adapted, tmp_path)
    made = trainer(adapted, tmp_path, processing_class=tokenizer)
    made.train()
    after = adapted.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert after.shape[1] > prompt["input_ids"].shape[1]
    assert before.shape[0] == after.shape[0]
    folder = made.recommender().save_pretrained(tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    states = [m(**prompt).logits.float() for m in (adapted.eval(), merged.eval())]
    assert torch.allclose(*states, atol=1e-4 if dtype is torch.float32 else 0.2)


def test_in_four_bits(tiny_folder: Path, tmp_path: Path) -> None:
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    made = trainer(str(tiny_folder), tmp_path, quantization_config=four_bits)
    made.train()
    folder = made.recommender().save_pretrained(tmp_path / "model")
    assert "quantization_config" not in (folder / "config.json").read_text()
    assert Recommender.from_pretrained(folder).recommend([["id3"]], k=3)[0]


def test_what_datasets_and_pandas_give_is_taken_and_given_back(tiny_folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    options = {
        "train_dataset": datasets.Dataset.from_list(HISTORIES),
        "catalogue": datasets.Dataset.from_list(CATALOGUE),
    }
    made = trainer(str(tiny_folder), tmp_path, **options)
    made.train()
    recommender = made.recommender()
    frame = pd.DataFrame({"user": ["a", "b"], "history": [["id1", "id2"], ["id7"]]})
    out = recommender.recommend_table(frame, k=4)
    assert list(out.columns) == ["user", "rank", "item", "title", "score", "why"]
    assert out["user"].tolist() == ["a"] * 4 + ["b"] * 4
    assert out["rank"].tolist() == [1, 2, 3, 4] * 2
    same = recommender.recommend_table(datasets.Dataset.from_pandas(frame), k=4)
    assert isinstance(same, datasets.Dataset)
    assert same["item"][:] == out["item"].tolist()
    with pytest.raises(InputError, match="no column `history`"):
        recommender.recommend_table(pd.DataFrame({"user": [1]}))
    with pytest.raises(InputError, match="DataFrame"):
        recommender.recommend_table([["id1"]])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"catalogue": None}, "catalogue: is missing"),
        ({"train_dataset": None}, "train_dataset: is missing"),
        ({"catalogue": []}, "holds no item"),
        ({"catalogue": [{"title": "a"}]}, "record 0 has no `item`"),
        ({"catalogue": [{"item": 1, "title": "a"}, {"item": 1, "title": "b"}]}, "a second item of id `1`"),
        ({"catalogue": [{"item": 1, "title": " "}]}, "item `1` has no text"),
        ({"train_dataset": [{"items": ["id1", "id200"]}]}, "no item `id200`; did you mean `id20`"),
        ({"train_dataset": [{"history": ["id1"]}]}, "record 0 has no list `items`"),
        ({"train_dataset": [{"items": "id1"}]}, "record 0 has no list `items`"),
        ({"train_dataset": [{"items": 5}]}, "record 0 has no list `items`"),
        ({"catalogue": [{"item": 1, "title": "a", "Title": "b"}]}, "two fields of the same label"),
        ({"peft_config": LoraConfig(init_lora_weights="pissa")}, "changed the base before training"),
        ({"train_dataset": [{"items": ["id1"]}]}, "no history has two items"),
        ({"train_dataset": []}, "holds no history"),
        ({"eval_dataset": [{"items": ["id1"]}]}, "eval_dataset: no history has two items"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_at_once(tiny_folder: Path, tmp_path: Path, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        trainer(str(tiny_folder), tmp_path, **options)


def test_models_and_settings_that_do_not_fit_together(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a folder here nor a Hub id|no config"):
        trainer(str(tmp_path), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with pytest.raises(InputError, match="loaded already"):
        trainer(model, tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    adapted = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM"))
    with pytest.raises(InputError, match="an adapter already"):
        trainer(adapted, tmp_path, peft_config=LoraConfig(r=8))
    with pytest.raises(InputError, match="micro_batch_size"):
        config(tmp_path, micro_batch_size=0)
    with pytest.raises(InputError, match="gradient_accumulation_steps"):
        config(tmp_path, gradient_accumulation_steps=2)
    made = trainer(adapted, tmp_path, processing_class=load_tokenizer(tiny_folder))
    with pytest.raises(NotImplementedError, match="recommender"):
        made.predict([])
    with pytest.raises(InputError, match="was it trained"):
        made.recommender().save_pretrained(tmp_path / "untrained")
    assert not (tmp_path / "untrained").exists()


def test_adapters_that_would_be_lost_are_refused_and_the_model_stays_as_it_was(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with pytest.raises(InputError, match="holds no history"):
        trainer(model, tmp_path, train_dataset=[])
    assert not any("lora" in name for name, _ in model.named_parameters())  # what is wrong comes before the adapter
    made = trainer(model, tmp_path)
    made.train()
    with pytest.raises(InputError, match="an adapter's layers already"):  # the cell of a notebook run once more
        trainer(model, tmp_path)
    made.save_model(str(tmp_path / "adapter"))
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with pytest.raises(InputError, match="is_trainable=True"):
        trainer(PeftModel.from_pretrained(plain, str(tmp_path / "adapter")), tmp_path)
    with pytest.raises(InputError, match="give histories as eval_dataset"):
        made.evaluate()


def test_what_was_merged_before_is_part_of_what_is_saved(tiny_folder: Path, tmp_path: Path) -> None:
    """A loaded model's weights are those in memory, wherever they were read from."""
    first = trainer(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path, {"learning_rate": 1e-2})
    first.train()
    merged = first.model.merge_and_unload()
    second = trainer(merged, tmp_path, {"seed": 1, "learning_rate": 1e-3})
    second.train()
    folder = second.recommender().save_pretrained(tmp_path / "both")
    tokens = {"input_ids": torch.arange(20)[None]}
    live, saved = second.model.eval()(**tokens).logits, AutoModelForCausalLM.from_pretrained(folder)(**tokens).logits
    assert torch.allclose(live, saved, atol=1e-4)


def test_numbers_are_ids_before_they_are_titles(tiny_folder: Path, tmp_path: Path) -> None:
    """MovieLens-100K has a film called 187, and another one of that id."""
    catalogue = [{"item": n, "title": "7" if n == 3 else name} for n, name in enumerate(NAMES)]
    histories = [{"items": [(u + t) % 30 for t in range(5)]} for u in range(12)]
    made = trainer(str(tiny_folder), tmp_path, train_dataset=histories, catalogue=catalogue)
    made.train()
    recommender = made.recommender()
    by_id, by_title = (recommender.recommend([[name]], k=29)[0] for name in (7, "7"))
    assert "7" not in {i.item for i in by_id}
    assert "3" not in {i.item for i in by_title}
    out = recommender.recommend_table(pd.DataFrame({"items": [["7"], [7]]}), k=29)
    assert "7" not in set(out["item"])
    assert recommender.recommend([[1]], 1, allow=[9])[0][0].item == "9"
    with pytest.raises(InputError, match="not a list"):
        recommender.recommend([1])
    with pytest.raises(InputError, match="no list of titles or ids"):
        recommender.recommend_table(pd.DataFrame({"history": ["['id1']"]}))


def test_a_catalogue_whose_records_name_fields_in_any_order_and_kind(tiny_folder: Path, tmp_path: Path) -> None:
    records = [
        {"item": i, "title": name, "year": np.float32(1990)} if i % 2 else {"year": None, "item": i, "title": [name]}
        for i, name in enumerate(NAMES)
    ]
    records[0] = {"year": 1991.0, "title": np.array([NAMES[0], "more"]), "item": 0}
    histories = [{"items": np.array([u, u + 1, u + 2])} for u in range(10)]
    made = trainer(str(tiny_folder), tmp_path, train_dataset=histories, catalogue=records)
    texts = made.data.rows.parts[0].catalogue.texts
    assert f"Year: 1991, Title: {NAMES[0]} > more" in texts
    assert f"Year: 1990, Title: {NAMES[1]}" in texts


def test_checkpointed_training_gives_the_same_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    found = []
    for checkpointed in (False, True):
        made = trainer(str(tiny_folder), tmp_path, {"gradient_checkpointing": checkpointed, "micro_batch_size": 2})
        made.train()
        found.append({n: p.detach().clone() for n, p in made.model.named_parameters() if p.requires_grad})
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


def test_the_face_is_lazy() -> None:
    code = (
        "import sys; import calrec_lite\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "assert set(calrec_lite.__all__) <= set(dir(calrec_lite))\n"
        "from calrec_lite import load_recipe\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "try:\n    calrec_lite.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "has no `nothing`" in said.stdout
