"""The weights of lists, chosen or fitted on validation users, and what they win there (docs/method.md, 6c and 8)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm

from calrec_lite.evaluate.tables import difference_cell, interval_cell, weights_table
from calrec_lite.fitting.lists import FusionRanker
from calrec_lite.fitting.opening import fitted_folder, open_recommender, refit
from calrec_lite.measure.cases import Cases, build_cases
from calrec_lite.measure.metrics import Ranks, ndcg_at, paired_bootstrap, ranks_from_lists, recall_at, summarise
from calrec_lite.recipe.file import save_resolved
from calrec_lite.recommend.batching import batches
from calrec_lite.recommend.recommender import Recommender, lists_in_memory
from calrec_lite.recommend.rerank import Candidates
from calrec_lite.recommend.strategies import Users
from calrec_lite.run import Run
from calrec_lite.table import markdown

FUSION = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
TRANSITIONS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
FEW_USERS = 200  # below, the best of 80 pairs is mostly the luckiest


@dataclass(frozen=True)
class Tried:
    """One pair of weights on validation users."""

    fusion: float
    transitions: float
    recall10: float
    ndcg10: float


def fit_anew(run: Run, users: int | None, write: bool) -> str:
    """Fit the weights of fused lists anew. Returns what is to be said: weights, intervals, what they win.

    Args:
        users: of validation; None: as many as the recipe says.
        write: into the run.

    Raises:
        InputError: as `fitting.opening.refit`.
    """
    strategy, recipe = run.recipe.recommend.strategy, run.recipe
    before, fusion = refit(run, users)
    facts = fusion.facts
    fit = facts[f"{strategy}_fit"]
    cases = build_cases(run.domain(recipe.target), "validation", users or recipe.fused.users, recipe.training_seed)
    seen = recipe.recommend.exclude_seen
    old, new = (
        ranks_from_lists(FusionRanker(lists).rank(cases.histories, 10, seen), cases.targets)
        for lists in (before, fusion)
    )
    said = [
        weights_table(fusion.weights(strategy), fit["intervals"]),
        "",
        f"{fit['users']:,} validation users, whose next item is among the candidates; without the likelihood N@10 is "
        f"{_won(old, new, 'the weights in the run', run)} over {len(cases.users):,}",
        *_few(fit["users"]),
    ]
    if write:
        fusion.save_weights(fitted_folder(run, run.final()))
        return "\n".join([*said, f"written into the run; next: calrec-lite evaluate {run.folder}"])
    return "\n".join([*said, "nothing is changed; write them into the run by --apply"])


def try_weights(run: Run, users: int, write: bool) -> str:
    """Which weights serve `strategy: rerank` best. Returns what is to be said.

    Args:
        users: of validation, at most.
        write: strategy and weights, into the run's recipe.
    """
    recipe, options = run.recipe, run.recipe.recommend
    cases = build_cases(run.domain(recipe.target), "validation", users, recipe.seed)
    recommender = open_recommender(run, run.final(), transitions=True)
    candidates = all_candidates(recommender, cases, options.exclude_seen)
    tried = tried_on(candidates, cases, TRANSITIONS)
    best, ndcg = tried[0], {(t.fusion, t.transitions): t.ndcg10 for t in tried}
    rows = [[f"{f:g}", *(f"{ndcg[f, t]:.4f}".removeprefix("0") for t in TRANSITIONS)] for f in FUSION]
    has_weights = options.strategy == "rerank"
    now = (options.fusion, options.transitions) if has_weights else (0.0, 0.0)
    before, after = (_ranks(candidates, cases, *pair) for pair in (now, (best.fusion, best.transitions)))
    settings = {"strategy": "rerank", "fusion": best.fusion, "transitions": best.transitions}
    said = [
        "N@10 by recommend.fusion (rows) and recommend.transitions (columns)",
        markdown(["", *(f"{t:g}" for t in TRANSITIONS)], rows),
        "",
        f"{len(cases.users):,} validation users; candidates are the {options.rerank} closest items of each "
        "and, with transitions, as many that these put first",
        f"Best: N@10 {_won(before, after, 'the weights in the run' if has_weights else 'no weights', run)}",
        "  " + " ".join(f"--set recommend.{key}={_plain(value)}" for key, value in settings.items()),
        *_few(len(cases.users)),
        *_at_the_end(best),
    ]
    if not write:
        return "\n".join([*said, "nothing is changed; write this into the run by --apply"])
    changed = recipe.model_copy(update={"recommend": options.model_copy(update=settings)})
    save_resolved(changed, run.folder / "recipe.yaml")
    kept = ", ".join(f"{key}: {_plain(value)}" for key, value in settings.items())
    said += [
        f"written into {run.folder / 'recipe.yaml'}; next: calrec-lite evaluate {run.folder}",
        f"for trainings to come write into your own recipe, which `train` goes by: recommend: {{{kept}}}",
    ]
    return "\n".join(said)


def _won(before: Ranks, after: Ranks, name: str, run: Run) -> str:
    """NDCG@10 with its interval, and the difference from what was before."""
    options = run.recipe.evaluate.bootstrap, run.recipe.seed
    now, won = summarise(after, *options)["ndcg@10"], paired_bootstrap(before, after, *options)["ndcg@10"]
    return f"{interval_cell(now)}, {difference_cell(won)} against {name}"


def _few(users: int) -> list[str]:
    if users >= FEW_USERS:
        return []
    return [f"warning: by {users:,} users the weights say more of the draw than of the lists; {FEW_USERS} should do"]


def _at_the_end(best: Tried) -> list[str]:
    ends = {"fusion": (best.fusion, FUSION[-1]), "transitions": (best.transitions, TRANSITIONS[-1])}
    return [
        f"warning: {last:g} is the largest recommend.{name} that was tried, and a larger one may serve better: "
        "calrec-lite evaluate RUN --split validation --set recommend.strategy=rerank "
        f"--set recommend.{name}={2 * last:g}"
        for name, (chosen, last) in ends.items()
        if chosen == last
    ]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def tune_fusion(recommender: Recommender, cases: Cases, exclude_seen: bool) -> list[Tried]:
    """What each pair of weights gives on `cases`, the best NDCG@10 first, smaller weights among equals.

    The model runs once: the weights only order the same candidates anew. Weights of `transitions` above zero are tried
    where the recommender has them.

    Args:
        cases: of the validation split; weights chosen on test users would be no result.
    """
    transition_weights = TRANSITIONS if recommender.strategies.transitions is not None else (0.0,)
    return tried_on(all_candidates(recommender, cases, exclude_seen), cases, transition_weights)


def tried_on(candidates: Sequence[Candidates], cases: Cases, transition_weights: Sequence[float]) -> list[Tried]:
    """As `tune_fusion`, of candidates already made, with each of FUSION and of `transition_weights`."""
    tried = []
    for fusion, transitions in product(FUSION, transition_weights):
        ranks = _ranks(candidates, cases, fusion, transitions)
        recall, ndcg = (float(metric(ranks, 10).mean()) for metric in (recall_at, ndcg_at))
        tried.append(Tried(fusion, transitions, recall, ndcg))
    return sorted(tried, key=lambda t: (-t.ndcg10, t.transitions, t.fusion))


def all_candidates(recommender: Recommender, cases: Cases, exclude_seen: bool) -> list[Candidates]:
    """What `strategy: rerank` chooses from, for every case; with transitions where the recommender has them."""
    catalogue, strategies = recommender.catalogue, recommender.strategies
    tokens, texts = catalogue.tokens, catalogue.texts
    prompts = [recommender.encoder.prompt([tokens[i] for i in history]) for history in cases.histories]
    by_user: dict[int, Candidates] = {}
    with tqdm(total=len(prompts), desc="score candidates", unit="user") as bar:
        for users in batches(prompts, recommender.strategies.batch_tokens):
            histories = [cases.histories[u] for u in users]
            allowed = np.ones((len(users), len(tokens)), np.bool_)
            for row, history in zip(allowed, histories, strict=True):
                row[history] = not exclude_seen
            batch = Users([prompts[u] for u in users], [[texts[i] for i in h] for h in histories], histories)
            with lists_in_memory(len(users), recommender.strategies.batch_tokens):
                batch_candidates = strategies.candidates(batch, allowed, transitions=strategies.transitions)
            by_user |= zip(users, batch_candidates, strict=True)
            bar.update(len(users))
    return [by_user[u] for u in range(len(prompts))]


def _ranks(candidates: Sequence[Candidates], cases: Cases, fusion: float, transitions: float) -> Ranks:
    """Of the targets, (U,)."""
    pairs = zip(candidates, cases.targets, strict=True)
    return np.array([_rank(user_candidates, target, fusion, transitions) for user_candidates, target in pairs])


def _rank(candidates: Candidates, target: int, fusion: float, transitions: float) -> float:
    order, _ = candidates.best(fusion, transitions, len(candidates.items))
    ranks: Ranks = ranks_from_lists(candidates.items[order][None], np.array([target]))
    return float(ranks[0])
