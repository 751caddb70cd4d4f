"""Users of a run, whose next item is known: to look at a list beside what really came."""

from collections.abc import Sequence

import numpy as np

from calrec_lite.data.domain import Domain
from calrec_lite.errors import InputError
from calrec_lite.package.layout import Package
from calrec_lite.run import Run


class KnownUsers:
    """The users of a prepared domain that have a test case.

    Args:
        domain: where the histories are.
        ids: the items that are served. A history's others are left out of it.
    """

    def __init__(self, domain: Domain, ids: Sequence[str]) -> None:
        self._domain = domain
        places = {item: i for i, item in enumerate(ids)}
        self._served = [places.get(item) for item in domain.catalogue.ids]
        users, _ = domain.sequences.held_out("test")
        self._users = {domain.sequences.users[u]: u for u in users.tolist()}

    @classmethod
    def of(cls, run: Run, package: Package) -> "KnownUsers":
        """Those of the run that an export was made of.

        Raises:
            InputError: it was made of other data.
        """
        domain = run.domain(run.recipe.target)
        if domain.fingerprint != package.info.fingerprint:
            raise InputError(f"--run {run.folder}: its data is not what the export was made of; name that one's run")
        return cls(domain, package.ids)

    def __len__(self) -> int:
        return len(self._users)

    def named(self, start: str, limit: int) -> list[str]:
        """Names that begin so."""
        names = (name for name in self._users if name.startswith(start))
        return [name for name, _ in zip(names, range(limit))]

    def case(self, name: str) -> tuple[list[int], int | None] | None:
        """A user's history and what came next, as served items; None for a name that is none."""
        if name not in self._users:
            return None
        found = self._domain.case(self._users[name], "test")
        assert found is not None  # only such users are here
        history, target = found
        served = [self._served[i] for i in np.asarray(history).tolist()]
        return [i for i in served if i is not None], self._served[int(target)]
