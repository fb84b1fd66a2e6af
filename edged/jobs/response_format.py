"""The field response_format of a job: the structure that its answer must have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from edged.engine.grammar import GrammarSource
from edged.jobs.refusals import refuse

MAX_LABELS, MAX_LABEL = 256, 256
"""Labels of a choice, and characters of one."""
MAX_REGEX = 16_384
"""Characters."""
_LABELS_ALLOWED = f"a list of 1 to {MAX_LABELS} different labels, each of 1 to {MAX_LABEL} characters"
_SCHEMA_ALLOWED = 'an object, {"name": "…", "schema": {…}}'
_FORMAT_ALLOWED = 'an object such as {"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}}'
_BESIDE = {"json_schema": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
"""Types with the field that goes with each; the others have none."""


class JsonSchema(BaseModel):
    """A JSON schema in OpenAI's wrapper."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    name: str | None = Field(default=None, description="ignored", json_schema_extra={"allowed": "text"})
    description: str | None = Field(default=None, description="ignored", json_schema_extra={"allowed": "text"})
    definition: Any = Field(alias="schema", description="the schema", json_schema_extra={"allowed": "a JSON schema"})
    strict: bool | None = Field(
        default=None,
        description="changes nothing: every answer keeps to the schema",
        json_schema_extra={"allowed": "true or false"},
    )


class ResponseFormat(BaseModel):
    """What an answer must be. Field names are OpenAI's where one exists."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: Literal["text", "json_schema", "json_object", "regex", "choice", "grammar"] = Field(
        description="text: anything; json_object: any JSON object; the others: what the field of the same name says"
    )
    json_schema: JsonSchema | None = Field(
        default=None,
        description="JSON that is valid against schema, with its properties in the schema's order",
        json_schema_extra={"allowed": _SCHEMA_ALLOWED},
    )
    regex: Annotated[str, StringConstraints(min_length=1, max_length=MAX_REGEX)] | None = Field(
        default=None,
        description="a regular expression for the whole answer, in the syntax of Rust's regex",
        json_schema_extra={"allowed": f"text of 1 to {MAX_REGEX} characters"},
    )
    choice: list[str] | None = Field(
        default=None,
        description="one of these labels, with the probability of each",
        json_schema_extra={"allowed": _LABELS_ALLOWED},
    )
    grammar: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        default=None, description="a grammar in llguidance's variant of Lark", json_schema_extra={"allowed": "text"}
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ResponseFormat:
        wanted = _BESIDE.get(self.type)
        if wanted is not None and getattr(self, wanted) is None:
            refuse(f"response_format of type {self.type!r}", f"needs the field {wanted}")
        for other in _BESIDE.values():
            if other != wanted and getattr(self, other) is not None:
                refuse(f"response_format of type {self.type!r}", f"has no field {other}")
        labels = self.choice
        if labels is not None and not (
            1 <= len(labels) <= MAX_LABELS
            and len(set(labels)) == len(labels)
            and all(1 <= len(label) <= MAX_LABEL for label in labels)
        ):
            refuse("response_format.choice", f"must be {_LABELS_ALLOWED}")
        return self

    @property
    def source(self) -> GrammarSource | None:
        """The grammar of the answer; None where it may be anything, or is a label."""
        if self.type == "text" or self.type == "choice":
            return None
        if self.json_schema is not None:
            return GrammarSource("json_schema", self.json_schema.definition)
        return GrammarSource(self.type, self.regex or self.grammar)


ALLOWED = _FORMAT_ALLOWED
"""What the field must be, in words."""
