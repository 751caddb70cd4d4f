"""Whole runs in two processes on the CPU (gloo): the weights of one process, whatever happens on the way."""

import os
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from calrec_lite.cli import group
from calrec_lite.errors import InputError, RunError
from calrec_lite.method.towers import Towers
from calrec_lite.processes import Processes, joined
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.training.config import CALRecConfig
from calrec_lite.training.fsdp import splits
from calrec_lite.training.launch import _ended
from calrec_lite.training.stage import train, train_run
from tests.together import together
from tests.training.conftest import values

STEPS = 20


def recipe(tiny_folder: Path, data: Path, **stage) -> dict:
    """One stage; rows of a step are an odd number, so that the processes' shares differ."""
    made = values(tiny_folder, data)
    made["stages"] = [{"name": "target", "domains": ["shop"], "max_steps": STEPS, **stage}]
    made["optim"] |= {"batch_size": 5, "save_every": 4, "log_every": 4, "eval_every": 10}
    del made["optim"]["learning_rate"]  # the default: at ten times of it Adam turns rounding into 5e-5 of a weight
    return made


def adapter(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.stages[0].adapter / "adapter_model.safetensors")


def difference(a: Run, b: Run) -> float:
    """The largest between two trained adapters' weights."""
    first, second = adapter(a), adapter(b)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def single(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run in one process."""
    run = Run.start(check_recipe(recipe(tiny_folder, data)), tmp_path_factory.mktemp("single"))
    train_run(run)
    return run


def _train(made: dict, runs: Path, starved: int | None = None) -> None:
    """In this process and the others; `starved` finds no memory once, in the middle of its share of a step."""
    if joined().rank == starved:
        plain, calls = Towers.rows, iter(range(1000))

        def rows(self, chunk, likelihood=True, hidden=None):
            if torch.is_grad_enabled() and next(calls) == 9:
                raise MemoryError
            return plain(self, chunk, likelihood, hidden)

        Towers.rows = rows  # type: ignore[method-assign]  # in this fork alone
    train(check_recipe(made), runs)


def test_two_processes_train_the_weights_of_one_and_the_first_alone_writes(
    single: Run, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    made = recipe(tiny_folder, data)
    together(2, tmp_path / "said", _train, made, tmp_path, 1)
    run = Run.open(tmp_path / "tiny")
    assert difference(run, single) < 1e-5
    steps = [entry["step"] for entry in run.log_entries() if "loss" in entry]
    assert steps == [4, 8, 12, 16, 20]  # each once
    for key in ("loss", "nats_per_item", "learning_rate", "eval_nats_per_item", "grad_norm"):
        got, wanted = ([e[key] for e in r.log_entries() if key in e] for r in (run, single))
        assert got == pytest.approx(wanted, rel=1e-4)
        assert got
    facts, alone = run.stage_metrics()["1-target"], single.stage_metrics()["1-target"]
    for key in ("valid_nats_before", "valid_nats_after", "valid_nats_merged"):
        assert facts[key] == pytest.approx(alone[key], rel=1e-5)
    assert sorted(p.name for p in run.folder.rglob("*")) == sorted(p.name for p in single.folder.rglob("*"))


def test_a_run_goes_on_in_another_number_of_processes(
    single: Run, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    """Begun by two, killed; on by one, stopped; to its end by three. None writes what the others cannot read."""
    made = recipe(tiny_folder, data)
    run = Run.start(check_recipe(made), tmp_path)
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        together(2, tmp_path / "two", _stopped_at, made, tmp_path, 6)
    assert run.stages[0].last_checkpoint.name == "checkpoint-4"
    assert not list(run.stages[0].last_checkpoint.glob("rng*"))
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        together(1, tmp_path / "one", _stopped_at, made, tmp_path, 9)
    assert run.stages[0].last_checkpoint.name == "checkpoint-8"
    together(3, tmp_path / "three", _train, made, tmp_path)
    assert difference(run, single) < 1e-5


def _stopped_at(made: dict, runs: Path, step: int) -> None:
    import calrec_lite.training.progress as progress

    plain = progress.Intervals.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt
        plain(self, args, state, control, **kwargs)

    progress.Intervals.on_step_end = on_step_end  # type: ignore[method-assign]
    train(check_recipe(made), runs)


def test_processes_go_by_one_clock(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """A stage of minutes: the learning rate and the end are those of the first one's clock, in both."""
    made = recipe(tiny_folder, data)
    del made["stages"][0]["max_steps"]
    made["stages"][0]["minutes"] = 0.03
    first, second = together(2, tmp_path / "said", _weights, made, tmp_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def _weights(made: dict, runs: Path) -> dict[str, torch.Tensor]:
    import calrec_lite.training.stage as stage

    kept: dict[str, torch.Tensor] = {}
    plain = stage._train_to_end

    def to_end(trainer, valid, folder):
        facts = plain(trainer, valid, folder)
        kept.update({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
        return facts

    stage._train_to_end = to_end  # type: ignore[assignment]
    train(check_recipe(made), runs)
    return kept


@pytest.mark.parametrize("cut", ["chunks", "one piece", "two passes"])
def test_a_base_split_among_processes_trains_the_same_weights_and_goes_on_in_one(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Shares of 3 and 2 rows by 2 are 2 chunks and 1, which is filled up; a step in one piece is one forward."""
    made = recipe(tiny_folder, data, max_steps=8)
    made["optim"] |= (
        {"batch_size": 6, "micro_batch_size": 6} if cut == "one piece" else {"gradient_checkpointing": True}
    )
    made["loss"] = {"direction": "both" if cut == "two passes" else "user_to_item"}
    monkeypatch.setattr("calrec_lite.training.trainer.ITEMS_AT_ONCE", 3)  # texts are filled up too
    alone = Run.start(check_recipe(made), tmp_path / "alone")
    train_run(alone)
    split = {**made, "optim": {**made["optim"], "fsdp": True}}
    shares = together(2, tmp_path / "said", _split_weights, split, tmp_path / "two")
    assert [share for share, _ in shares] == [[0.5]] * 2  # of each number of each layer
    assert all(fillers["rows"] and fillers["texts"] for _, fillers in shares) or cut == "one piece"
    run = Run.open(tmp_path / "two" / "tiny")
    assert difference(run, alone) < 1e-5
    facts, wanted = run.stage_metrics()["1-target"], alone.stage_metrics()["1-target"]
    for key in ("valid_nats_before", "valid_nats_after", "valid_nats_merged"):
        assert facts[key] == pytest.approx(wanted[key], rel=1e-5)
    begun = Run.start(check_recipe(split), tmp_path)
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        together(2, tmp_path / "stopped", _stopped_at, split, tmp_path, 6)
    train_run(begun)  # by one process, which has the whole base
    assert difference(begun, alone) < 1e-5


def test_a_process_of_a_split_base_that_finds_no_memory_says_what_to_set(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    """The others wait for its chunks: it cannot cut them anew."""
    made = recipe(tiny_folder, data)
    made["optim"]["fsdp"] = True
    with pytest.raises(AssertionError, match="out of memory with 2 rows at once: set optim.micro_batch_size lower"):
        together(2, tmp_path / "said", _train, made, tmp_path, 1)


@pytest.mark.parametrize(
    ("optim", "base", "match"),
    [
        ({"fsdp": True}, {"load_in_4bit": True}, "optim.fsdp: a quantised base is whole in each process"),
        ({"fsdp": True, "compile": True}, {}, "optim.compile: not with a base that is split"),
    ],
)
def test_what_does_not_go_with_a_split_base_is_said(
    tiny_folder: Path, data: Path, tmp_path: Path, optim: dict, base: dict, match: str
) -> None:
    made = recipe(tiny_folder, data)
    made["optim"] |= optim
    made["base"] |= base
    run = Run.start(check_recipe(made), tmp_path)
    with pytest.raises(InputError, match=match):
        splits(run, run.base, Processes(0, 2))


def test_a_base_is_split_where_it_fits_no_card(
    tiny_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.start(check_recipe(recipe(tiny_folder, data)), tmp_path)
    assert not splits(run, run.base, Processes(0, 2))
    card = torch.device("cuda")
    monkeypatch.setattr("calrec_lite.model.base.device", lambda: card)
    monkeypatch.setattr("calrec_lite.training.fsdp.device", lambda: card)
    for gigabytes, wanted in ((80, False), (1e-6, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where, free=gigabytes: (free * 1e9, 80e9))
        assert splits(run, run.base, Processes(0, 2)) is wanted
        assert not splits(run, run.base, Processes())  # one process has nothing to share with


def _split_weights(made: dict, runs: Path) -> tuple[list[float], Counter]:
    """What share of each layer's frozen weights a process holds: all that occur; and fillers of all processes."""
    import calrec_lite.training.shared_step as shared_step
    import calrec_lite.training.stage as stage

    found: set[float] = set()
    fillers: Counter = Counter()
    plain, plain_filled = stage._train_to_end, shared_step.filled

    def filled(batch, processes, start):
        made = plain_filled(batch, processes, start)
        more = len(made.chunks) - len(batch.chunks), len(made.items) - len(batch.items)
        for kind, count in zip(("rows", "texts"), processes.totals(more), strict=True):
            fillers[kind] += count
        return made

    shared_step.filled = filled

    def to_end(trainer, valid, folder):
        frozen = [p for p in trainer.towers.decoder.layers.parameters() if not p.requires_grad]
        found.update(p.to_local().numel() / p.numel() for p in frozen)
        return plain(trainer, valid, folder)

    stage._train_to_end = to_end  # type: ignore[assignment]
    train(check_recipe(made), runs)
    return sorted(found), fillers


def test_a_layer_is_let_go_once_its_part_is_taken(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """Else all of a base would be on the card for a while that it does not fit."""
    made = recipe(tiny_folder, data, max_steps=1)
    made["optim"]["fsdp"] = True
    for held in together(2, tmp_path / "said", _held, made, tmp_path):
        assert held
        assert not any(held)


def _held(made: dict, runs: Path) -> list[int]:
    """After each layer is split: how many of its whole frozen weights are still there."""
    import calrec_lite.model.sharded as sharded

    held: list[int] = []
    plain = sharded.fully_shard

    def fully_shard(part, **options):
        whole = [weakref.ref(p) for p in part.parameters() if p not in options["ignored_params"]]
        plain(part, **options)
        held.append(sum(isinstance(w(), torch.nn.Parameter) and not isinstance(w(), DTensor) for w in whole))

    sharded.fully_shard = fully_shard
    train(check_recipe(made), runs)
    return held


@pytest.mark.parametrize(
    ("key", "engine"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_accelerates_own_sharding_is_refused(monkeypatch: pytest.MonkeyPatch, key: str, engine: str) -> None:
    monkeypatch.setenv(key, "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    joined.cache_clear()
    with pytest.raises(InputError, match=f"asks for {engine}: turn it off; here optim.fsdp splits a base"):
        joined()
    joined.cache_clear()


def test_a_step_needs_a_row_for_each_process(tmp_path: Path) -> None:
    [first, second] = together(2, tmp_path / "said", _refused, tmp_path)
    assert first == second
    assert "cannot be shared out among 2 processes" in first


def _refused(folder: Path) -> str:
    processes = joined()
    for command in ("demo", "ablate"):
        assert "runs in one process" in str(
            CliRunner().invoke(group, [command, *["x"][: command == "ablate"]]).exception
        )
    with pytest.raises(InputError) as caught:
        CALRecConfig(str(folder), per_device_train_batch_size=1, use_cpu=True)
    processes.tell()  # the first does not leave before the second has come
    return str(caught.value)


@contextmanager
def started(made: dict, folder: Path) -> Iterator[subprocess.Popen]:
    """`calrec-lite train --nproc 2`, to be ended in the block."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made))
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    words = [sys.executable, "-m", "calrec_lite", "train", "recipe.yaml", "--nproc", "2"]
    with (folder / "said").open("w") as said:
        command = subprocess.Popen(words, cwd=folder, env=environment, stdout=said, stderr=said)
        try:
            yield command
        finally:
            for process in [*psutil.Process(command.pid).children(True)] if command.poll() is None else []:
                process.kill()
            command.kill()
            command.wait()


def said_after_a_kill(made: dict, folder: Path, rank: str) -> str:
    """What `train --nproc 2` prints where this one of its processes is killed after a checkpoint; all have ended."""
    with started(made, folder) as command:
        state = folder / "runs" / "tiny" / "1-target" / "checkpoints" / "checkpoint-4" / "trainer_state.json"
        wait_for(state.is_file, command)
        ranks = {p.environ()["RANK"]: p for p in psutil.Process(command.pid).children() if "RANK" in p.environ()}
        ranks[rank].send_signal(signal.SIGKILL)
        assert command.wait(60) == 1
        assert not any(p.is_running() for p in ranks.values())
    return (folder / "said").read_text()


def test_a_process_that_dies_ends_all_with_one_line_and_the_same_command_goes_on(
    single: Run, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    made = recipe(tiny_folder, data)
    said = said_after_a_kill(made, tmp_path, "1")
    lines = [line for line in said.splitlines() if "calrec-lite:" in line or "Traceback" in line]
    assert lines == [
        "calrec-lite: process 1 of 2 was killed by signal 9, and the others were ended; the same command goes on where "
        "it stopped"
    ]
    run = Run.open(tmp_path / "runs" / "tiny")
    train_run(run)  # to the end by one
    assert difference(run, single) < 1e-5


def test_of_a_split_base_too_a_dead_process_is_one_line(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    made = recipe(tiny_folder, data)
    made["optim"]["fsdp"] = True
    said = said_after_a_kill(made, tmp_path, "0")
    assert "process 0 of 2 was killed by signal 9" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("codes", "kind", "said"),
    [
        ({0: -2, 1: -9}, RunError, "process 1 of 2 was killed by signal 9"),
        ({0: -15, 1: 2}, InputError, ""),  # it has said why itself
        ({0: 1, 1: -15}, RunError, ""),
        ({0: 1, 1: -11}, RunError, "process 1 of 2 was killed by signal 11"),
        ({0: -15}, RunError, "process 0 of 2 was killed by signal 15"),
        ({1: 3}, RunError, "process 1 of 2 ended with code 3"),
    ],
)
def test_the_process_that_ended_first_is_named_and_not_those_that_were_ended_for_it(
    codes: dict[int, int], kind: type, said: str
) -> None:
    error = _ended(codes, 2)
    assert type(error) is kind
    assert str(error).startswith(said) if said else not str(error)


def wait_for(happened, command: subprocess.Popen, patience: float = 600) -> None:
    end = time.monotonic() + patience
    while not happened():
        assert command.poll() is None, "ended by itself"
        assert time.monotonic() < end, "too slow"
        time.sleep(0.02)
