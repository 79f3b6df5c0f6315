"""What a config is checked against before its domain is built, and before jax is imported."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a config is checked against before its domain is built; settings may have attributes of these names, or not."""

    splits: tuple[str, ...] = ("train", "test")
    on_host: bool = True
    num_children: int = 1
    plays_episodes: bool = False
    has_demonstrations: bool | None = None  # None: told by the domain once it is built

    @classmethod
    def of(cls, config: Any) -> "Traits":
        """Return those of a domain's settings."""
        return cls(**{f.name: getattr(config, f.name) for f in dataclasses.fields(cls) if hasattr(config, f.name)})
