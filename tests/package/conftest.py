"""An exported folder of the tiny model."""

from tests.decode.conftest import causal, package, towers  # noqa: F401
