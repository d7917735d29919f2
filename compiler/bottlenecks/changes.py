"""What a recipe asks of the blocks of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nnc import toml
from nnc.bottlenecks.blocks import Block
from nnc.errors import NncError


class Change(BaseModel):
    """What shall become of some blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    expansion: float | None = Field(None, gt=0, description="hidden channels per channel that the block reads")
    width: int | None = Field(None, ge=1, description="channels of all blocks of the stage")
    drop: bool = Field(False, description="leave the block out: its shortcut is what is left of it")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.drop == (self.expansion is not None or self.width is not None):
            raise ValueError("give 'expansion', 'width' or both, or 'drop = true' alone")
        return self


@dataclass
class Wanted:
    """What the blocks shall be."""

    widths: dict[str, int] = field(default_factory=dict)
    """Channels by stage."""
    hidden: dict[str, int] = field(default_factory=dict)
    """Hidden channels by block."""
    dropped: list[Block] = field(default_factory=list)

    @property
    def channels(self) -> dict[str, int]:
        """Channels by stage or block, see nnc.bottlenecks.places."""
        return {**self.widths, **self.hidden}


def wanted(blocks: Sequence[Block], table: Mapping[str, Change]) -> Wanted:
    """What a table asks for: globs of blocks or of their convolutions; the last one that names a block counts.

    Raises NncError for a glob that names no block, and for a stage of two widths.
    """
    asked: dict[str, dict[str, object]] = {block.name: {} for block in blocks}
    for glob, change in table.items():
        named = [block for block in blocks if block.fits(glob)]
        if not named:
            raise NncError(f"no inverted residual block is called '{glob}'", _hint(glob, blocks))
        for block in named:
            given = change.model_dump(exclude_none=True, exclude={"drop"})
            asked[block.name] = {"drop": True} if change.drop else {**asked[block.name], "drop": False, **given}
    result = Wanted(dropped=[block for block in blocks if asked[block.name].get("drop")])
    for block in blocks:
        width = asked[block.name].get("width")
        if isinstance(width, int) and result.widths.setdefault(block.stage, width) != width:
            raise NncError(
                f"the blocks of {block.stage} are one width, not {result.widths[block.stage]} and {width}",
                f'write "{block.stage}.*" = {{ width = {width} }}',
            )
    before = {id(block.given): block.stage for block in blocks}
    for block in blocks:
        if isinstance(expansion := asked[block.name].get("expansion"), float):
            inputs = result.widths.get(before.get(id(block.x), ""), block.inputs)
            result.hidden[block.name] = max(1, round(expansion * inputs))
    return result


def _hint(glob: str, blocks: Sequence[Block]) -> str:
    if not blocks:
        return "the network has none: nnc plan says why its depthwise convolutions are in none"
    return toml.nearest(glob, [block.name for block in blocks]) or f"there are {blocks[0].name} to {blocks[-1].name}"
