"""A model that was trained from Python as one folder: its adapter on the original weights, and what lists need."""

import hashlib
import json
from pathlib import Path
from typing import Any

from peft import PeftModel

from calrec_lite.errors import InputError
from calrec_lite.files import work_folder
from calrec_lite.model.base import is_quantised
from calrec_lite.model.merge import merge_adapter
from calrec_lite.package.layout import TRANSITIONS, PackageInfo, record, write_package
from calrec_lite.package.save import complete_model, write_short_card
from calrec_lite.recipe import Recommend
from calrec_lite.training.config import CALRecConfig
from calrec_lite.training.opening import NAME, Data


def save_trained(
    model: PeftModel, base: Path | None, data: Data, args: CALRecConfig, options: Recommend, to: Path
) -> None:
    """Write full weights, calrec.json, the catalogue, transitions where lists need them, and a short card into `to`.

    Args:
        model: with the trained adapter in it; it stays as it is.
        base: folder of the original weights; None: those in memory are taken.
        to: a folder that is not there yet.

    Raises:
        InputError: the adapter was not trained, or quantised weights are all there is of the base.
    """
    assert data.items is not None
    rows, loss = data.rows, args.objective
    encoded = rows.parts[0].catalogue
    with work_folder(to.parent) as work:  # not in a small /tmp
        model.save_pretrained(str(work / "adapter"))
        origin = base or _write_base(model, rows.encoder.tokenizer, work / "base")
        merge_adapter(origin, work / "adapter", to, progress=False)
    complete_model(to, rows.encoder, encoded.tokens.longest)
    info = PackageInfo(
        domain=NAME,
        fingerprint=hashlib.sha256(json.dumps(data.items.fields).encode()).hexdigest(),
        labels=list(data.items.labels),
        dtype=str(model.get_output_embeddings().weight.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        text=args.text,
        recommend=options,
        prior=loss.effective_prior,
        logit_scale=loss.effective_logit_scale,
        collaborative=loss.effective_collaborative,
        seed=args.seed,
    )
    write_package(to, info, data.items, encoded.counts)
    if options.transitions or loss.effective_collaborative:
        data.transitions().save(to / TRANSITIONS, data.items.ids)
    name = str(getattr(model.config, "_name_or_path", ""))
    write_short_card(to, name if name.count("/") == 1 and not Path(name).exists() else None)
    record(to)


def _write_base(model: PeftModel, tokenizer: Any, to: Path) -> Path:
    """The base's weights as they are in memory, without the adapter."""
    causal: Any = model.get_base_model()
    if is_quantised(causal):
        raise InputError("save_pretrained: the base's original weights are not at hand: give the model by name")
    state = {
        name.replace(".base_layer", ""): value for name, value in causal.state_dict().items() if "lora_" not in name
    }
    causal.save_pretrained(to, state_dict=state)
    tokenizer.save_pretrained(to)
    return to
