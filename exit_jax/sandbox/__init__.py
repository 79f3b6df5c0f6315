"""Running code that a model wrote, safely: ``Sandbox(isolation, ...).run(jobs)``. It knows no JAX and no other room."""

from exit_jax.sandbox.job import STATUSES, Job, Limits, Result, SandboxError
from exit_jax.sandbox.levels import ISOLATIONS
from exit_jax.sandbox.pool import Sandbox

__all__ = ["ISOLATIONS", "STATUSES", "Job", "Limits", "Result", "Sandbox", "SandboxError"]
