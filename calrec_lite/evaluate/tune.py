"""The weights of `strategy: rerank`, chosen on validation users (docs/method.md, 6c)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from tqdm import tqdm

from calrec_lite.measure.cases import Cases
from calrec_lite.measure.metrics import Ranks, ndcg_at, ranks_from_lists, recall_at
from calrec_lite.recommend.recommender import Recommender, batches, lists_in_memory
from calrec_lite.recommend.rerank import Candidates
from calrec_lite.recommend.strategies import Users

FUSION = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
TRANSITIONS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True)
class Tried:
    """One pair of weights on validation users."""

    fusion: float
    transitions: float
    recall10: float
    ndcg10: float


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
        pairs = zip(candidates, cases.targets, strict=True)
        ranks = np.array([_rank(user_candidates, target, fusion, transitions) for user_candidates, target in pairs])
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
        for users in batches(prompts, recommender.options.batch_tokens):
            histories = [cases.histories[u] for u in users]
            allowed = np.ones((len(users), len(tokens)), np.bool_)
            for row, history in zip(allowed, histories, strict=True):
                row[history] = not exclude_seen
            batch = Users([prompts[u] for u in users], [[texts[i] for i in h] for h in histories], histories)
            with lists_in_memory(len(users), recommender.options):
                batch_candidates = strategies.candidates(batch, allowed, transitions=strategies.transitions)
            by_user |= zip(users, batch_candidates, strict=True)
            bar.update(len(users))
    return [by_user[u] for u in range(len(prompts))]


def _rank(candidates: Candidates, target: int, fusion: float, transitions: float) -> float:
    order, _ = candidates.best(fusion, transitions, len(candidates.items))
    ranks: Ranks = ranks_from_lists(candidates.items[order][None], np.array([target]))
    return float(ranks[0])
