"""The JSON schemas of a description: what each type is asked for, and all of them made together, with their names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PydanticUserError, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from aioflow.errors import ConfigError

Json = dict[str, Any]
Mode = Literal["validation", "serialization"]
NAMED = "#/components/schemas/"


class Lenient(GenerateJsonSchema):
    """What has no JSON schema is any JSON: a description must not keep a service from starting."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """A default that JSON cannot have is left out, and a choice without a schema: nobody need be warned."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Json:
        """Any JSON."""
        del schema, error_info
        return {}


class Schemas:
    """Schemas that are handed out empty and filled together, so that types of one name get names of their own."""

    def __init__(self) -> None:
        self._asked: list[tuple[Json, Mode, TypeAdapter[Any]]] = []

    def of(self, kind: Any, mode: Mode, where: str) -> Json:
        """The schema of a type, once `fill` was called. Raises ConfigError where pydantic cannot use it."""
        schema: Json = {}
        try:
            adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
        except (NameError, TypeError, PydanticUserError) as error:
            raise ConfigError(f"{where}: {kind!r} cannot be described: {error}") from error
        self._asked.append((schema, mode, adapter))
        return schema

    def fill(self) -> Json:
        """Fill what was handed out; the schemas that have names."""
        wanted = [(place, mode, adapter) for place, (_, mode, adapter) in enumerate(self._asked)]
        made, named = TypeAdapter.json_schemas(wanted, ref_template=NAMED + "{model}", schema_generator=Lenient)
        for place, (schema, mode, _) in enumerate(self._asked):
            schema.update(made[place, mode])
        definitions: Json = named.get("$defs", {})
        return definitions


def fields_of(schema: Json, named: Json) -> tuple[dict[str, Json], set[str]]:
    """The properties of an object's schema, and which of them are required."""
    while "$ref" in schema:
        schema = named[schema["$ref"].removeprefix(NAMED)]
    return schema.get("properties", {}), set(schema.get("required", ()))
