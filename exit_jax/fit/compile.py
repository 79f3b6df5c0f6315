"""What the compiler says of the programs that training runs, for a topology."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping

import jax

from exit_jax import domains
from exit_jax.config.schema import Config
from exit_jax.fit import roofline
from exit_jax.fit.plan import plan
from exit_jax.fit.roofline import GIB, Chip, Phase
from exit_jax.fit.topology import Topology, settle
from exit_jax.step.program import make_program
from exit_jax.step.turns import num_lanes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said of one program; bytes are those of one chip."""

    name: str
    parts: Mapping[str, int]  # bytes by name: what is in memory before the program begins, and the cache
    peak: float
    fits: bool
    message: str  # the compiler's own words where it does not fit
    compile_secs: float

    @property
    def rest(self) -> float:
        """Bytes of activations, gradients, temporaries and results: all that is not listed."""
        return self.peak - sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Result:
    """A config on a topology."""

    config: Config
    topology: Topology
    programs: list[Compiled]
    phases: list[Phase]

    @property
    def fits(self) -> bool:
        """Whether every program compiled."""
        return all(program.fits for program in self.programs)


_CODE = "The compiler lets it pass, but its code, which is in the same memory, does not fit beside it."


def compile_program(name: str, function, args: tuple, parts: Mapping[str, int], chip: Chip) -> Compiled:
    """Compile one program for the devices of its arguments' shardings."""
    started = time.monotonic()
    try:
        memory = function.lower(*args).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        found = out_of_memory(str(error))
        if found is None:
            raise
        return Compiled(name, {**parts, "code": 0}, found[0], False, found[1], time.monotonic() - started)
    parts = {**parts, "code": memory.generated_code_size_in_bytes}
    peak = memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes
    fits = peak <= chip.hbm_bytes  # the compiler answers for the first of the two only
    return Compiled(name, parts, peak, fits, "" if fits else _CODE, time.monotonic() - started)


def out_of_memory(message: str) -> tuple[float, str] | None:
    """Return the bytes that a program needs and the sentence that says so, or None if the message says something else."""
    number = r"([\d.]+)([KMGT]?)"
    for pattern in (
        rf"Ran out of memory in memory space hbm\W+Used {number} of [\d.]+[KMGT]? hbm[^\n]*",
        rf"Ran out of memory on HBM[^\n]*?\({number}\) exceeds available HBM \([^)]*\)",
    ):
        if found := re.search(pattern, message):
            unit = 1024.0 ** " KMGT".index(found[2] or " ")
            return float(found[1]) * unit, " ".join(found[0].split())
    return None


def compile_all(
    config: Config, topology: Topology, first: tuple[str, ...] = (), show: Callable[[str], None] = print
) -> Result:
    """Compile the programs of an iteration; with ``first``, those first, and no more than one that does not fit."""
    config = settle(config, topology)
    program = make_program(config, topology.devices)
    laid_out = plan(config, program)
    compiled: list[Compiled] = []
    for name in sorted(laid_out.programs, key=lambda name: name not in first):
        one = compile_program(name, *laid_out.programs[name], laid_out.parts[name], topology.chip)
        show(
            f"  {name}: {one.peak / GIB:.2f} GiB a chip, {'fits' if one.fits else 'does not fit'} "
            f"({one.compile_secs:.0f} s to compile)"
        )
        compiled.append(one)
        if first and not one.fits:
            break
    compiled.sort(key=lambda one: list(laid_out.programs).index(one.name))
    domain = domains.make(config.domain_name, config.domain)
    lanes = num_lanes(config) if domain.environment else 1
    widths = domain.prompt_width, domain.max_tokens
    found = roofline.phases(config, *widths, laid_out.sizes, topology.chip, lanes)
    return Result(config, topology, compiled, found)
