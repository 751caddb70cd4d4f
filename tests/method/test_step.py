"""The step against a slow, plain re-implementation of docs/method.md, 3, 5 and 5b, and against itself cut apart."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.method import losses
from calrec_lite.method.catalogue import EncodedCatalogue
from calrec_lite.method.step import _whole, two_tower_step
from calrec_lite.method.towers import Towers
from calrec_lite.model import head_loss
from calrec_lite.model.base import add_adapter, load_model
from calrec_lite.recipe import Base, Lora, Loss
from calrec_lite.text.encoding import Encoder, Row
from tests.method.conftest import FP32, adapted, collate, gradients


def plain(
    model,
    rows: list[Row],
    encoder: Encoder,
    catalogue: EncodedCatalogue,
    loss: Loss,
    prior: Callable[[int, int], np.ndarray] | None = None,
) -> torch.Tensor:
    """One row, one target, one negative at a time; no batches, no trie, no shared forward.

    Args:
        prior: row, and a target's place in it -> (N,) the items' weights in the catalogue softmax; None: their counts.
    """
    causal = model.get_base_model()

    def run(ids):
        out = causal(torch.tensor([ids]), output_hidden_states=True)
        return out.logits[0], out.hidden_states[-1][0]

    unit = torch.nn.functional.normalize
    nll, count, anchors = torch.zeros(()), 0, []
    for r, row in enumerate(rows):
        first = 1 if loss.targets == "all" else len(row.items) - 1
        for k in range(first, len(row.items)):
            final = k == len(row.items) - 1
            ids = row.tokens[: row.ends[k] + (1 if final else 0)].tolist()
            logits, states = run(ids)
            start, end = row.starts[k], row.ends[k]
            if loss.softmax == "vocabulary":
                for p in range(start, len(ids)):
                    nll = nll - logits[p - 1].log_softmax(-1)[ids[p]]
                    count += 1
            else:
                own = catalogue.tokens[row.items[k]].tolist()
                weights = catalogue.counts + 1 if prior is None else prior(r, k)
                for d in range(len(own)):
                    children = sorted({t[d] for t in catalogue.tokens if t[:d].tolist() == own[:d]})
                    if len(children) > 1:
                        below = [
                            sum(n for t, n in zip(catalogue.tokens, weights) if t[: d + 1].tolist() == [*own[:d], c])
                            for c in children
                        ]
                        scores = catalogue.logit_scale * logits[start + d - 1][children]
                        scores = scores + torch.tensor(below, dtype=torch.float32).log()
                        nll = nll - scores.log_softmax(-1)[children.index(own[d])]
                        count += 1
            _, alone = run([int(encoder.start[0]), *catalogue.tokens[row.items[k]].tolist()])
            anchors.append(
                (
                    r,
                    row.items[k],
                    unit(states[1:start].mean(0), dim=0),
                    unit(states[start:end].mean(0), dim=0),
                    unit(alone[1:].mean(0), dim=0),
                )
            )

    def nce(which: int) -> torch.Tensor:
        total = torch.zeros(())
        for i, (row_i, item_i, *v_i) in enumerate(anchors):
            columns = []
            for j, (row_j, item_j, *v_j) in enumerate(anchors):
                owners = {rows[row_i].user, rows[row_j].user}
                same = loss.mask_same_history and (row_i == row_j or (len(owners) == 1 and None not in owners))
                if i == j or (item_i != item_j and not same):
                    pair = (v_i[which] @ v_j[2], v_j[which] @ v_i[2])[loss.direction == "item_to_user"]
                    columns.append((i == j, pair / loss.tau))
            values = torch.stack([v for _, v in columns])
            total = total + values.logsumexp(0) - values[[own for own, _ in columns].index(True)]
        return total / len(anchors)

    return (1 - loss.alpha - loss.beta) * nll / count + loss.alpha * nce(1) + loss.beta * nce(0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": "last"},
        {"softmax": "catalogue"},
        {"softmax": "catalogue", "targets": "last"},
        {"direction": "item_to_user"},
        {"mask_same_history": False},
    ],
    ids=str,
)
def test_objective_equals_the_plain_formulas(model, rows, encoder, catalogue, plain_loss: Loss, changes: dict) -> None:
    loss = plain_loss.model_copy(update=changes)
    batch = collate(rows, encoder, catalogue, loss, micro=3)
    got = two_tower_step(Towers(model), batch, loss, None).loss
    torch.testing.assert_close(got, plain(model, rows, encoder, catalogue, loss), rtol=2e-5, atol=1e-5)


def test_the_catalogue_softmax_is_one_over_all_items(model, rows, encoder, catalogue) -> None:
    """After one history, whichever item comes next: each as the plain formula has it, and together certain."""
    loss = Loss(alpha=0, beta=0, softmax="catalogue", targets="last")
    nats = []
    for item in range(len(catalogue.tokens)):
        row = encoder.row(np.array([2, 6, item]), catalogue.tokens, "shop")
        got = two_tower_step(Towers(model), collate([row], encoder, catalogue, loss, 1), loss, None)
        expected = plain(model, [row], encoder, catalogue, loss) * forks_of(catalogue, item)
        torch.testing.assert_close(got.nats_per_item, expected, rtol=1e-5, atol=1e-5)
        nats.append(got.nats_per_item)
    assert float(torch.stack(nats).neg().exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("entries", [1, 40, 1 << 24])
def test_forks_are_scored_a_slice_at_a_time(rows, encoder, catalogue, monkeypatch, entries: int) -> None:
    """Loss and gradient against autograd over all forks at once, with a prior and a scale."""
    monkeypatch.setattr(head_loss, "HEAD_ENTRIES", entries)
    loss = Loss(alpha=0, beta=0, softmax="catalogue")
    forks = collate(rows, encoder, catalogue, loss, 100).chunks[0].forks
    draw = torch.Generator().manual_seed(0)
    forks = replace(forks, entry_bias=torch.randn(len(forks.entry_token), generator=draw), logit_scale=0.3)
    head = torch.randn(len(encoder.tokenizer), 16, generator=draw)
    states = torch.randn(len(forks.positions), 16, generator=draw, requires_grad=True)
    weight = torch.rand(len(states), generator=draw)
    logits = 0.3 * (states @ head.T)[:, forks.tokens[forks.entry_token]] + forks.entry_bias  # (F, E)
    ends = [(int(forks.ptr[k]), int(forks.ptr[k + 1])) for k in forks.fork]
    expected = torch.stack([logits[f, a:b].logsumexp(0) - logits[f, forks.chosen[f]] for f, (a, b) in enumerate(ends)])
    (wanted,) = torch.autograd.grad(weight @ expected, states)
    got = losses.catalogue_nll(states, head[forks.tokens], forks)
    (gradient,) = torch.autograd.grad(weight @ got, states)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


def forks_of(catalogue: EncodedCatalogue, item: int) -> int:
    own = catalogue.tokens[item].tolist()
    after = [{t[d] for t in catalogue.tokens if t[:d].tolist() == own[:d]} for d in range(len(own))]
    return max(1, sum(len(tokens) > 1 for tokens in after))


@pytest.mark.parametrize("micro", [1, 2, 3, 5, 7, 20])
@pytest.mark.parametrize("softmax", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("direction", ["user_to_item", "both"])
def test_gradients_do_not_depend_on_micro_batching(
    model, rows, encoder, catalogue, plain_loss: Loss, micro: int, softmax: str, direction: str
) -> None:
    loss = plain_loss.model_copy(update={"softmax": softmax, "direction": direction})
    whole_loss, whole = gradients(model, collate(rows, encoder, catalogue, loss, 100), loss)
    cut_loss, cut = gradients(model, collate(rows, encoder, catalogue, loss, micro), loss)
    torch.testing.assert_close(cut_loss, whole_loss, rtol=1e-5, atol=1e-6)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name)


def test_gradients_over_a_4bit_base_do_not_depend_on_it_where_fp32_can_tell(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss
) -> None:
    model = adapted(tiny_folder, 0, load_in_4bit=True, dtype="float32")
    layer = model.get_base_model().get_decoder().layers[0].mlp.up_proj.weight
    assert layer.dtype is torch.uint8
    assert layer.quant_state.nested  # double quantisation
    _, whole = gradients(model, collate(rows, encoder, catalogue, plain_loss, 100), plain_loss)
    _, cut = gradients(model, collate(rows, encoder, catalogue, plain_loss, 2), plain_loss)
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize("kind", ["bf16", "nf4", "int8"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_low_precision_bases_do_not_depend_on_it_either(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss, kind: str, checkpointing: bool
) -> None:
    """As far as bf16 can tell: rounding of single positions, not of the sum."""
    model = adapted(tiny_folder, 0, checkpointing, load_in_4bit=kind == "nf4", load_in_8bit=kind == "int8")
    whole_loss, whole = gradients(model, collate(rows, encoder, catalogue, plain_loss, 100), plain_loss)
    for micro in (1, 3):
        cut_loss, cut = gradients(model, collate(rows, encoder, catalogue, plain_loss, micro), plain_loss)
        torch.testing.assert_close(cut_loss, whole_loss, rtol=1e-2, atol=0)
        for name, gradient in whole.items():
            cosine = torch.nn.functional.cosine_similarity(cut[name].flatten(), gradient.flatten(), dim=0)
            assert float(cosine) > 0.99, name
            assert float(cut[name].norm()) == pytest.approx(float(gradient.norm()), rel=0.05), name


def test_without_a_compiler_it_says_what_to_do(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="optim.compile: .*no-such-compiler is not here: .*apt install g\\+\\+"):
        Towers(model).compile()
    towers = Towers(model)
    towers.decoder = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="optim.compile: the layers of a Linear are not known"):
        towers.compile()


@pytest.fixture(scope="module")
def checkpointed(tiny_folder: Path) -> torch.nn.Module:
    return adapted(tiny_folder, 0, True, **FP32)


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("direction", ["user_to_item", "both"])
def test_offloaded_graphs_give_the_same_gradients(
    checkpointed, rows, encoder, catalogue, plain_loss: Loss, micro: int, direction: str
) -> None:
    """And how often each chunk is run: rows twice only where anchors need each other, and are not all kept."""
    loss = plain_loss.model_copy(update={"direction": direction})
    batch, found, forwards = collate(rows, encoder, catalogue, loss, micro), [], []
    for offload in (False, True):
        checkpointed.zero_grad()
        towers = Towers(checkpointed, offload)
        hook = towers.decoder.register_forward_pre_hook(lambda *call: forwards.append(call))
        two_tower_step(towers, batch, loss, lambda scalar: scalar.backward())
        hook.remove()
        found.append({n: p.grad.clone() for n, p in checkpointed.named_parameters() if p.requires_grad})
        rows_twice = direction == "both" and not offload
        items_twice = direction == "user_to_item" or not offload
        assert len(forwards) == (1 + rows_twice) * len(batch.chunks) + (1 + items_twice) * len(batch.items)
        forwards.clear()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("contrast", [True, False])
def test_offloaded_graphs_have_the_dropout_of_kept_ones(
    tiny_folder: Path, rows, encoder, catalogue, contrast: bool
) -> None:
    """Layers are computed again for the backward pass, with the masks they had."""
    loss = Loss(alpha=0.2 * contrast, beta=0.1 * contrast, softmax="vocabulary")
    batch, found = collate(rows, encoder, catalogue, loss, 3), []
    for checkpointing in (False, True):  # one model keeps all, the other layers' inputs in RAM
        model = adapted(tiny_folder, 1, checkpointing, lora={"r": 4, "dropout": 0.3}, **FP32)
        torch.manual_seed(2)
        weight = (0.7 if contrast else 1.0) / batch.supervised
        if contrast and not checkpointing:
            towers = Towers(model)
            with towers.working():
                _whole(towers, batch, loss, weight, lambda scalar: scalar.backward())
        else:
            two_tower_step(Towers(model, checkpointing), batch, loss, lambda scalar: scalar.backward())
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_offload_leaves_nothing_that_grows_with_the_rows(checkpointed, rows, encoder, catalogue, plain_loss) -> None:
    """What a chunk keeps for its backward pass is all in RAM; without offload the inputs of both layers are not."""
    chunk, kept = collate(rows, encoder, catalogue, plain_loss, 3).chunks[0], {}
    for offload in (False, True):
        kept[offload] = []
        towers = Towers(checkpointed, offload)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, here=offload: kept[here].append(t) or t, lambda t: t):
            towers.rows(chunk)
    width = checkpointed.config.hidden_size
    assert sum(t.shape == (*chunk.ids.shape, width) for t in kept[False]) >= 2
    assert kept[True] == []


class Held:
    """Bytes that autograd holds for the backward pass, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> "Kept":
        return Kept(tensor, self)


class Kept:
    def __init__(self, tensor: torch.Tensor, held: Held) -> None:
        self.tensor, self.held = tensor, held
        held.now += tensor.nbytes
        held.most = max(held.most, held.now)

    def __del__(self) -> None:
        self.held.now -= self.tensor.nbytes


def test_a_fork_that_many_targets_pass_is_there_once(rows, encoder, catalogue) -> None:
    loss = Loss(alpha=0, beta=0, softmax="catalogue")
    one, many = (collate(rows * times, encoder, catalogue, loss, 10**6).chunks[0].forks for times in (1, 8))
    assert len(many.positions) == 8 * len(one.positions)
    for name in ("ptr", "tokens", "entry_token", "entry_bias"):
        torch.testing.assert_close(getattr(many, name), getattr(one, name))


def test_what_is_held_does_not_grow_with_the_batch(model, rows, encoder, catalogue) -> None:
    most = {}
    for times in (1, 8):
        held = Held()
        loss = Loss(alpha=0.2, beta=0.1, softmax="vocabulary", contrast_per_row=1)
        batch = collate(rows * times, encoder, catalogue, loss, 2)
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
            gradients(model, batch, loss)
        assert held.now == 0
        most[times] = held.most
    # Without padding, a chunk of two of the longest rows, of which there is one but in the larger batch, holds more.
    assert most[8] <= 1.15 * most[1]


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device: reading a value, or a size that depends on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        if name in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("micro", [3, 100])
@pytest.mark.parametrize("softmax", ["vocabulary", "catalogue"])
def test_the_step_never_waits_for_the_device(model, rows, encoder, catalogue, micro: int, softmax: str) -> None:
    """transformers itself reads one value a forward, to see whether sequences are packed; no joined call does."""
    loss = Loss(alpha=0.2, beta=0.1, softmax=softmax)
    batch = collate(rows, encoder, catalogue, loss, micro)
    with Waits() as waits:
        model.get_base_model().get_decoder()(input_ids=batch.chunks[0].ids, use_cache=False)
    assert len(waits.found) <= 1
    for way in ("padded", "one by one"):
        towers = Towers(model)
        towers.join = way
        apart = 0 if way != "padded" or batch.at_once else len(batch.chunks) + 2 * len(batch.items)
        with Waits() as step_waits:
            two_tower_step(towers, batch, loss, lambda scalar: scalar.backward())
        assert len(step_waits.found) == len(waits.found) * apart, step_waits.found


@pytest.mark.parametrize("direction", ["user_to_item", "both"])
def test_dropout_is_replayed(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss, direction: Literal["user_to_item", "both"]
) -> None:
    """The first and the second pass see the same masks: the surrogate's value is then the vectors' own."""
    model = adapted(tiny_folder, 3, std=0.3, lora={"r": 4, "dropout": 0.5}, **FP32)
    seen: list[torch.Tensor] = []
    towers = Towers(model)
    all_states = towers.all_states

    def recorded(parts) -> list[torch.Tensor]:
        out = all_states(parts)
        seen.extend(states.detach().clone() for states in out)
        return out

    towers.all_states = recorded  # type: ignore[method-assign]
    loss = plain_loss.model_copy(update={"direction": direction})
    batch = collate(rows, encoder, catalogue, loss, micro=3)
    two_tower_step(towers, batch, loss, lambda scalar: scalar.backward())
    chunks, items = len(batch.chunks), len(batch.items)
    assert chunks > 1
    assert len(seen) == 2 * items + (2 if direction == "both" else 1) * chunks
    first, second = seen[:items], seen[-items:]
    if direction == "both":
        first, second = [*first, *seen[items:][:chunks]], [*second, *seen[items + chunks :][:chunks]]
    for one, other in zip(first, second):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.equal(seen[items][:1], all_states(batch.chunks)[0][:1])  # dropout is really on


def test_a_validation_before_training_leaves_the_gradients_of_a_4bit_base_alone(
    tiny_folder: Path, rows, encoder, catalogue, plain_loss: Loss
) -> None:
    """bitsandbytes repacks 4-bit weights on a CPU in eval mode, for a kernel without backward."""
    found = []
    for validate in (False, True):
        torch.manual_seed(0)
        base = Base(model=str(tiny_folder), load_in_4bit=True, lora=Lora(r=4))
        model = add_adapter(load_model(tiny_folder, base), base)
        batch = collate(rows, encoder, catalogue, plain_loss, micro=3)
        if validate:
            model.eval()
            with torch.no_grad():
                two_tower_step(Towers(model), batch, plain_loss, None)
        model.train()
        found.append(gradients(model, batch, plain_loss)[1])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
    assert float(found[0]["base_model.model.model.layers.0.self_attn.v_proj.lora_B.default.weight"].abs().max()) > 0


def test_a_text_of_the_batch_is_no_negative_of_itself(rows, encoder, catalogue, plain_loss: Loss) -> None:
    batch = collate(rows, encoder, catalogue, plain_loss, 100)
    texts = [k for row in batch.rows for k in row.items[1:]]
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            if a == b:
                assert not batch.negatives[i, j]
    assert sum(len(part.ends) for part in batch.items) == len(set(texts))  # encoded once each
    ends = torch.cat([part.ends for part in batch.items])
    assert (ends.diff() >= 0).all()  # texts of similar length together


def test_contrast_per_row_takes_the_latest_targets(rows, encoder, catalogue, plain_loss: Loss) -> None:
    loss = plain_loss.model_copy(update={"contrast_per_row": 1})
    batch = collate(rows, encoder, catalogue, loss, 100)
    assert len(batch.anchor_item) == len(rows)
    assert batch.chunks[0].anchor_end.tolist() == [int(r.ends[-1]) for r in batch.rows]


@pytest.mark.parametrize("micro", [2, 100])
def test_vocabulary_weight_adds_so_much_of_the_mean_over_tokens(model, rows, encoder, catalogue, micro: int) -> None:
    """However many forks and tokens the items have, and however the step is cut."""
    quiet = Loss(alpha=0, beta=0, softmax="catalogue")

    def value(**changes) -> float:
        loss = quiet.model_copy(update=changes)
        return float(two_tower_step(Towers(model), collate(rows, encoder, catalogue, loss, micro), loss, None).loss)

    over_tokens = value(softmax="vocabulary")
    for weight in (0.5, 1.0):
        mixed = value(vocabulary_weight=weight)
        assert mixed - value() == pytest.approx(weight * over_tokens, rel=1e-5)


def test_one_epoch_on_a_ring_learns_it(tiny_folder: Path, domain: Domain, encoder, catalogue) -> None:
    """The whole step learns: the next item of a ring is certain once it is seen."""
    torch.manual_seed(0)
    base = Base(model=str(tiny_folder), dtype="float32", load_in_4bit=False, lora=Lora(r=8))
    model = add_adapter(load_model(tiny_folder, base), base)
    loss = Loss(alpha=0.1, beta=0.05)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ring = [encoder.row(np.arange(s, s + 4) % 30, catalogue.tokens, "shop") for s in range(30)]
    history = []
    for _ in range(60):
        batch = collate(ring, encoder, catalogue, loss, 30)
        optimizer.zero_grad()
        history.append(float(two_tower_step(Towers(model), batch, loss, lambda s: s.backward()).nats_per_item))
        optimizer.step()
    assert history[0] > 3
    assert history[-1] < 0.5 * history[0]
