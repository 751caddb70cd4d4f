"""Training over a trimmed vocabulary, as on a GPU: the same bits, and a whole model wherever one is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from calrec_lite.model.merge import stored_tensors
from calrec_lite.recipe import Loss, Recommend
from calrec_lite.training import vocabulary
from calrec_lite.training.trainer import CALRecTrainer
from tests.training.test_face import HISTORIES, trainer

LISTS = Recommend(strategy="beam", beams=30)


class Watch(TrainerCallback):
    """Rows of the embedding while it is trained; `at` this step it asks for lists, with a word that no item has."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.rows, self.lists = at, [], []
        self.trainer: CALRecTrainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        if state.global_step == self.at:
            self.lists = self.trainer.recommender().recommend([["id3", "Zwölf Ölfässer"]], 5)
        self.rows.append(len(self.trainer._peft_model.get_base_model().get_input_embeddings().weight))


def trained(
    folder: Path, to: Path, watch: Watch, softmax: str = "catalogue", resume: Path | None = None
) -> CALRecTrainer:
    args = {
        "max_steps": 4,
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "micro_batch_size": 2,
        "recommend": LISTS,
        "objective": Loss(alpha=0.1, beta=0.05, softmax=softmax),  # type: ignore[arg-type]
    }
    made = trainer(str(folder), to, args, eval_dataset=HISTORIES[:5], peft_config=LoraConfig(r=4), callbacks=[watch])
    watch.trainer = made
    made.train(resume_from_checkpoint=resume and str(resume))
    return made


def adapter(made: CALRecTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in made._peft_model.named_parameters() if p.requires_grad}


def test_the_same_bits_resumed_too_and_lists_by_the_whole_model(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Watch()
    whole = trained(tiny_folder, tmp_path / "whole", plain)
    expected = adapter(whole)
    losses = [entry["eval_nats_per_item"] for entry in whole.state.log_history if "eval_nats_per_item" in entry]
    monkeypatch.setattr(vocabulary, "trims", lambda device: True)
    seen = Watch()
    made = trained(tiny_folder, tmp_path / "trimmed", seen)
    kept = len(made.vocabulary.ids) + 1
    assert seen.rows == [kept] * 4 < plain.rows
    assert [e["eval_nats_per_item"] for e in made.state.log_history if "eval_nats_per_item" in e] == losses
    found = adapter(made)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    checkpoint = tmp_path / "trimmed" / "out" / "checkpoint-2"
    assert all(".lora_" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    resumed = trained(tiny_folder, tmp_path / "resumed", later := Watch(), resume=checkpoint)
    assert later.rows == [kept] * 2
    assert all(torch.equal(adapter(resumed)[name], value) for name, value in expected.items())
    wanted = whole.recommender().recommend([["id3", "Zwölf Ölfässer"], ["id1"]], 5)
    assert made.recommender().recommend([["id3", "Zwölf Ölfässer"], ["id1"]], 5) == wanted
    stored, _ = stored_tensors(made.recommender().save_pretrained(tmp_path / "saved") / "model.safetensors")
    assert stored["model.embed_tokens.weight"]["shape"][0] == plain.rows[0]


def test_lists_asked_for_while_it_is_trained_make_it_whole(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Watch(2)
    expected = adapter(trained(tiny_folder, tmp_path / "whole", plain))
    monkeypatch.setattr(vocabulary, "trims", lambda device: True)
    seen = Watch(2)
    made = trained(tiny_folder, tmp_path / "trimmed", seen)
    assert seen.lists == plain.lists
    assert seen.rows == [len(made.vocabulary.ids) + 1, *plain.rows[1:]]
    assert all(torch.equal(adapter(made)[name], value) for name, value in expected.items())
    made.train()  # a recommender is out: no vocabulary is trimmed below it
    assert seen.rows[4:] == plain.rows


def test_what_the_loss_reads_of_the_head_stays(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "trims", lambda device: True)
    made = trained(tiny_folder, tmp_path / "vocabulary", seen := Watch(), "vocabulary")
    tied = made._peft_model.get_base_model().config.tie_word_embeddings
    assert (seen.rows == [len(made.vocabulary.ids) + 1] * 4) is not tied
    assert not made.vocabulary.head
    assert (made.vocabulary.spared_bytes == 0) is tied
