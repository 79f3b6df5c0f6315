"""Which encoder a run has, as settings; apart from the encoder, since a config is checked before anything that computes."""

import dataclasses

POOLINGS = ("auto", "mean", "cls")
SHORTEST = 16  # tokens of the narrowest program


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The encoder whose vectors of responses the diversity bonus compares."""

    checkpoint: str  # folder or hub id; "" for none
    pooling: str  # of POOLINGS: "auto" is what the checkpoint says, mean if it says nothing
    max_tokens: int  # of a text, special tokens included; the rest is cut off
    batch_size: int  # texts at a time, rounded up to the devices; memory grows with batch_size · max_tokens²

    def __post_init__(self):
        wrong = []
        if self.pooling not in POOLINGS:
            wrong.append(f"encoder.pooling = {self.pooling!r} is not one of {POOLINGS}")
        if self.max_tokens < SHORTEST:
            wrong.append(f"encoder.max_tokens = {self.max_tokens} is below {SHORTEST}")
        if self.batch_size < 1:
            wrong.append(f"encoder.batch_size = {self.batch_size} is below 1")
        if wrong:
            raise ValueError("; ".join(wrong))
