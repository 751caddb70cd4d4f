"""A run's last weights as one folder that opens as it is: in transformers, in vLLM, and as a Recommender."""

import json
import shutil
from pathlib import Path

from transformers import GenerationConfig

from calrec_lite.errors import InputError
from calrec_lite.export.card import render_card
from calrec_lite.export.sentence import write_sentence_files
from calrec_lite.files import atomic_path
from calrec_lite.recommend.package import PackageInfo, write_package
from calrec_lite.train.run import Run


def export_run(run: Run, to: Path) -> Path:
    """Write weights, tokenizer, config, an explicit generation config, calrec.json, the catalogue and the card.

    sentence-transformers opens the folder too (`sentence.py`): v_T for an item's text, v_U for a prompt.

    The folder appears under its name only when it is complete; an earlier export there is replaced.

    Raises:
        InputError: if the run is not trained to the end, or `to` is a folder of something else.
    """
    merged, recipe = run.final(), run.recipe
    if to.is_dir() and any(to.iterdir()) and not (to / "calrec.json").is_file():
        raise InputError(f"{to}: is there and is no earlier export; name another folder")
    domain = run.domain(recipe.target)
    info = PackageInfo(
        domain=domain.name,
        fingerprint=domain.fingerprint,
        dtype=recipe.base.dtype,
        text=recipe.text,
        recommend=recipe.recommend,
        prior=recipe.loss.prior if recipe.loss.softmax == "catalogue" else 0.0,
        seed=recipe.seed,
    )
    with atomic_path(to) as temporary:
        shutil.copytree(merged, temporary)
        _explicit_generation(temporary, run)
        write_sentence_files(temporary, run.encoder)
        write_package(temporary, info, domain.catalogue if recipe.export.catalogue else None, domain.train_counts())
        (temporary / "README.md").write_text(render_card(run), encoding="utf-8")
    return to


def _explicit_generation(folder: Path, run: Run) -> None:
    """A base's own sampling defaults would silently change what a user measures (DESIGN 4.9)."""
    encoder = run.encoder
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=_item_tokens(run),
        bos_token_id=int(encoder.start[0]),
        eos_token_id=[int(i) for i in encoder.stops],
        pad_token_id=encoder.pad,
    )
    (folder / "generation_config.json").write_text(json.dumps(config.to_diff_dict(), indent=1) + "\n", encoding="utf-8")


def _item_tokens(run: Run) -> int:
    """Tokens an item may have."""
    return max(map(len, run.catalogue(run.recipe.target).tokens))
