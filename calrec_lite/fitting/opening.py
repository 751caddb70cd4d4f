"""A run's model as a Recommender; what fused lists need is fitted first, or taken from the run."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calrec_lite.bars import wait_bar
from calrec_lite.data.transitions import Transitions
from calrec_lite.errors import InputError
from calrec_lite.files import atomic_path, size_and_time, write_json
from calrec_lite.fitting.fit import LikelihoodOf, fit_fusion, weigh
from calrec_lite.method.towers import Towers
from calrec_lite.model.base import Placement, load_model, placement
from calrec_lite.recipe import Recommend
from calrec_lite.recommend.batching import batches
from calrec_lite.recommend.fusion import Fusion, require_fitted
from calrec_lite.recommend.readings import PARTS
from calrec_lite.recommend.recommender import Recommender, lists_in_memory
from calrec_lite.recommend.user_tower import History
from calrec_lite.run import Run
from calrec_lite.stored import require_unchanged, write_manifest

IDENTITY_FILE = "fitted_to.json"  # in a folder of fitted readings: to what


def open_recommender(
    run: Run,
    folder: Path,
    transitions: bool = False,
    placed: Placement | None = None,
    options: Recommend | None = None,
) -> Recommender:
    """A recommender over the run's target domain with full weights from `folder`.

    Args:
        transitions: count what followed what even where the lists do without it.
        placed: how the weights are loaded; default: what `placement` decides.
        options: how lists are made; default: as the recipe says.

    Raises:
        InputError: the weights are not what the run wrote.
    """
    recipe = run.recipe
    run.require_intact(folder)
    options = options or recipe.recommend
    loading = run.loading.model_copy(update={"attention": "sdpa"})  # a tree of continuations needs a special mask
    towers = Towers(load_model(folder, loading, *(placed or placement(folder, loading))))
    name, domain = recipe.target, run.domain(recipe.target)
    counts = Transitions.of(domain) if transitions or options.counts_transitions else None
    items = run.catalogue(name), domain.catalogue.ids
    # The LLM's own lists need nothing fitted, and its vectors and likelihood are what is fitted to.
    unfitted = options.model_copy(update={"strategy": "beam", "score": run.own.recommend.score})
    alone = Recommender(towers, run.encoder, *items, unfitted, recipe.seed)
    fusion = fitted(run, folder, alone, options) if options.fits else None
    return Recommender(
        towers, run.encoder, *items, options, recipe.seed, transitions=counts, fusion=fusion, html=domain.html
    )


def fitted(run: Run, folder: Path, alone: Recommender, options: Recommend) -> Fusion:
    """What was fitted to the model in `folder`, from the run; fitted now if there is none, or it was to something else.

    Args:
        alone: the model's recommender without it.
    """
    recipe, domain = run.recipe, run.domain(run.recipe.target)
    own = run.own.recommend  # settings of one command use the run's weights, and are none to fit others to
    place = fitted_folder(run, folder)
    if earlier := kept_fusion(run, folder, options):
        return earlier
    print(f"fitting user tower and weights of lists to {place.name}")
    vectors = alone.strategies.text_vectors()
    fusion = fit_fusion(
        domain,
        vectors,
        recipe.fused,
        recipe.training_seed,
        own.exclude_seen,
        PARTS,
        likelihood_of(alone) if options.strategy == "fused" else None,
        own.rerank,
    )
    place.parent.mkdir(exist_ok=True)
    with atomic_path(place) as temporary:
        temporary.mkdir()
        fusion.save(temporary, domain.catalogue.ids)
        write_json(temporary / IDENTITY_FILE, _asked(run, folder))
        write_manifest(temporary, ["*.parquet", "*.safetensors"])  # not the weights: `tune` writes them anew
    print(f"weights: {fusion.described}")
    # Vectors are kept in 16 bits: lists are the same now and whenever it is opened again.
    return Fusion.open(
        place, domain.catalogue.ids, domain.catalogue.titles, fusion.readings.transitions, fusion.readings.counts
    )[0]


def is_fitted(run: Run, folder: Path) -> bool:
    """Whether the run holds what its recipe's lists need of the model in `folder`, by this recipe; loads no model."""
    return kept_fusion(run, folder, run.recipe.recommend) is not None


def kept_fusion(run: Run, folder: Path, options: Recommend) -> Fusion | None:
    """What the run holds for such lists of the model in `folder`; None where it is not there, damaged, or of another.

    Loads no model.
    """
    place = fitted_folder(run, folder)
    asked = json.loads(json.dumps(_asked(run, folder)))
    try:
        stored = json.loads((place / IDENTITY_FILE).read_text(encoding="utf-8"))
        if {key: stored[key] for key in asked} != asked:
            return None
        require_unchanged(place)
        require_fitted(place, options.strategy)
        domain = run.domain(run.recipe.target)
        return Fusion.open(
            place, domain.catalogue.ids, domain.catalogue.titles, Transitions.of(domain), domain.train_counts()
        )[0]
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def refit(run: Run, users: int | None) -> tuple[Fusion, Fusion]:
    """The final model's lists as the run has them, and with weights fitted anew; nothing of these is written.

    Args:
        users: of validation, for all weights; None: as many as the recipe says.

    Raises:
        InputError: the run is not trained to the end, or too few users have a validation case.
    """
    recipe, folder = run.recipe, run.final()
    domain, options = run.domain(recipe.target), recipe.recommend
    recommender = open_recommender(run, folder)
    fusion = recommender.strategies.fusion
    assert fusion is not None
    numbers = {"users": users, "likelihood_users": users} if users else {}
    settings = recipe.fused.model_copy(update=numbers)
    score = likelihood_of(recommender) if options.strategy == "fused" else None
    facts = {key: value for key, value in fusion.facts.items() if key == "tower"}
    asked = settings, recipe.training_seed, options.exclude_seen, PARTS, score, options.rerank, facts
    anew = weigh(fusion.readings, domain, *asked)
    if anew.fused is None and fusion.fused is not None:  # the recipe makes lists by `fast` now; the others stay
        facts = {**anew.facts, "fused_fit": fusion.facts["fused_fit"]}
        anew = replace(anew, fused=fusion.fused, facts=facts)
    return fusion, anew


def fitted_folder(run: Run, folder: Path) -> Path:
    """Where the run keeps what was fitted to the model in `folder`: a stage's name, or `base`."""
    stages = {stage.merged: stage.folder.name for stage in run.stages}
    other = f"-{run.recipe.target}" if run.recipe.target != run.own.target else ""
    return run.folder / "fitted" / f"{stages.get(folder, 'base')}{other}"


def _asked(run: Run, folder: Path) -> dict[str, Any]:
    """All that decides what is fitted to the model in `folder`."""
    recipe = run.recipe
    return {
        "weights": [[file.name, *size_and_time(file)] for file in sorted(folder.glob("*.safetensors"))],
        "domain": run.domain(recipe.target).fingerprint,
        "fused": recipe.fused.model_dump(mode="json"),
        "parts": list(PARTS),  # of an earlier version there may be fewer
        "recommend": run.own.recommend.model_dump(mode="json", include={"exclude_seen", "rerank", "score"}),
        "seed": recipe.training_seed,
    }


def likelihood_of(recommender: Recommender) -> LikelihoodOf:
    """Log-probabilities by the recommender's model: histories, and each one's items -> theirs."""

    @torch.no_grad()
    def score(histories: Sequence[History], items: Sequence[np.ndarray]) -> list[np.ndarray]:
        tokens, strategies = recommender.catalogue.tokens, recommender.strategies
        prompts = [recommender.encoder.prompt([tokens[i] for i in history]) for history in histories]
        found: dict[int, np.ndarray] = {}
        with wait_bar("likelihood", len(prompts), "user", at_once=True) as bar:
            for users in batches(prompts, recommender.strategies.batch_tokens):
                with lists_in_memory(len(users), recommender.strategies.batch_tokens):
                    tree = strategies.prompt_tree([prompts[u] for u in users])
                    known, asked = [histories[u] for u in users], [items[u] for u in users]
                    found |= zip(users, strategies.likelihood(tree, known, asked), strict=True)
                bar.update(len(users))
        return [found[u] for u in range(len(prompts))]

    return score
