"""The thread that makes lists: what it takes together, what fails alone, what is refused, how it ends."""

import threading
import time
from collections.abc import Callable

import pytest

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")

from calrec_lite.serve.engine import Engine, Full


class Gate:
    """Work that stands still until it is let go, and notes what it was given."""

    def __init__(self) -> None:
        self.open, self.entered, self.batches = threading.Event(), threading.Event(), list[list[int]]()

    def __call__(self, asks: list[int]) -> list[int]:
        self.batches.append(asks)
        self.entered.set()
        assert self.open.wait(10)
        if any(ask < 0 for ask in asks):
            raise ValueError(f"{min(asks)} is below zero")
        return [ask * 10 for ask in asks]


@pytest.fixture
def gate() -> Gate:
    return Gate()


def begun(gate: Gate, key: Callable[[int], int] = lambda ask: 0, batch: int = 3, room: int = 8) -> Engine[int, int]:
    """An engine that works on request 0; what comes now has to wait."""
    engine = Engine(gate, key, batch, room)
    engine.submit(0)
    assert gate.entered.wait(10)
    return engine


def test_what_waits_is_taken_together_up_to_the_batch(gate: Gate) -> None:
    engine = begun(gate)
    answers = [engine.submit(n) for n in (1, 2, 3, 4)]
    gate.open.set()
    assert [a.result(10) for a in answers] == [10, 20, 30, 40]
    assert gate.batches == [[0], [1, 2, 3], [4]]
    engine.close(10)
    assert engine.answered == 5


def test_only_one_kind_shares_a_batch_and_the_oldest_goes_first(gate: Gate) -> None:
    engine = begun(gate, key=lambda ask: ask % 2)
    answers = [engine.submit(n) for n in (1, 2, 3, 4)]
    gate.open.set()
    assert [a.result(10) for a in answers] == [10, 20, 30, 40]
    assert gate.batches == [[0], [1, 3], [2, 4]]
    engine.close(10)


def test_what_fails_fails_alone(gate: Gate) -> None:
    engine = begun(gate)
    good, bad, fine = (engine.submit(n) for n in (1, -2, 3))
    gate.open.set()
    assert (good.result(10), fine.result(10)) == (10, 30)
    with pytest.raises(ValueError, match="-2 is below zero"):
        bad.result(10)
    engine.close(10)


def test_a_full_queue_refuses_and_says_when(gate: Gate) -> None:
    engine = begun(gate, room=2)
    answers = [engine.submit(n) for n in (1, 2)]
    assert engine.waiting == 2
    with pytest.raises(Full) as refused:
        engine.submit(3)
    assert refused.value.seconds >= 1
    gate.open.set()
    assert [a.result(10) for a in answers] == [10, 20]
    assert engine.submit(4).result(10) == 40
    engine.close(10)


def test_what_nobody_waits_for_is_not_made(gate: Gate) -> None:
    engine = begun(gate)
    gone, kept = engine.submit(1), engine.submit(2)
    assert gone.cancel()
    gate.open.set()
    assert kept.result(10) == 20
    assert gate.batches == [[0], [2]]
    engine.close(10)


def test_closing_answers_what_waits_and_takes_nothing_more(gate: Gate) -> None:
    engine = begun(gate)
    answers = [engine.submit(n) for n in range(1, 6)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert _refused(engine)
    gate.open.set()
    closing.join(10)
    assert all(a.done() for a in answers)
    assert not closing.is_alive()


def _refused(engine: Engine[int, int]) -> bool:
    """Whether the engine takes nothing more, within ten seconds."""
    for _ in range(1000):
        try:
            engine.submit(6).cancel()
        except Full:
            return True
        time.sleep(0.01)
    return False
