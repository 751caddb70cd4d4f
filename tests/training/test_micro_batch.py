"""Memory that runs out: the step is repeated with half the micro-batch, and nothing else changes."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import TrainerControl, TrainerState

from calrec_lite.errors import InputError, RunError
from calrec_lite.method.batch import Collator
from calrec_lite.method.catalogue import encode_catalogue
from calrec_lite.method.rows import Rows, training_rows
from calrec_lite.model.base import add_adapter, load_model
from calrec_lite.model.memory import out_of_memory, peak_bytes, trim_heap
from calrec_lite.recipe import Base, Lora, Loss
from calrec_lite.training.config import CALRecConfig
from calrec_lite.training.micro_batch import MicroBatch, check_offload
from calrec_lite.training.trainer import CALRecTrainer
from tests.conftest import make_domain


def trainer(tiny_folder: Path, domain, encoder, catalogue, out: Path, micro: int, **options) -> CALRecTrainer:
    torch.manual_seed(0)
    lora = Lora(r=4, dropout=options.pop("dropout", 0.0))
    base = Base(model=str(tiny_folder), dtype="float32", load_in_4bit=False, lora=lora)
    model = add_adapter(load_model(tiny_folder, base), base)
    loss = Loss(alpha=0.2, beta=0.1)
    config = CALRecConfig(
        output_dir=str(out),
        objective=loss,
        micro_batch_size=micro,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "logging_steps": 2,
            "save_strategy": "no",
            **options,
        },
    )
    rows = Rows([training_rows(domain, catalogue, encoder, loss)], encoder)
    return CALRecTrainer(model, config, rows)


def fail_above(own: CALRecTrainer, rows: int) -> list[int]:
    """Raise what CUDA raises, in the backward pass of a chunk with more rows; returns the sizes that failed."""
    failed: list[int] = []
    rows_of = own.towers.rows

    def limited(chunk, *arguments, **options):
        states = rows_of(chunk, *arguments, **options)
        if len(chunk.ids) > rows and states.nll.requires_grad:
            failed.append(len(chunk.ids))
            states.nll.register_hook(_raise)
        return states

    own.towers.rows = limited  # type: ignore[method-assign]
    return failed


def _raise(gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def weights(own: CALRecTrainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in own.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_goes_on_with_half_and_ends_the_same(
    tiny_folder, domain, encoder, catalogue, tmp_path, capsys, dropout: float
) -> None:
    """As if cut like that from the beginning, bit for bit; with dropout too, for the random state is put back."""
    small = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 2, dropout=dropout)
    small.train()
    large = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8, dropout=dropout)
    failed = fail_above(large, 3)  # two of full length are up to three shorter ones
    large.train()
    assert failed == [8, 4]  # once each: later steps start with what fits
    assert large.micro.size == 2
    wanted = weights(small)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(large).items())
    lines = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert [line.split(": ", 2)[2].split(" rows")[0] for line in lines] == ["8 -> 4", "4 -> 2"]
    logged = [entry["micro_batch_size"] for entry in large.state.log_history if "micro_batch_size" in entry]
    assert logged == [4, 2]


def test_it_ends_as_the_run_that_never_failed(tiny_folder, domain, encoder, catalogue, tmp_path) -> None:
    # plain gradient descent: Adam's first steps are the signs of gradients, some of which are rounding alone
    plain = {"optim": "sgd", "learning_rate": 0.1}
    whole = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8, **plain)
    start = weights(whole)
    whole.train()
    cut = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8, **plain)
    fail_above(cut, 3)
    cut.train()
    for name, value in weights(whole).items():
        moved = float((value - start[name]).abs().max())
        assert moved > 0, name
        torch.testing.assert_close(weights(cut)[name], value, rtol=1e-5, atol=1e-4 * moved, msg=name)


def test_one_row_that_does_not_fit_says_what_to_do(tiny_folder, domain, encoder, catalogue, tmp_path) -> None:
    own = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8)
    fail_above(own, 0)
    with pytest.raises(RunError, match="single row.*gradient_checkpointing"):
        own.train()


def test_other_errors_are_not_taken_for_it(tiny_folder, domain, encoder, catalogue, tmp_path) -> None:
    own = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8)

    def broken(*arguments, **options):
        raise RuntimeError("shapes cannot be multiplied")

    own.towers.rows = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="shapes"):
        own.train()


@pytest.mark.parametrize("said", ["CUDA error: out of memory\nCUDA kernel errors", "CUBLAS_STATUS_ALLOC_FAILED when"])
def test_lack_of_memory_is_recognised_by_its_words(said: str) -> None:
    assert out_of_memory(RuntimeError(said))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_a_resumed_run_is_cut_as_it_came_to(tiny_folder, domain, encoder, catalogue, tmp_path) -> None:
    """Halved before the checkpoint, it does not run out of memory again, and ends in the same bits."""
    often = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    whole = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8, dropout=0.2, **often)
    fail_above(whole, 3)  # two of full length are up to three shorter ones
    whole.train()
    again = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8, dropout=0.2, **often)
    failed = fail_above(again, 3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert failed == []
    assert again.micro.size == 2
    wanted = weights(whole)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(again).items())


def test_a_resumed_run_goes_on_in_the_epoch_it_was_in(tiny_folder, domain, encoder, catalogue, tmp_path) -> None:
    """Stopped in its third epoch, with dropout: the rows to come and the masks are those of never having stopped."""
    settings = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 16}
    whole = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 16, dropout=0.2, max_steps=9, **settings)
    epoch = len(whole.get_train_dataloader())
    assert 1 < epoch <= 3  # so that nine steps are three epochs or more
    whole.train()
    again = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 16, dropout=0.2, max_steps=9, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{2 * epoch + 1}"))
    wanted = weights(whole)
    assert all(torch.equal(value, wanted[name]) for name, value in weights(again).items())
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, again)]
    assert losses[0] == losses[1]


def test_a_resumed_run_logs_and_saves_as_asked_now(tiny_folder, domain, encoder, catalogue, tmp_path) -> None:
    """What may be changed between two starts is not taken from the checkpoint."""
    first = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8, save_strategy="steps", save_steps=2)
    first.train()
    often = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "max_steps": 6}
    again = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8, **often)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [2, 3, 4, 5, 6]
    assert {p.name for p in tmp_path.glob("checkpoint-*")} >= {"checkpoint-3", "checkpoint-5"}


@pytest.mark.parametrize(("started", "most", "grows", "size"), [(4, 16, True, 4), (2, 16, True, 4), (8, 8, False, 4)])
def test_a_resumed_estimate_does_not_grow_into_what_was_too_much(
    started: int, most: int, grows: bool, size: int
) -> None:
    """Grown from 4 to 8 and halved again: whatever the new start estimates, it is 4, for good."""
    state = TrainerState(stateful_callbacks={"MicroBatch": {"size": 4}})
    micro = MicroBatch(started, most, grows)
    micro.on_train_begin(None, state, TrainerControl())
    for _ in range(3 * MicroBatch.AFTER):
        assert not micro.grow(0, 1, 1000)
    assert micro.size == size
    by_hand = MicroBatch(2, 16, grows=False)
    by_hand.on_train_begin(None, state, TrainerControl())
    assert by_hand.size == 2


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_freed_pages_are_given_back() -> None:
    """What lies below the latest tensor of many small ones stays with the process, unless it is asked for."""
    held = [torch.ones(16_384) for _ in range(4_000)]  # 262 MB, each too small for a mapping of its own
    before = psutil.Process().memory_info().rss
    del held[:-1]
    trim_heap(torch.device("cpu"))
    assert before - psutil.Process().memory_info().rss > 200e6


HOLES = """
import psutil, torch
from calrec_lite.model.memory import trim_heap
trim_heap(torch.device("cpu"))
held = [torch.ones(size) for size in (75_000, 10) for _ in range(1_000)]  # 300 MB, below many small ones
before = psutil.Process().memory_info().rss
del held[:1_000]
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_large_tensors_of_a_cut_step_leave_no_holes() -> None:
    """They go back when they are freed, whatever was allocated after them; in a process whose heap has no holes yet."""
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 250e6


def test_the_peak_is_in_bytes_on_a_mac_too(monkeypatch: pytest.MonkeyPatch) -> None:
    here = peak_bytes(torch.device("cpu"))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_bytes(torch.device("cpu")) == pytest.approx(here / 1024, rel=0.1)


def test_a_cpu_that_has_no_more_memory_is_recognised() -> None:
    """The error PyTorch really raises: a process that may not have so much asks for it."""
    code = (
        "import resource, torch\n"
        "from calrec_lite.model.memory import out_of_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "try:\n"
        "    torch.empty(1 << 36)\n"
        "except RuntimeError as error:\n"
        "    print(out_of_memory(error))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "True", result.stderr[-2000:]


STARVED = """
import resource, sys, psutil, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.conftest import make_domain
from tests.training.test_micro_batch import trainer, weights
from calrec_lite.model.tokenizer import load_tokenizer
from calrec_lite.recipe import Text
from calrec_lite.text.encoding import Encoder
from calrec_lite.method.catalogue import encode_catalogue

folder, out = map(Path, sys.argv[1:])
encoder = Encoder(load_tokenizer(folder), Text(max_items=20))
domain = make_domain(users=600)
catalogue = encode_catalogue(domain.name, domain.catalogue, encoder)
plain = {"per_device_train_batch_size": 256, "max_steps": 1, "optim": "sgd", "learning_rate": 0.1}
free = trainer(folder, domain, encoder, catalogue, out, 32, **plain)
free.train()  # small from the beginning; also loads whatever is loaded late
starved = trainer(folder, domain, encoder, catalogue, out, 256, **plain)
allowed = psutil.Process().memory_info().vms + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
starved.train()
wanted = weights(free)
worst = max(float((v - wanted[n]).abs().max()) for n, v in weights(starved).items())
print("size", starved.micro.size, "worst", worst)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the address space")
def test_a_process_that_may_not_have_the_memory_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    """Nothing is raised by hand: a step of 256 rows really does not fit into what the process may have."""
    command = [sys.executable, "-c", STARVED, str(tiny_folder), str(tmp_path)]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert "out of memory: 256 -> 128 rows at once" in result.stdout, result.stderr[-2000:]
    words = result.stdout.split()
    assert int(words[words.index("size") + 1]) < 256
    assert float(words[words.index("worst") + 1]) < 1e-5


def test_out_of_memory() -> None:
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("no"))


def test_an_estimate_grows_while_it_fits() -> None:
    micro = MicroBatch(2, 16, grows=True)
    sizes = []
    for _ in range(5 * MicroBatch.AFTER):
        micro.grow(resting=100, peak=100 + 50 * micro.size, room=1000)
        sizes.append(micro.size)
    assert sizes[MicroBatch.AFTER - 2] == 2
    assert sizes[-1] == 16  # 16 rows take 900, and there are no more in a step
    tight = MicroBatch(2, 16, grows=True)
    for _ in range(5 * MicroBatch.AFTER):
        tight.grow(resting=100, peak=100 + 50 * tight.size, room=700)
    assert tight.size == 8  # 16 would take 900


def test_it_does_not_grow_again_after_a_failure_or_unasked() -> None:
    failed, set_by_hand = MicroBatch(8, 16, grows=True), MicroBatch(4, 16, grows=False)
    assert failed.shrink()
    for _ in range(3 * MicroBatch.AFTER):
        assert not failed.grow(0, 1, 1000)
        assert not set_by_hand.grow(0, 1, 1000)
    assert [failed.size, set_by_hand.size] == [4, 4]
    assert not MicroBatch(1, 16, grows=True).shrink()


def test_offload_asks_whether_ram_has_room(tiny_folder: Path) -> None:
    base = Base(model=str(tiny_folder), dtype="float32", load_in_4bit=False, lora=Lora(r=4))
    model = add_adapter(load_model(tiny_folder, base), base)
    check_offload(model, 16, 1000)
    with pytest.raises(InputError, match=r"offload keeps [\d.]+ GB of a step of 100000000 rows in RAM, and [\d.]+ GB"):
        check_offload(model, 100_000_000, 1000)


def test_workers_cut_as_the_trainer_came_to(tiny_folder, encoder, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After memory ran out only the steps that were made already are cut again in the process itself."""
    domain = make_domain(users=100)  # 13 steps an epoch: a new one would start new workers
    catalogue = encode_catalogue(domain.name, domain.catalogue, encoder)
    own = trainer(tiny_folder, domain, encoder, catalogue, tmp_path, 8, dataloader_num_workers=1, max_steps=12)
    fail_above(own, 4)
    here: list[int] = []
    collate = Collator.__call__

    def counted(self, rows):
        here.append(len(rows))
        return collate(self, rows)

    monkeypatch.setattr(Collator, "__call__", counted)
    own.train()
    assert own.micro.size == 4
    assert 1 <= len(here) <= 4  # one that failed, and two or three that the worker had made before
