"""Small domains made by hand."""

from tests.evaluate.conftest import make_domain, two_stages  # noqa: F401
