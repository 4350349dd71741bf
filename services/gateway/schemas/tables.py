"""Bodies of a project's own tables."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from services.gateway.schemas.common import Input, JsonObject, Output, Page

Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$", examples=["answers"])]
ColumnTypeName = Literal["text", "integer", "number", "boolean", "timestamp", "json"]


class ColumnInput(Input):
    """A typed column."""

    name: Identifier
    type: ColumnTypeName
    nullable: bool | None = Field(None, description="Accepts null. Unless said, all columns but those of the key do.")


class TableInput(Input):
    """A new table."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "answers",
                "columns": [{"name": "question", "type": "text"}, {"name": "answer", "type": "text"}],
                "key": ["question"],
            }
        }
    )
    name: Identifier
    columns: list[ColumnInput] = Field(min_length=1, max_length=200)
    key: list[Identifier] = Field(default_factory=list, max_length=16, description="Columns of the unique key.")


class Column(Output):
    """A typed column."""

    name: str
    type: ColumnTypeName
    nullable: bool


class Table(Output):
    """A project's own table, the default target of `db_write`."""

    name: str
    columns: list[Column]
    key: list[str]
    created_at: str


class TablePage(Page):
    """A page of tables, by name."""

    items: list[Table]


class RowPage(Page):
    """A page of rows."""

    items: list[JsonObject]
