"""What measures of representations and measures of outputs share: checked hyperparameters, and registration by id."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

from simprune.core.registry import register
from simprune.core.types import has_type, type_name


@dataclass(frozen=True)
class Registered:
    """A frozen dataclass whose fields are hyperparameters; a subclass that sets `id` is a part of the kind `part`.

    Raises ValueError for an id that another class has taken, and for a hyperparameter of the wrong type.
    """

    part: ClassVar[str]  # kind of the registry
    id: ClassVar[str]
    source: ClassVar[str]  # paper or formula

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "id" in cls.__dict__:
            register(cls.part, cls.id, source=getattr(cls, "source", ""))(cls)

    def __post_init__(self) -> None:
        """Refuse hyperparameters of the wrong type; a subclass adds its own limits after calling this."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if not has_type(value, hint) or (isinstance(value, float) and math.isnan(value)):
                raise ValueError(f"{self.id}: {field.name} must be {type_name(hint)}, got {value!r}")
            if isinstance(value, list) and typing.get_origin(hint) is tuple:  # as read from a file
                self._declare(**{field.name: tuple(value)})

    def _declare(self, **traits: Any) -> None:
        """Set class attributes for this object only, where they depend on a hyperparameter."""
        for name, value in traits.items():
            object.__setattr__(self, name, value)
