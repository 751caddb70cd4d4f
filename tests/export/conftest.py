"""Whole runs on the tiny model, and their exports."""

from tests.fitting.conftest import fused_export, fused_run, ring_data  # noqa: F401
from tests.training.conftest import exported, trained  # noqa: F401
