"""Which encoder a run has, as settings; apart from the encoder, since a config is checked before anything that computes."""

import dataclasses

from exit_jax.settings import setting

POOLINGS = ("auto", "mean", "cls")
SHORTEST = 16  # tokens of the narrowest program


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The encoder whose vectors of responses the diversity bonus compares."""

    checkpoint: str = setting("", 'folder or hub id, as the paper\'s BERT (ExIt App. A); "" for none')
    pooling: str = setting("auto", "auto is what the checkpoint says, mean if it says nothing", choices=POOLINGS)
    max_tokens: int = setting(
        512, "tokens of a text, special ones included; the rest is cut off", within=f"[{SHORTEST}, inf)"
    )
    batch_size: int = setting(
        64, "texts at a time, rounded up to the devices; memory grows with batch_size · max_tokens²", within="[1, inf)"
    )
