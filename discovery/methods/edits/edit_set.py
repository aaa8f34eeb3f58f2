"""A set of edits as a value and as a file, edits.json.

    {
      "schema": "circuit-scout/edits/1",
      "description": "L9H6 at the last position, as in the corrupted run",
      "side": "clean",
      "prompts": {"other": "When Ruth and Paul went to the park, Ruth gave a book to"},
      "edits": [
        {"operation": "resample", "site": "head_out", "layer": 9, "head": 6,
         "positions": [-1], "source": "corrupted"}
      ]
    }

Each edit names a site, a layer, for sites by head a head, and the positions; without positions it
applies at all of them. Edits are applied in forward order, those of one site in the order of the
file. The values of `resample` and `mean` come from runs without any edit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from discovery.errors import MeasurementError
from discovery.graph.base import locate_first_error
from discovery.sites import ActivationKind
from discovery.store.files import write_bytes
from discovery.tasks.pairs import shorten_repr

EDITS_SCHEMA: Final = "circuit-scout/edits/1"

EditSite = Literal[
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "head_out",
    "q",
    "k",
    "v",
    "pattern",
]
EditSide = Literal["clean", "corrupted"]

HEAD_SITES: tuple[EditSite, ...] = ("head_out", "q", "k", "v", "pattern")
"""The sites that have one part for each head."""

MAX_EDITS = 256
MAX_FILE_BYTES = 16 * 2**20

EditPosition = StrictInt | Annotated[StrictStr, Field(min_length=1, max_length=100)]
Vector = Annotated[tuple[float, ...], Field(min_length=1)]
PromptSource: TypeAlias = (
    Annotated[StrictStr, Field(min_length=1)]
    | Annotated[tuple[StrictInt, ...], Field(min_length=1)]
)


class _EditsModel(BaseModel):
    """A part of the file: frozen, without unknown fields, and strict JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SiteEdit(_EditsModel):
    """What every edit says: where it applies.

    Attributes:
        site: the activation. `head_out` is z, the head's output before W_O.
        layer: its layer, from 0.
        head: the head, for a site by head; None otherwise.
        kv_head: the key-value head, for `k` and `v` of a model whose query heads share them.
        positions: positions from 0, positions from the end (-1 is the last token), or labels of the
            task. Of `pattern`, a position is the one that looks. None means all positions.
    """

    takes_vector: ClassVar[bool] = False

    site: EditSite
    layer: Annotated[StrictInt, Field(ge=0)]
    head: Annotated[StrictInt, Field(ge=0)] | None = None
    kv_head: Annotated[StrictInt, Field(ge=0)] | None = None
    positions: Annotated[tuple[EditPosition, ...], Field(min_length=1)] | None = None

    @property
    def kind(self) -> ActivationKind:
        """The kind of activation that a backend reads and replaces."""
        return "z" if self.site == "head_out" else self.site


class ZeroEdit(SiteEdit):
    """Sets the activation to 0."""

    operation: Literal["zero"]


class MeanEdit(SiteEdit):
    """Sets the activation to its mean over the task's reference prompts."""

    operation: Literal["mean"]


class ResampleEdit(SiteEdit):
    """Sets the activation to its value in another run.

    Attributes:
        source: `clean` or `corrupted`, the sides of the same pair, or a name in `prompts`.
    """

    operation: Literal["resample"]
    source: Annotated[StrictStr, Field(min_length=1, max_length=100)]


class ReplaceEdit(SiteEdit):
    """Sets the activation to a vector.

    Attributes:
        value: as long as the activation at one position: d_model, or d_head for a site by head.
    """

    takes_vector: ClassVar[bool] = True

    operation: Literal["replace"]
    value: Vector


class AddEdit(SiteEdit):
    """Adds a vector to the activation.

    Attributes:
        value: as long as the activation at one position: d_model, or d_head for a site by head.
        factor: what the vector is multiplied by first.
    """

    takes_vector: ClassVar[bool] = True

    operation: Literal["add"]
    value: Vector
    factor: float = 1.0


class ScaleEdit(SiteEdit):
    """Multiplies the activation by a factor."""

    operation: Literal["scale"]
    factor: float


AnyEdit: TypeAlias = Annotated[
    ZeroEdit | MeanEdit | ResampleEdit | ReplaceEdit | AddEdit | ScaleEdit,
    Field(discriminator="operation"),
]


class EditSet(_EditsModel):
    """Edits that are applied together.

    Attributes:
        schema_: the version of the format.
        description: what the edits are for, in words.
        model: the model that the file was made with, for the reader; it may be run on any.
        side: which prompt of a pair is run with the edits.
        prompts: prompts by name, from which edits may take values: a text, or token ids.
        edits: the edits.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    schema_: Literal["circuit-scout/edits/1"] = Field(default=EDITS_SCHEMA, alias="schema")
    description: Annotated[str, Field(max_length=2000)] = ""
    model: Annotated[str, Field(max_length=1000)] | None = None
    side: EditSide = "clean"
    prompts: dict[Annotated[str, Field(min_length=1, max_length=100)], PromptSource] = Field(
        default_factory=dict
    )
    edits: Annotated[tuple[AnyEdit, ...], Field(min_length=1, max_length=MAX_EDITS)]

    @classmethod
    def of(cls, source: EditsSource) -> EditSet:
        """Return the edits that a caller gives.

        Args:
            source: the edits, the path of an edits.json, its content, or a list of edits.

        Raises:
            MeasurementError: if the file cannot be read, or if something in it is not allowed. The
                message names the place.
        """
        if isinstance(source, EditSet):
            return source
        if isinstance(source, str | Path):
            return cls.of(_read_file(Path(source)))
        fields = source if isinstance(source, Mapping) else {"edits": list(source)}
        try:
            edits = cls.model_validate(fields)
        except ValidationError as fault:
            place, reason = locate_first_error(fault)
            raise MeasurementError(
                f"The edits are not valid at {place or 'the top'}: {reason}.",
                "An edit is {operation, site, layer, head, positions, …}; "
                "`circuit-scout look edits --schema` prints the schema.",
            ) from None
        edits._require_sources()
        return edits

    def _require_sources(self) -> None:
        """Check that values come from a side of the pair or from a named prompt.

        Raises:
            MeasurementError: if a source is unknown, or if a prompt is called clean or corrupted.
        """
        if taken := {"clean", "corrupted"} & set(self.prompts):
            raise MeasurementError(
                f"A prompt is named {min(taken)!r}, which is a side of a pair.",
                "Give it another name.",
            )
        for number, edit in enumerate(self.edits):
            if isinstance(edit, ResampleEdit):
                names = ("clean", "corrupted", *self.prompts)
                if edit.source not in names:
                    raise MeasurementError(
                        f"edits.{number} takes its value from {edit.source!r}, which is not known.",
                        f"Known: {', '.join(names)}; other prompts are named under `prompts`.",
                    )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file; what has its default is left out."""
        fields = self.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        return {"schema": self.schema_, **fields}

    def save(self, path: str | Path) -> None:
        """Write the edits to a file.

        Raises:
            StoreError: if it cannot be written.
        """
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        write_bytes(Path(path), f"{text}\n".encode())


EditsSource: TypeAlias = EditSet | str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Edits, the path of an edits.json, its content, or a list of edits."""


def edits_json_schema() -> dict[str, Any]:
    """Return the JSON schema of an edits.json."""
    return EditSet.model_json_schema(by_alias=True)


def _read_file(path: Path) -> Any:
    """Return the content of an edits.json.

    Raises:
        MeasurementError: if it cannot be read or is not JSON.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise MeasurementError(
                f"{path.name} is larger than 16 MiB.", "Write long prompts as a task file."
            )
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except OSError as fault:
        raise MeasurementError(
            f"The edits file {str(path)!r} cannot be read ({fault.strerror}).",
            "Check its path and permissions.",
        ) from None
    except (ValueError, RecursionError) as fault:
        raise MeasurementError(
            f"The edits file {str(path)!r} is not JSON ({shorten_repr(str(fault))}).",
            'Write {"schema": "circuit-scout/edits/1", "edits": [...]} as UTF-8.',
        ) from None
    if not isinstance(content, dict | list):
        raise MeasurementError(
            f"The edits file {str(path)!r} holds {shorten_repr(content)}.",
            'Write {"schema": "circuit-scout/edits/1", "edits": [...]}.',
        )
    return content


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a number in JSON")
