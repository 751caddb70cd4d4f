"""The models, histories and plain scores of the decoding tests."""

from tests.decode.conftest import causal, everything, exact, package, paths, prompts, towers, tree  # noqa: F401
