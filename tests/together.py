"""Several processes of one function, as a launcher would start them: forked, so that nothing is imported again."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def together(size: int, folder: Path, work: Callable[..., Any], *arguments: Any, patience: float = 120) -> list[Any]:
    """What `work(*arguments)` gives in each of so many processes that know of each other. Fails if one does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_child, args=(rank, size, port, folder, work, arguments)) for rank in range(size)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(patience)
    for child in children:
        if child.is_alive():
            child.kill()
    said = [(folder / f"{rank}.error").read_text() for rank in range(size) if (folder / f"{rank}.error").exists()]
    assert [child.exitcode for child in children] == [0] * size, "\n".join(said) or "killed, or too slow"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _child(rank: int, size: int, port: int, folder: Path, work: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from accelerate.state import AcceleratorState

    from calrec_lite.processes import joined

    folder.mkdir(parents=True, exist_ok=True)
    try:
        AcceleratorState._reset_state(reset_partial_state=True)  # of the process that forked
        joined.cache_clear()
        torch.save(work(*arguments), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
