"""A whole run on the tiny model."""

from tests.training.conftest import trained  # noqa: F401
