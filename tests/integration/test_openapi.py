"""/openapi.json: what follows from paths, tasks and annotations, what is said beside a route, and what is served."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel, PlainValidator
from typing_extensions import TypedDict

from aioflow import ConfigError, Runtime, Service
from aioflow.cli.find import find_services
from aioflow.cli.serve import bind
from aioflow.ingress.app import make_app
from aioflow.ingress.server import Ingress
from aioflow.settings import load_settings
from aioflow.web import PageQuery, RangeQuery, openapi


class Order(BaseModel):
    item: str
    count: int = 1


class Packed(BaseModel):
    weight: float


class Shown(TypedDict):
    state: Literal["open", "done"]
    since: datetime


class Listing(RangeQuery, PageQuery):
    state: Literal["open", "done"]


def resolved(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references at its top."""
    while "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def content(answer: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    """The schema of an answer or a body."""
    schema: dict[str, Any] = answer["content"][kind]["schema"]
    return schema


def shop() -> Service:
    """A service with a task that can be submitted."""
    service = Service("shop")

    @service.task()
    async def pack(order: Order) -> Packed:
        """Pack an order."""
        return Packed(weight=order.count)

    service.post("/orders", submits=pack, location="/orders/{id}")
    return service


def test_a_submit_is_described_by_its_task() -> None:
    described = openapi([shop()])
    assert (described["openapi"], described["info"]["title"]) == ("3.1.0", "shop")
    operation = described["paths"]["/orders"]["post"]
    assert (operation["operationId"], operation["summary"]) == ("shop.pack", "Pack an order.")
    assert resolved(described, content(operation["requestBody"]))["required"] == ["item"]
    done, dead = content(operation["responses"]["200"])["oneOf"]
    assert resolved(described, done["properties"]["result"])["properties"]["weight"] == {
        "title": "Weight",
        "type": "number",
    }
    assert resolved(described, dead)["properties"]["status"] == {"const": "dead"}
    assert resolved(described, content(operation["responses"]["202"]))["required"] == ["status", "tracking_id"]
    assert [(told["name"], told["in"], told["required"]) for told in operation["parameters"]] == [
        ("Idempotency-Key", "header", False),
        ("Prefer", "header", False),
    ]
    statuses = {"200", "202", "400", "408", "409", "413", "414", "415", "417", "422", "429", "431", "503"}
    assert set(operation["responses"]) == statuses
    problem = described["components"]["responses"]["422"]
    assert content(problem, "application/problem+json") == {"$ref": "#/components/schemas/Problem"}


def test_a_function_is_described_by_its_path_and_its_annotations() -> None:
    service = shop()

    @service.get(r"/orders/{id:[0-9a-f]{2,32}}")
    async def show(request: web.Request, runtime: Runtime) -> Shown:
        """One order.

        And more than a summary should have.
        """
        raise NotImplementedError

    @service.delete("/orders/{id}/lines/{line}")
    async def remove(request: web.Request, runtime: Runtime) -> None:
        """Forget it."""

    @service.get("/picture")
    async def picture(request: web.Request, runtime: Runtime) -> web.Response:
        raise NotImplementedError

    described = openapi([service])
    operation = described["paths"]["/orders/{id}"]["get"]
    assert operation["summary"] == "One order."
    assert [told["name"] for told in operation["parameters"]] == ["id"]
    answer = resolved(described, content(operation["responses"]["200"]))
    assert answer["properties"]["since"]["format"] == "date-time"
    assert "404" in operation["responses"], "the path may lead to nothing"
    gone = described["paths"]["/orders/{id}/lines/{line}"]["delete"]
    assert "content" not in gone["responses"]["204"]
    assert [told["name"] for told in gone["parameters"]] == ["id", "line"]
    assert content(described["paths"]["/picture"]["get"]["responses"]["200"]) == {}


def test_what_is_said_beside_a_route() -> None:
    service = Service("shop")

    @service.get("/orders", query=Listing, answers={200: list[Shown]}, problems=(409,), bearer=True)
    async def listing(request: web.Request, runtime: Runtime) -> dict[str, Any]:
        raise NotImplementedError

    @service.put("/orders", body=Order, answers={201: Shown, 204: None, 206: "image/gif"})
    async def put(request: web.Request, runtime: Runtime) -> web.Response:
        raise NotImplementedError

    described = openapi([service])
    operation = described["paths"]["/orders"]["get"]
    parameters = {told["name"]: told for told in operation["parameters"]}
    assert set(parameters) == {"since", "until", "limit", "cursor", "state"}
    assert [name for name, told in parameters.items() if told["required"]] == ["state"]
    assert parameters["limit"]["schema"]["maximum"] == 1000
    assert {"401", "403", "409", "422"} <= set(operation["responses"])
    assert operation["security"] == [{"bearer": []}]
    assert described["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert content(operation["responses"]["200"])["items"]["$ref"].endswith("/Shown")
    put_operation = described["paths"]["/orders"]["put"]
    assert {"201", "204", "206", "413", "415", "422"} <= set(put_operation["responses"])
    assert "200" not in put_operation["responses"]
    assert list(put_operation["responses"]["206"]["content"]) == ["image/gif"]
    assert "requestBody" not in operation


def test_a_wrong_description_is_an_error_that_names_the_route() -> None:
    service = Service("shop")
    with pytest.raises(ConfigError, match="service shop, route GET /orders: there is no answer; a route is described"):
        service.get("/orders", answer=Shown)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=r"route DELETE /orders: answers and problems go by status.*not '404'"):
        service.delete("/orders", problems=("404",))  # type: ignore[arg-type]

    @service.post("/orders", body=object())
    async def post(request: web.Request, runtime: Runtime) -> None:
        raise NotImplementedError

    with pytest.raises(ConfigError, match=r"route POST /orders: <object object at .* cannot be described"):
        openapi([service])


def test_types_of_one_name_have_names_of_their_own_and_one_without_a_schema_is_any_json() -> None:
    class Order(BaseModel):  # another than the module's
        number: int

    service = shop()

    @service.post("/numbers", body=Order)
    async def number(request: web.Request, runtime: Runtime) -> Annotated[Any, PlainValidator(str)]:
        raise NotImplementedError

    described = openapi([service])
    bodies = [content(described["paths"][path]["post"]["requestBody"]) for path in ("/orders", "/numbers")]
    fields = [set(resolved(described, body)["properties"]) for body in bodies]
    assert fields == [{"item", "count"}, {"number"}]
    assert content(described["paths"]["/numbers"]["post"]["responses"]["200"]) == {}


async def test_it_is_served_with_every_route_and_as_the_function_has_it(namespace: str) -> None:
    services = [shop()]
    listener = bind(load_settings(port=0))
    async with Runtime(services, redis="memory:", namespace=namespace) as runtime, aiohttp.ClientSession() as session:
        ingress = Ingress(make_app(runtime))
        await ingress.open(listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with session.get(f"{url}/openapi.json") as answer:
                assert (answer.status, answer.content_type) == (200, "application/json")
                assert await answer.json() == openapi(services)
            async with session.head(f"{url}/openapi.json") as answer:
                assert answer.status == 200
        finally:
            await ingress.close()
            listener.close()


def test_every_route_of_the_services_here_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOFLOW_DELIVERY_SECRETS", f"whsec_{'A' * 43}=")
    services = find_services([])
    paths = openapi(services)["paths"]
    names: list[str] = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(names) == len(set(names))
    for service in services:
        for route in service.routes:
            path = route.path.replace(":[^/]+", "")
            assert route.method.lower() in paths[path], f"{route.method} {route.path}"
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert set(paths[path]) == {"get", "head"}
    assert "101" in paths["/moderation/desk"]["get"]["responses"]
    assert list(paths["/track.gif"]["get"]["responses"]["200"]["content"]) == ["image/gif"]
