"""A whole run on the tiny model whose lists are fused."""

from tests.fitting.conftest import fused_export, fused_run, ring_data  # noqa: F401
