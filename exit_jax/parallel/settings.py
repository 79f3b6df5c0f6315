"""Settings of the mesh."""

import dataclasses

from exit_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis."""

    data: int = setting(0, "devices that split the batch; 0 takes what the other axes leave", within="[0, inf)")
    fsdp: int = setting(1, "devices that split batch, parameters and optimiser state", within="[1, inf)")
    tensor: int = setting(1, "devices that split heads, MLP and vocabulary", within="[1, inf)")

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return self.data * self.fsdp * self.tensor

    @property
    def num_batch_shards(self) -> int:
        """Parts that a batch of prompts is split into."""
        return self.data * self.fsdp
