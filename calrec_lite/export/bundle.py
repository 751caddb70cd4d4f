"""A run's last weights as one folder that opens as it is: in transformers, in vLLM, and as a Recommender."""

import json
import shutil
from pathlib import Path

from calrec_lite.data.transitions import Transitions
from calrec_lite.errors import InputError
from calrec_lite.export.card import base_name, render_card
from calrec_lite.files import TERMS, atomic_path, copy_matching
from calrec_lite.fitting.opening import IDENTITY_FILE, fitted_folder, is_fitted, open_recommender
from calrec_lite.package.layout import FITTED, TRANSITIONS, PackageInfo, record, refuse_foreign, write_package
from calrec_lite.package.save import complete_model, copy_model
from calrec_lite.run import Run
from calrec_lite.stored import MANIFEST
from calrec_lite.training.handover import stage_origin


def export_run(run: Run, to: Path) -> Path:
    """Write weights, tokenizer, config, an explicit generation config, calrec.json, the catalogue and the card.

    sentence-transformers opens the folder too (`sentence.py`): v_T for an item's text, v_U for a prompt.

    The folder appears under its name only when it is complete; an earlier export there is replaced.

    Raises:
        InputError: if the run is not trained to the end, or `to` is a folder of something else.
    """
    merged = run.final()
    refuse_foreign(to)
    with atomic_path(to) as temporary:
        temporary.mkdir()
        copy_model(merged, temporary)
        if run.recipe.recommend.fits and run.recipe.export.catalogue:
            _copy_fitted(run, merged, temporary)
        complete_model(temporary, run.encoder, run.catalogue(run.recipe.target).tokens.longest)
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
    refuse_foreign(to)
    with atomic_path(to) as temporary:
        shutil.copytree(run.stages[-1].intact(run.stages[-1].adapter), temporary)
        copy_matching(origin, temporary, TERMS)
        config = json.loads((temporary / "adapter_config.json").read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base_name(run.recipe), "revision": run.recipe.base.revision}
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        _describe(temporary, run, adapter=True)
    return to


def _copy_fitted(run: Run, merged: Path, to: Path) -> None:
    if not is_fitted(run, merged):  # trained with other lists in the recipe
        open_recommender(run, merged)
    shutil.copytree(fitted_folder(run, merged), to / FITTED, ignore=shutil.ignore_patterns(IDENTITY_FILE, MANIFEST))


def _describe(folder: Path, run: Run, adapter: bool = False) -> None:
    """calrec.json, the catalogue, the transitions where lists need them, and the card."""
    recipe = run.recipe
    domain = run.domain(recipe.target)
    options = recipe.recommend
    if options.fits and not (folder / FITTED).is_dir():  # without its items: the model's own lists
        options = options.model_copy(update={"strategy": "beam"})
    info = PackageInfo(
        domain=domain.name,
        fingerprint=domain.fingerprint,
        labels=list(domain.catalogue.labels),
        dtype=run.dtype.dtype,
        text=recipe.text,
        recommend=options,
        prior=recipe.loss.effective_prior,
        logit_scale=recipe.loss.effective_logit_scale,
        collaborative=recipe.loss.effective_collaborative,
        seed=recipe.seed,
        html=domain.html,
    )
    write_package(folder, info, domain.catalogue if recipe.export.catalogue else None, domain.train_counts())
    wanted = recipe.recommend.transitions or recipe.recommend.fits or recipe.loss.effective_collaborative
    if recipe.export.catalogue and wanted:
        Transitions.of(domain).save(folder / TRANSITIONS, domain.catalogue.ids)
    (folder / "README.md").write_text(render_card(run, adapter, options.strategy), encoding="utf-8")
    record(folder)
