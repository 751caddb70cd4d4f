"""The user tower: what a place may see, histories of any length, what it knows before it is trained, its softmax."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calrec_lite.fitting.tower import _candidates
from calrec_lite.recommend.readings import recent_items
from calrec_lite.recommend.user_tower import UserTower

N, LENGTH = 40, 6


def text_vectors(n: int = N, dim: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator), dim=-1)


def a_tower(**settings: object) -> UserTower:
    """One whose every parameter is as far from its start as training could take it."""
    torch.manual_seed(1)
    tower = UserTower(text_vectors(), **{"dim": 16, "length": LENGTH, **settings})
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return tower.eval()


def vectors_of(tower: UserTower, rows: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return tower.users(torch.tensor(rows), tower.items())


def test_a_later_item_changes_nothing_before_it() -> None:
    tower = a_tower()
    one = vectors_of(tower, [[3, 1, 4, 15, 9, 2]])[0]
    other = vectors_of(tower, [[3, 1, 4, 15, 30, 31]])[0]
    assert torch.allclose(one[:4], other[:4], atol=1e-6)
    assert not torch.allclose(one[4:], other[4:], atol=1e-2)


def test_an_earlier_item_changes_what_comes_after_it() -> None:
    """Not only by its vector in the recent sum: the transformer reads it too, and the order."""
    tower = a_tower()
    swapped = vectors_of(tower, [[3, 1, 4, 9]])[0, -1], vectors_of(tower, [[1, 3, 4, 9]])[0, -1]
    assert not torch.allclose(*swapped, atol=1e-2)


def test_padding_does_not_matter() -> None:
    tower = a_tower()
    short = vectors_of(tower, [[7, 8]])[0]
    for n in (1, 4):
        padded = vectors_of(tower, [[tower.padding] * n + [7, 8]])[0]
        assert torch.allclose(padded[-2:], short, atol=1e-5)
    among = vectors_of(tower, [[0, 1, 2, 3, 4, 5], [tower.padding] * 4 + [7, 8]])
    assert torch.allclose(among[1, -2:], short, atol=1e-5)
    assert among.isfinite().all()


def test_gradients_reach_every_parameter_and_stay_numbers_beside_padding() -> None:
    tower = a_tower().train()
    items = tower.items()
    users = tower.users(torch.tensor([[tower.padding] * 3 + [5, 6, 7], [0, 1, 2, 3, 4, 5]]), items)
    F.cross_entropy(tower.logits(users[:, -1], items), torch.tensor([8, 6])).backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_with_and_without_gradients_the_vectors_are_the_same() -> None:
    """Without them torch takes another path through its transformer."""
    tower = a_tower()
    rows = [[tower.padding] * 3 + [5, 6, 7], [0, 1, 2, 3, 4, 5]]
    slow = tower.users(torch.tensor(rows), tower.items()).detach()
    real = torch.tensor(rows) != tower.padding
    assert torch.allclose(slow[real], vectors_of(tower, rows)[real], atol=1e-5)


def test_of_a_long_history_the_latest_items_are_read() -> None:
    tower = a_tower()
    long = np.arange(25, dtype=np.int32)
    assert torch.equal(tower.rows([long])[0], torch.arange(25 - LENGTH, 25))
    assert torch.equal(tower.scores([long]), tower.scores([long[-LENGTH:]]))
    assert not torch.allclose(tower.scores([long]), tower.scores([long[-LENGTH + 1 :]]), atol=1e-2)


def test_scores_are_log_probabilities_and_do_not_depend_on_who_else_is_asked_for() -> None:
    tower = a_tower()
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, N, n).astype(np.int32) for n in rng.integers(1, 12, 600)]  # more than a batch
    scores = tower.scores(histories)
    assert torch.allclose(scores.logsumexp(1), torch.zeros(600), atol=1e-4)
    for u in (0, 300, 599):
        assert torch.allclose(tower.scores([histories[u]])[0], scores[u], atol=1e-4)


def test_before_training_it_ranks_by_text_and_recency() -> None:
    """Exactly so without what the transformer adds, and nearly so with it."""
    torch.manual_seed(0)
    tower = UserTower(text_vectors(), dim=16).eval()
    rng = np.random.default_rng(0)
    histories = [rng.permutation(N)[: rng.integers(1, 9)].astype(np.int32) for _ in range(200)]
    by_text = recent_items(text_vectors(), histories)
    near = tower.scores(histories)
    agree = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(near.numpy(), by_text.numpy())])
    assert agree > 0.97
    with torch.no_grad():
        tower.gate.zero_()
    exact = tower.scores(histories)
    assert torch.allclose(exact, (tower.log_scale.exp() * by_text).log_softmax(-1).detach(), atol=1e-3)
    assert (exact.argmax(1) == by_text.argmax(1)).all()


def test_the_most_important_coordinates_are_used_and_few_are_enough() -> None:
    text = text_vectors(dim=16)
    tower = UserTower(text, dim=4)
    assert torch.allclose(tower.items(), F.normalize(text[:, :4], dim=-1), atol=1e-6)
    for width, dim, heads in ((1, 1, 1), (3, 2, 2)):  # of catalogues that have no more directions
        small = UserTower(text[:, :width], dim=16, heads=2).eval()
        assert small.settings["dim"] == dim
        assert small.settings["heads"] == heads
        assert small.scores([np.array([0, 1])]).isfinite().all()


def test_without_memory_items_stay_what_their_text_says() -> None:
    tower = UserTower(text_vectors(), dim=16, memory=False)
    items = tower.items()
    users = tower.users(torch.tensor([[0, 1]]), items)[:, -1]
    F.cross_entropy(tower.logits(users, items), torch.tensor([2])).backward()
    assert tower.memory.grad is None
    assert tower.project.weight.grad is not None


def test_a_softmax_over_as_many_drawn_as_there_are_items_is_the_whole_one() -> None:
    tower = a_tower()
    users, items, labels = vectors_of(tower, [[1, 2], [3, 4]])[:, -1], tower.items(), torch.tensor([5, 6])
    whole = tower.logits(users, items)
    for negatives in (None, N, 10 * N):
        logits, places = _candidates(tower, users, items, labels, negatives)
        assert torch.equal(logits, whole)
        assert torch.equal(places, labels)


@pytest.mark.parametrize("negatives", [5, 20])
def test_a_softmax_over_drawn_items_is_unbiased(negatives: int) -> None:
    """The mean of the sum that a probability is divided by, over many draws, is the sum over all items."""
    tower = a_tower()
    with torch.no_grad():
        tower.log_scale.fill_(1.0)  # a mild softmax: of a sharp one few draws would make the whole sum
        users, items, labels = (
            vectors_of(tower, [[1, 2], [3, 4], [9, 9]])[:, -1],
            tower.items(),
            torch.tensor([5, 6, 9]),
        )
        whole = tower.logits(users, items)
        torch.manual_seed(0)
        sums = []
        for _ in range(3000):
            logits, places = _candidates(tower, users, items, labels, negatives)
            assert logits.shape == (3, 1 + negatives)
            assert not places.any()
            sums.append(logits.double().exp().sum(1))
    assert torch.allclose(logits[:, 0], whole.gather(1, labels[:, None])[:, 0], atol=1e-5)
    drawn = torch.stack(sums)
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - whole.double().exp().sum(1)).abs() < 4 * error).all()
    assert (error / drawn.mean(0) < 0.02).all()  # the line above could tell a wrong correction


def test_a_drawn_target_counts_once() -> None:
    """Of a catalogue of one other item, whatever is drawn."""
    torch.manual_seed(0)
    tower = UserTower(text_vectors(2), dim=16)
    users, items = tower.users(torch.tensor([[0]]), tower.items())[:, -1], tower.items()
    seen = set()
    for _ in range(30):
        logits, _ = _candidates(tower, users, items, torch.tensor([1]), 1)
        seen.add(logits[0, 1].isfinite().item())
    assert seen == {True, False}  # the target itself was drawn, and is left out there
