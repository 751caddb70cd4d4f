"""The service as an ASGI application: its routes, who may ask, and a line for whatever is wrong with a request."""

import asyncio
import hmac
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from calrec_lite import __version__
from calrec_lite.recommend.recommender import Recommendation
from calrec_lite.serve.engine import Engine, Full
from calrec_lite.serve.known import KnownUsers
from calrec_lite.serve.lists import Lists, Wanted
from calrec_lite.serve.messages import (
    LONGEST_NAME,
    MOST_ITEMS,
    About,
    ById,
    Case,
    Fault,
    Found,
    Health,
    Item,
    Listed,
    Name,
    Recommended,
    Request,
    Scored,
    Similar,
    Strategy,
    Users,
)
from calrec_lite.serve.web import FAULTS, add_pages, add_protection

Text = Annotated[str, Query(max_length=LONGEST_NAME)]
Count = Annotated[int, Query(ge=1, le=MOST_ITEMS)]


@dataclass(frozen=True)
class Settings:
    """How requests are taken.

    Attributes:
        token: who asks for data must send it; None: whoever reaches the service may ask.
        hosts: names by which it may be called; empty: any. A page of a stranger could else have a browser ask here.
        batch: requests of one kind that are worked on together.
        room: requests that may wait.
        timeout: seconds until a request that waits, or is worked on, is answered that it takes too long.
    """

    token: str | None = None
    hosts: Sequence[str] = field(default_factory=list)
    batch: int = 16
    room: int = 256
    timeout: float = 30.0


def create_app(lists: Lists, settings: Settings, known: KnownUsers | None = None) -> FastAPI:
    """The application. Its thread for the model starts and ends with it."""
    service = Service(lists, settings, known)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.engine.close, settings.timeout)

    app = FastAPI(
        title="calrec-lite",
        description="Recommendations of a catalogue's items.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    add_protection(app, settings.hosts)
    add_pages(app)
    app.include_router(_open_routes(service))
    app.include_router(_routes(service), dependencies=[Depends(_only_with(settings.token))])
    return app


class Service:
    """Requests as messages in, answers as messages out.

    Args:
        lists: what makes them.
        known: users of a run; None: none.
    """

    def __init__(self, lists: Lists, settings: Settings, known: KnownUsers | None) -> None:
        self.lists, self.settings, self.known = lists, settings, known
        self.engine: Engine[Wanted, list[Recommendation]] = Engine(
            lists, lambda w: w.together, settings.batch, settings.room
        )

    async def recommend(self, request: Request) -> Recommended:
        """Wait for the list. Raises InputError, RunError as `Lists`; HTTPException where it takes too long."""
        wanted, unknown = await asyncio.to_thread(self._wanted, request)
        made = await self._made(wanted)
        items = [self._listed(self._place(one.item), rank, one) for rank, one in enumerate(made, 1)]
        return Recommended(strategy=wanted.strategy, items=items, unknown=unknown)

    def _wanted(self, request: Request) -> tuple[Wanted, list[str]]:
        """What is to be made, and the titles that no item has. Raises HTTPException for what cannot be."""
        strategy = request.strategy or self.lists.strategies[0]
        if strategy not in self.lists.strategies:
            raise HTTPException(422, f"`strategy`: here are {', '.join(self.lists.strategies)}")
        history = self._names(request.history)
        unknown = self.lists.recommender.unknown(history)
        if request.strict and unknown:
            raise HTTPException(422, f"`history`: {self.lists.recommender.not_found(unknown)}")
        candidates = None if request.candidates is None else self._names(request.candidates)
        k = request.k or self.lists.default_k
        return Wanted(history, strategy, k, self._names(request.deny), candidates), unknown

    async def _made(self, wanted: Wanted) -> list[Recommendation]:
        try:
            answer = self.engine.submit(wanted)
            return await asyncio.wait_for(asyncio.wrap_future(answer), self.settings.timeout)
        except Full as error:
            raise HTTPException(503, str(error), {"Retry-After": str(error.seconds)}) from None
        except asyncio.TimeoutError:
            raise HTTPException(504, f"no list after {self.settings.timeout:g} s; ask for less, or later") from None

    def similar(self, item: str, k: int) -> Similar:
        """Raises HTTPException for an id that no item has."""
        by, found = self.lists.similar(self._place(item), k)
        return Similar(by=by, items=[Scored(**self._described(i), score=score) for i, score in found])

    def found(self, query: str, limit: int) -> Found:
        """Items by words."""
        places, near = self.lists.search(query, limit)
        return Found(items=list(map(self.item, places)), near=near)

    def case(self, user: str) -> Case:
        """Raises HTTPException for a name that no user has."""
        found = self.known.case(user) if self.known else None
        if found is None:
            raise HTTPException(404, "`user`: no known user of that name" if self.known else "served without --run")
        history, truth = found
        return Case(user=user, history=list(map(self.item, history)), truth=None if truth is None else self.item(truth))

    def about(self) -> About:
        """What is served."""
        return About(
            domain=self.lists.package.info.domain,
            items=len(self.lists.package.ids),
            k=self.lists.default_k,
            strategies=[Strategy(name=s, weights=self._weights(s)) for s in self.lists.strategies],
            users=len(self.known or ()),
            version=__version__,
        )

    def item(self, place: int) -> Item:
        """An item as it is shown."""
        return Item(**self._described(place))

    def _listed(self, place: int, rank: int, one: Recommendation) -> Listed:
        score = one.score if math.isfinite(one.score) else None
        return Listed(**self._described(place), rank=rank, score=score, why=one.why, parts=dict(one.parts))

    def _described(self, place: int) -> dict[str, object]:
        package, titles = self.lists.package, self.lists.recommender.catalogue.titles
        return {"item": package.ids[place], "title": titles[place], "fields": package.fields[place]}

    def _weights(self, strategy: str) -> dict[str, float] | None:
        weights = self.lists.weights(strategy)
        return None if weights is None else dict(weights)

    def _place(self, item: str) -> int:
        place = self.lists.recommender.lookup.find_id(item)
        if place is None:
            raise HTTPException(404, f"`item`: no item has the id {item!r}")
        return place

    def _names(self, names: Sequence[Name]) -> tuple[str, ...]:
        """Texts by which the recommender finds the same items; a number is an id first, and then a title."""
        texts, lookup = self.lists.recommender.catalogue.texts, self.lists.recommender.lookup
        written = []
        for name in names:
            if isinstance(name, ById):
                written.append(texts[self._place(name.item)])
            elif isinstance(name, int):
                place = lookup.find_id(str(name))
                written.append(str(name) if place is None else texts[place])
            else:
                written.append(name)
        return tuple(written)


def _only_with(token: str | None) -> Callable[..., None]:
    """A dependency that lets nobody by without the token."""
    scheme = HTTPBearer(auto_error=False, description="what the service was started with as its token")

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        sent = given.credentials if given else ""
        if token is not None and not hmac.compare_digest(sent.encode(), token.encode()):
            raise HTTPException(401, "send the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    return check


def _open_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health", tags=["service"])
    async def health() -> Health:
        """Whether the service is there. Needs no token."""
        return Health(status="ok", waiting=service.engine.waiting, answered=service.engine.answered)

    return router


def _routes(service: Service) -> APIRouter:
    router = APIRouter(responses={code: {"model": Fault, "description": what} for code, what in FAULTS.items()})

    @router.post("/recommend", tags=["lists"])
    async def recommend(request: Request) -> Recommended:
        """The items that most likely follow a history."""
        return await service.recommend(request)

    @router.get("/similar", tags=["lists"])
    def similar(item: Text, k: Count = 10) -> Similar:
        """The items most like one, by its id."""
        return service.similar(item, k)

    @router.get("/items", tags=["items"])
    def items(q: Text = "", limit: Count = 20) -> Found:
        """Items whose text holds all words of `q`, or whose id it is; without `q` the most bought."""
        return service.found(q, limit)

    @router.get("/users", tags=["known users"])
    def users(q: Text = "", limit: Count = 20) -> Users:
        """Names of known users that begin with `q`."""
        return Users(users=service.known.named(q, limit) if service.known else [])

    @router.get("/user", tags=["known users"])
    def user(name: Text) -> Case:
        """A known user's history, and what really came next."""
        return service.case(name)

    @router.get("/about", tags=["service"])
    async def about() -> About:
        """What is served, and how much each part of a list counts."""
        return service.about()

    return router
