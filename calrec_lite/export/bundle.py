"""A run's last weights as one folder that opens as it is: in transformers, in vLLM, and as a Recommender."""

import json
import shutil
from pathlib import Path

from transformers import GenerationConfig

from calrec_lite.errors import InputError
from calrec_lite.export.card import base_name, render_card
from calrec_lite.export.sentence import write_sentence_files
from calrec_lite.files import TERMS, atomic_path, copy_matching
from calrec_lite.recommend.package import TRANSITIONS, PackageInfo, write_package
from calrec_lite.recommend.transitions import Transitions
from calrec_lite.train.run import Run
from calrec_lite.train.stage import stage_origin

PLACES = {"_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file"}


def export_run(run: Run, to: Path) -> Path:
    """Write weights, tokenizer, config, an explicit generation config, calrec.json, the catalogue and the card.

    sentence-transformers opens the folder too (`sentence.py`): v_T for an item's text, v_U for a prompt.

    The folder appears under its name only when it is complete; an earlier export there is replaced.

    Raises:
        InputError: if the run is not trained to the end, or `to` is a folder of something else.
    """
    merged = run.final()
    _refuse_foreign(to)
    with atomic_path(to) as temporary:
        shutil.copytree(merged, temporary)
        _without_places(temporary)
        _explicit_generation(temporary, run)
        try:
            write_sentence_files(temporary, run.encoder)
        except InputError as error:  # the rest of the folder is as good without them
            print(f"no sentence-transformers files: {error}")
        _describe(temporary, run)
    return to


def export_adapter(run: Run, to: Path) -> Path:
    """Write the last stage's adapter alone, with calrec.json, the catalogue and the card: the small file.

    Raises:
        InputError: if the adapter belongs to weights that exist in this run only, or as `export_run`.
    """
    run.final()
    origin, _ = stage_origin(run, len(run.stages) - 1)
    if origin != run.base:
        raise InputError(
            "--adapter: the last stage was trained on merged weights of this run, which nobody else has; "
            "export the whole model, or train with `handover: continue`"
        )
    _refuse_foreign(to)
    with atomic_path(to) as temporary:
        shutil.copytree(run.stages[-1].adapter, temporary)
        copy_matching(origin, temporary, TERMS)
        config = json.loads((temporary / "adapter_config.json").read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base_name(run.recipe), "revision": run.recipe.base.revision}
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        _describe(temporary, run, adapter=True)
    return to


def _without_places(folder: Path) -> None:
    """Take out what older versions of transformers wrote of where a base lay on its maker's machine."""
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if PLACES & values.keys():
            kept = {key: value for key, value in values.items() if key not in PLACES}
            file.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_foreign(to: Path) -> None:
    if Path.cwd().is_relative_to(to.resolve()):
        raise InputError(f"{to}: is or holds the folder you are in; name another one")
    if to.is_dir() and any(to.iterdir()) and not (to / "calrec.json").is_file():
        raise InputError(f"{to}: is there and is no earlier export; name another folder")


def _describe(folder: Path, run: Run, adapter: bool = False) -> None:
    """calrec.json, the catalogue, the transitions where lists need them, and the card."""
    recipe = run.recipe
    domain = run.domain(recipe.target)
    info = PackageInfo(
        domain=domain.name,
        fingerprint=domain.fingerprint,
        labels=list(domain.catalogue.labels),
        dtype=run.dtype.dtype,
        text=recipe.text,
        recommend=recipe.recommend,
        prior=recipe.loss.effective_prior,
        logit_scale=recipe.loss.effective_logit_scale,
        seed=recipe.seed,
    )
    write_package(folder, info, domain.catalogue if recipe.export.catalogue else None, domain.train_counts())
    if recipe.export.catalogue and recipe.recommend.transitions:
        Transitions.of(domain).save(folder / TRANSITIONS, domain.catalogue.ids)
    (folder / "README.md").write_text(render_card(run, adapter), encoding="utf-8")


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
