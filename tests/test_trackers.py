"""What is logged and measured reaches the trackers that a recipe names, in stores on this disk."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calrec_lite.errors import InputError
from calrec_lite.evaluate.evaluate_run import evaluate_run
from calrec_lite.recipe.file import check_recipe
from calrec_lite.run import Run
from calrec_lite.trackers import require_trackers, send, tracking
from calrec_lite.training.stage import train_run
from tests.training.conftest import values


def scalars(folder: Path) -> dict[str, list[float]]:
    """What TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's file store, which it asks to be allowed by name."""
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return uri


def mlflow_runs(store: str) -> dict[str, Any]:
    from mlflow import MlflowClient
    from mlflow.tracking.fluent import flush_async_logging

    flush_async_logging()
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("calrec-lite")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where W&B and trackio write to: folders of this disk."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")  # imported before, it has read it already
    yield tmp_path
    sys.modules["wandb"].teardown()  # else the next test's would go to this folder, too


def wandb_runs(folder: Path) -> dict[str, tuple[list[dict[str, float]], int]]:
    """Name of each of W&B's runs -> what was logged, step by step, and its exit code."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for file in folder.glob("wandb/offline-run-*/*.wandb"):
        name, steps, code = "", [], -1
        for data in wandb_records(file.read_bytes()):
            record = Record.FromString(data)
            name = record.run.display_name or name
            if record.HasField("history"):
                items = (
                    (item.key or "/".join(item.nested_key), json.loads(item.value_json)) for item in record.history.item
                )
                steps.append(dict(items))
            if record.HasField("exit"):
                code = record.exit.exit_code
        assert name not in found
        found[name] = steps, code
    return found


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Records of W&B's file, which is one of LevelDB's logs: blocks of 32 KB, of records cut into parts."""
    at, record = 7, b""  # after its own head
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the whole of a record, or the last of its parts
            yield record
            record = b""


def trackio_runs() -> dict[str, list[dict[str, Any]]]:
    """Name of each of trackio's runs -> what was logged, step by step."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    return {run.name: SQLiteStorage.get_logs("calrec-lite", run.name) for run in trackio.Api().runs("calrec-lite")}


def test_training_and_evaluation_are_told_to_all(
    tiny_folder: Path, data: Path, tmp_path: Path, store: str, offline: Path
) -> None:
    made = values(tiny_folder, data)
    made["stages"] = [{"name": name, "domains": ["shop"], "max_steps": 2} for name in ("joint", "target")]
    names = ["tensorboard", "mlflow", "wandb", "trackio"]
    made["optim"] |= {"report_to": names, "log_every": 1, "valid_users": 5}
    made["evaluate"] |= {"base": False, "baselines": ["popularity"]}
    run = Run.start(check_recipe(made), tmp_path / "runs")
    train_run(run)
    results = evaluate_run(run)
    logged = {folder.folder.name: scalars(folder.folder / "tensorboard") for folder in run.stages}
    assert all(len(stage["train/nats_per_item"]) == 2 for stage in logged.values())
    measured = scalars(run.folder / "evaluation-tensorboard")
    for system in ("final", "popularity"):
        value = results["systems"][system]["ndcg@10"]["value"]
        assert measured[f"eval/{system}/ndcg@10"] == [pytest.approx(value)]
    value = results["systems"]["final"]["recall@10"]["value"]
    expected = {"tiny/1-joint", "tiny/2-target", "tiny/evaluation"}
    runs = mlflow_runs(store)
    assert runs.keys() == expected
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["tiny/evaluation"].data.metrics["eval_final/recall_10"] == pytest.approx(value)
    in_wandb, in_trackio = wandb_runs(offline), trackio_runs()
    assert in_wandb.keys() == in_trackio.keys() == expected  # each stage is a run of its own
    assert {code for _, code in in_wandb.values()} == {0}
    for name, stage in logged.items():
        nats = stage["train/nats_per_item"]
        assert runs[f"tiny/{name}"].data.metrics["nats_per_item"] == pytest.approx(nats[-1])
        for steps in (in_wandb[f"tiny/{name}"][0], in_trackio[f"tiny/{name}"]):
            told = [step["train/nats_per_item"] for step in steps if "train/nats_per_item" in step]
            assert told == pytest.approx(nats)
    for steps in (in_wandb["tiny/evaluation"][0], in_trackio["tiny/evaluation"]):
        assert steps[-1]["eval/final/recall@10"] == pytest.approx(value)


def test_a_run_of_ones_own_is_gone_on_with_and_one_that_fails_says_so(offline: Path) -> None:
    import wandb

    def fail() -> None:
        with tracking(offline / "tensorboard"):
            wandb.init(project="mine", name="failed")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    own = wandb.init(project="mine", name="own")
    send(["wandb"], "tiny/evaluation", offline / "tensorboard", {"final/ndcg@10": 0.25})
    assert wandb.run is own
    own.finish()
    runs = wandb_runs(offline)
    assert runs.keys() == {"failed", "own"}
    assert (runs["failed"][1], runs["own"][1]) == (1, 0)
    assert runs["own"][0][-1]["eval/final/ndcg@10"] == 0.25


def test_a_tracker_that_cannot_be_told_is_a_warning(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlruns").write_text("in the way")
    send(["mlflow"], "tiny/evaluation", tmp_path / "tensorboard", {"final/ndcg@10": 0.25})
    assert "WARNING: optim.report_to: not told to mlflow" in capsys.readouterr().out
    send([], "tiny/evaluation", tmp_path / "tensorboard", {"final/ndcg@10": 0.25})
    assert not (tmp_path / "tensorboard").exists()


def test_one_that_is_not_known_or_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"optim\.report_to: abacus is not supported"):
        require_trackers(["abacus"])
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "TRUE")
    with pytest.raises(InputError, match="mlflow"):
        require_trackers(["mlflow"])
    require_trackers(["tensorboard"])
