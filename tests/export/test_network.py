"""Commands over what lies here open no connection, also where the Hub could be reached."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from calrec_lite.cli import group
from calrec_lite.run import Run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Where connections were tried; all are refused."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("CALREC_LITE_CACHE", str(tmp_path / "cache"))
    tried: list[Any] = []

    def refuse(*arguments: Any, **options: Any) -> Any:
        tried.append(arguments)
        raise OSError("the network is cut")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_no_command_over_a_run_or_an_export_opens_a_connection(
    trained: Run, exported: tuple[dict, Path], tmp_path: Path, asked: list[Any]
) -> None:
    run, folder = str(trained.folder), str(exported[1])
    stage = trained.stages[0]
    commands = [
        ["recommend", folder, "a title"],
        ["recommend", folder, "a title", "--strategy", "sample"],
        ["export", run, "--to", str(tmp_path / "export")],
        ["merge", str(trained.base), str(stage.adapter), str(tmp_path / "merged")],
        ["report", run],
        ["compare", run, run, "--pair", "base", "final"],
    ]
    for command in commands:
        group(command, standalone_mode=False)
        assert asked == [], f"{command[0]} asked the network"


def test_compiled_code_of_the_hub_is_not_asked_for() -> None:
    """transformers would, where the package `kernels` is installed; whoever wants it sets the variable."""
    code = "import os, calrec_lite; print(os.environ['USE_HUB_KERNELS'])"
    environment = {k: v for k, v in os.environ.items() if k != "USE_HUB_KERNELS"}
    for asked, enabled in (({}, "NO"), ({"USE_HUB_KERNELS": "YES"}, "YES")):
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**environment, **asked}
        )
        assert said.stdout.strip() == enabled
