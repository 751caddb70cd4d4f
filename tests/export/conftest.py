"""A whole run on the tiny model, and its export."""

from tests.training.conftest import exported, trained  # noqa: F401
