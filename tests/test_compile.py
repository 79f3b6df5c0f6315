"""Will it fit? FLOPs against XLA's own count, the roofline by hand, faults, and compilation for a TPU that is not there."""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny_sudoku
from small import LLAMA, NO_LORA

from exit_jax import domains
from exit_jax.config.parse import validate
from exit_jax.config.schema import Config
from exit_jax.domains.domain import DomainError
from exit_jax.errors import ConfigError
from exit_jax.fit import roofline
from exit_jax.fit.compile import compile_all, out_of_memory
from exit_jax.fit.plan import plan
from exit_jax.fit.roofline import CHIPS, GIB
from exit_jax.fit.search import LORA, candidates, command_line, override, suggest
from exit_jax.fit.topology import Topology, find_topology, settle
from exit_jax.parallel.mesh import MeshConfig
from exit_jax.policy import costs, decoder, prefill, sampler
from exit_jax.policy.decoder import LoraConfig
from exit_jax.step.program import make_program

ROOT = pathlib.Path(__file__).parents[1]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e .[tpu]"
)


def load(name: str, arg: str = "", num_devices: int = 4, **fields) -> Config:
    return with_fields(runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"](arg), num_devices, **fields)


def with_fields(content, num_devices: int, **fields) -> Config:
    content.update_from_flattened_dict({key.replace("__", "."): value for key, value in fields.items()})
    return validate(content, num_devices)


def small(num_devices: int = 4, **fields) -> Config:
    """Return tiny_sudoku.py with a domain of widths alone and a reference, on data 1 x fsdp 2 x tensor 2."""
    return with_fields(
        tiny_sudoku.get_config(),
        num_devices,
        domain__on_host=True,
        run__steps_per_call=1,
        algorithm__kl_coef=0.001,
        run__mesh__fsdp=2,
        run__mesh__tensor=2,
        **fields,
    )


def topology(devices, name: str = "v5e:2x2") -> Topology:
    """Return a slice that is made of this machine's devices: what runs before the compiler needs no TPU's."""
    return Topology(name, CHIPS["v5e"], tuple(devices))


# FLOPs

# wide enough for matrix products to be nearly all of the work
WIDE = dataclasses.replace(
    LLAMA, vocab_size=512, embed_dim=128, num_heads=4, head_dim=32, mlp_dim=512, unroll_layers=True
)


def counted_by_xla(function, *args) -> float:
    """Return FLOPs of an unrolled program on CPU, where XLA counts every operation."""
    counted = jax.jit(function).lower(*args).compile().cost_analysis()
    assert counted is not None
    return counted["flops"]


@pytest.mark.parametrize("lora", [NO_LORA, LoraConfig(8, 8.0, ("query", "down"))], ids=["whole", "lora"])
def test_flops_are_xlas(lora):
    # XLA counts norms, rotations, softmax and masked pairs too: 1-6% here
    config = dataclasses.replace(WIDE, lora=lora)
    B, G, P, T = 2, 3, 16, 8  # of another width than whole tiles, the learner leaves the last token unread
    params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    prompt, length = jnp.zeros((B, P), jnp.int32), jnp.full(B, P)
    tokens = jnp.zeros((B, G, T), jnp.int32)
    trained, frozen = decoder.split_adapters(params) if lora.rank else (params, None)

    def logprobs(trained, frozen):
        params = decoder.join(trained, frozen)
        return sampler.logprobs(config, 1.0, 0, params, prompt, length, tokens)[0].sum()

    forward = counted_by_xla(logprobs, trained, frozen)
    both = counted_by_xla(jax.grad(logprobs), trained, frozen)
    ours = costs.forward_flops(config, B, G, P, T)
    backward = costs.backward_flops(config, B, G, P, T)
    assert ours == pytest.approx(forward, rel=0.06)
    assert ours + backward == pytest.approx(both, rel=0.08)


def test_flops_of_reading_and_of_one_decoded_token_are_xlas():
    config, B, G, P = WIDE, 2, 4, 16
    params = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    prompt, length = jnp.zeros((B, P), jnp.int32), jnp.full(B, P)
    read = counted_by_xla(lambda params: prefill.read_prompts(config, params, prompt, length)[0], params)
    assert costs.prefill_flops(config, B, P) == pytest.approx(read, rel=0.06)

    def step(params, cursor):
        hidden, _ = decoder.apply(
            config,
            params,
            cursor.token[..., None],
            cursor.length[..., None],
            jnp.ones((B, G, 1), bool),
            cursor.cache,
        )
        return decoder.logits(config, params, hidden)

    cursor = jax.eval_shape(lambda params: prefill.start(config, params, G, 1, prompt, length), params)
    once = counted_by_xla(step, params, cursor)
    more = costs.decode_flops(config, B * G, P, 2) - costs.decode_flops(config, B * G, P, 1)  # one read, one sampled
    assert more == pytest.approx(once, rel=0.06)


def test_flops_by_hand():
    # 2 layers of 4 heads of 8, embed 16, mlp 24: query and out 16 x 32, key and value 16 x 16, three of 16 x 24
    assert costs.layers_flops(LLAMA) == 2 * 2 * (2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 24)
    assert costs.head_flops(LLAMA) == 2 * 16 * 17
    assert costs.prompt_pairs(2, 3) == 12
    assert costs.response_pairs(2, 10, 3) == 2 * (11 + 12 + 13)
    assert costs.attention_flops(LLAMA, 5) == 5 * 2 * 4 * (2 * 8 + 2 * 8)
    experts = dataclasses.replace(
        LLAMA, num_experts=5, experts_per_token=2
    )  # of which a token meets two, and the router
    assert costs.layers_flops(experts) == costs.layers_flops(LLAMA) + 2 * 2 * (3 * 16 * 24 + 16 * 5)
    # remat of layers repeats a forward pass without the head, chunks of tokens repeat the head
    shape = (2, 3, 16, 9)
    head = 2 * 3 * 9 * costs.head_flops(LLAMA)
    layers = dataclasses.replace(LLAMA, remat="layer")
    assert costs.recomputed_flops(LLAMA, 0, *shape) == 0
    assert costs.recomputed_flops(LLAMA, 4, *shape) == head
    assert costs.recomputed_flops(layers, 0, *shape) == costs.forward_flops(LLAMA, *shape) - head


# The roofline


def test_a_phase_takes_its_longest_time():
    chip = roofline.Chip(flops_per_sec=100.0, hbm_bytes_per_sec=10.0, ici_bytes_per_sec=5.0, hbm_bytes=1.0)
    # 4 chips: (600 + 200) / 4 / 100 = 2 s; 30 / 10 = 3 s; 10 / 5 = 2 s
    phase = roofline.make_phase(chip, 4, "x", 600.0, 30.0, 10.0, extra=200.0)
    assert (phase.secs, phase.bound) == (3.0, "HBM")
    assert roofline.make_phase(chip, 1, "x", 600.0, 30.0, 10.0).bound == "FLOPs"
    assert roofline.make_phase(chip, 4, "x", 0.0, 0.0, 10.0).secs == 2.0
    assert roofline.all_gather(8.0, 4) == 6.0  # three quarters are with others
    assert roofline.all_reduce(8.0, 4) == 12.0
    assert roofline.all_reduce(8.0, 1) == 0.0


def test_traffic_of_decoding_by_hand():
    config = small()
    config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, vocab_size=100))
    sizes = roofline.Sizes(
        params=0,
        trained=0,
        optimizer=0,
        copy=1000,
        gathered=1600,
        gathered_trained=0,
        unread=100,
        prompt_cache=20,
        own_cache=30,
    )
    chip = roofline.Chip(1e30, 1.0, 1e30, 1.0)  # seconds are bytes of HBM
    phases = {phase.name: phase for phase in roofline.phases(config, 34, 7, sizes, chip)}
    assert list(phases) == ["reshard", "prefill", "decode", "reference", "learn"]
    assert phases["decode"].secs == 6 * (1000 - 100 + 20 + 30)  # the last token is not read
    staged = dataclasses.replace(config, policy=dataclasses.replace(config.policy, decode_stages=3))
    in_stages = roofline.phases(staged, 34, 7, sizes, chip)
    # 6 slots in three stages of two steps, which look at 2, 4, and 6
    assert in_stages[2].secs == 6 * (1000 - 100 + 20) + 2 * 30 * (2 + 4 + 6) / 6
    refilled = dataclasses.replace(staged, run=dataclasses.replace(config.run, sampler_slots=3))
    # 4 rollouts in 3 slots, so that one slot is used twice; a ring is read whole
    assert roofline.phases(refilled, 34, 7, sizes, chip)[2].secs == 2 * phases["decode"].secs
    assert roofline.phases(config, 34, 7, sizes, chip, lanes=2)[2].secs == phases["decode"].secs + 6 * (1000 - 100)
    whole_group = dataclasses.replace(staged, run=dataclasses.replace(config.run, sampler_slots=4))
    assert roofline.phases(whole_group, 34, 7, sizes, chip) == in_stages
    # 16 prompts x 4 rollouts x 7 tokens on 2 shards, 32 wide in float32: two sums over 2 chips, one layer
    assert phases["decode"].ici_bytes == 2 * (16 * 4 * 7 / 2) * 32 * 4
    assert phases["learn"].hbm_bytes == 3 * 1600
    assert phases["learn"].ici_bytes > 2 * 800
    assert phases["reshard"].ici_bytes == 500  # the other half over fsdp


# Memory


def test_bytes_are_those_of_the_shards():
    config = settle(small(), topology(jax.devices()[:4]))
    program = make_program(config, tuple(jax.devices()[:4]))
    laid_out = plan(config, program)
    for name, tree in (("parameters", program.params), ("optimiser", program.state.opt_state)):
        held = jax.jit(
            lambda tree=tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree),
            out_shardings=jax.tree.map(lambda x: x.sharding, tree),
        )()
        on_first = [
            shard.data.nbytes
            for leaf in jax.tree.leaves(held)
            for shard in leaf.addressable_shards
            if shard.device == jax.devices()[0]
        ]
        assert laid_out.parts["learn"][name] == sum(on_first)
    # 16 prompts on 2 shards, 2 kv heads on 2 chips, 1 layer: 8 rows of one head of 8, float32, keys and values
    assert laid_out.sizes.prompt_cache == 2 * 8 * 34 * 8 * 4
    assert laid_out.sizes.own_cache == 2 * 8 * 4 * 6 * 8 * 4


def test_what_a_program_does_not_use_counts_against_its_memory():
    config = settle(small(policy__attention="xla"), topology(jax.devices()[:4]))
    laid_out = plan(config, make_program(config, tuple(jax.devices()[:4])))
    for name in ("select", "reshard", "rollout"):
        function, args = laid_out.programs[name]
        size = function.lower(*args).compile().memory_analysis().argument_size_in_bytes
        beside = {
            "select": 0,
            "reshard": laid_out.sizes.copy,
            "rollout": laid_out.sizes.prompt_cache + laid_out.sizes.own_cache,
        }
        named = sum(laid_out.parts[name].values()) - beside[name]  # the copy is made there, the cache too
        assert size == pytest.approx(named, rel=0.02)


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm. Exceeded by 2.75G.\n..",
            18.5,
        ),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G).",
            0.5,
        ),
    ],
)
def test_out_of_memory_is_read(message, gib):
    size, sentence = out_of_memory(message) or (0.0, "")
    assert size == gib * GIB
    assert "15.75G" in sentence
    assert "\n" not in sentence
    assert out_of_memory("INTERNAL: Ran out of ideas") is None


# Faults


@pytest.mark.parametrize("name", ["", "v5e", "v5e:", "v5e:4by4", "v9:2x2", "h100:8"])
def test_unknown_topologies_are_named(name):
    with pytest.raises(ConfigError, match="is not a slice such as v5e:4x4"):
        find_topology(name)


def test_without_libtpu_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "exit_jax\[tpu\]"'):
        find_topology("v5e:2x2")


def test_a_mesh_must_take_the_whole_slice():
    with pytest.raises(ConfigError, match="1 x 2 x 2 = 4 chips of the 8"):
        settle(small(), topology(jax.devices()))
    with pytest.raises(ConfigError, match="but there are 2"):
        small(num_devices=2)


def test_the_domain_of_shapes_has_no_tasks_to_train_on():
    config = load("fit", "setting=math", 16)
    domain = domains.make(config.domain_name, config.domain)
    assert domain.tasks("train").tokens.shape == (1280, 1408)
    with pytest.raises(DomainError, match="for --mode compile"):
        domain.grade(None, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"domain\.prompt_width = 0 is below 1"):
        load("fit", "setting=math", 16, domain__prompt_width=0)


@pytest.mark.parametrize(("setting", "size"), [("math", 3.2), ("tools", 7.6), ("code", 7.6), ("llama70b", 70.6)])
def test_shapes_are_those_of_the_models(setting, size):
    config = load("fit", f"setting={setting}", {"tools": 16, "code": 16}.get(setting, 32))
    params = jax.eval_shape(lambda: decoder.init(config.policy, jax.random.key(0)))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert round(count / 1e9, 1) == size
    domain = domains.make(config.domain_name, config.domain)
    assert (domain.prompt_width + domain.max_tokens) % 512 == 0


# Suggestions


def test_candidates_fit_the_slice_and_name_what_they_change():
    config = load("fit", "setting=math", 16, run__num_microbatches=1, policy__remat="none", run__token_chunk=0)
    learner = list(candidates(config, "v5e:4x4", ("learn",)))
    assert learner[:3] == [
        ("v5e:4x4", {"policy.remat": "layer"}),
        ("v5e:4x4", {"run.num_microbatches": 16}),
        ("v5e:4x4", {"run.token_chunk": 128}),
    ]
    assert learner[-1] == ("v5e:4x4", LORA)
    sampling = list(candidates(config, "v5e:4x4", ("rollout", "learn")))
    assert sampling[-2:] == [("v5e:4x4", {"sampling.int8": True}), ("v5e:4x4", LORA)]
    assert all("run.mesh.tensor" in changes for _, changes in sampling[:-2])
    assert {name for name, _ in sampling} == {"v5e:4x4", "v5e:4x8", "v5e:8x8"}
    for name, changes in sampling[:-2]:
        chips = math.prod(int(side) for side in name.split(":")[1].split("x"))
        assert override(config, changes).run.mesh.num_devices == chips
    assert override(config, {"run.mesh.fsdp": 4}).run.mesh == MeshConfig(1, 4, 2)
    assert command_line("v5e:4x8", {"run.mesh.fsdp": 4, "policy.lora.targets": ("out",)}) == (
        "--topology=v5e:4x8 --config.run.mesh.fsdp=4 --config.policy.lora.targets=\"('out',)\""
    )


# A TPU's compiler


def test_programs_export_for_tpu():
    """Lowering for TPU needs no libtpu: it finds what Pallas, Mosaic and StableHLO have no form for."""
    config = small(policy__attention="splash", policy__num_layers=2)  # of the last layer, one token of a prompt asks
    program = make_program(config, tuple(jax.devices()[:4]))
    laid_out = plan(config, program)
    for name, (function, args) in laid_out.programs.items():
        exported = jax.export.export(function, platforms=["tpu"])(*args)
        assert exported.nr_devices == 4
        if name in ("rollout", "learn"):
            assert "tpu_custom_call" in exported.mlir_module()


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("int8", [False, True])
def test_v5e_reads_int8_kernels_where_they_lie(int8):
    """No bfloat16 copy of one is made, neither in a step of decoding nor before the loop."""
    slice_ = find_topology("v5e:1x1")
    shape = {"num_layers": 1, "embed_dim": 256, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 640}
    batch = {"domain__prompt_width": 128, "domain__history_width": 96, "domain__max_tokens": 128}
    config = load(
        "fit",
        "setting=math",
        num_devices=1,
        domain__vocab_size=512,
        policy__vocab_size=512,
        policy__decode_stages=1,
        run__mesh__fsdp=1,
        run__mesh__tensor=1,
        run__num_microbatches=1,
        algorithm__num_prompts=8,
        algorithm__buffer_size=8,
        algorithm__min_buffer_size=8,
        sampling__int8=int8,
        **{f"policy__{name}": size for name, size in shape.items()},
        **batch,
    )
    config = settle(config, slice_)
    laid_out = plan(config, make_program(config, slice_.devices))
    function, args = laid_out.programs["rollout"]
    text = function.lower(*args).compile().as_text()
    assert ("s8[256,640]" in text, "bf16[256,640]" in text) == (int8, not int8)
    kernels = 4 * 256 * 256 + 3 * 256 * 640
    rest = 2 * (512 * 256) + 4 * 3 * 256  # the tied embedding, three norms
    scales = 4 * (4 * 256 + 2 * 640 + 256)
    assert laid_out.sizes.copy == (kernels + scales if int8 else 2 * kernels) + rest
    assert laid_out.sizes.gathered == 2 * kernels + rest


def run_main(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "exit_jax.main", "--mode", "compile", *flags]
    unset = ("XLA_FLAGS", "JAX_PLATFORMS")  # conftest's; main decides for itself
    environment = {key: value for key, value in os.environ.items() if key not in unset} | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)


def test_faults_end_with_status_2():
    done = run_main("--config", "configs/smoke.py", "--topology", "v5e:99y")
    assert done.returncode == 2
    assert "is not a slice such as" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@needs_libtpu
def test_a_small_config_compiles_for_v5e(tmp_path):
    fields = {"domain.on_host": True, "run.steps_per_call": 1, "run.mesh.fsdp": 2, "run.mesh.tensor": 2}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    done = run_main("--config", "tests/tiny_sudoku.py", "--topology", "v5e:2x2", "--workdir", str(tmp_path), *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "compile.json").read_text())
    assert [program["name"] for program in report["programs"]] == ["select", "reshard", "rollout", "learn"]
    assert all(0 < program["peak"] < 0.1 * GIB for program in report["programs"])
    assert all(program["rest"] > 0 for program in report["programs"])
    assert report["config"]["policy"]["attention"] == "splash"
    assert (tmp_path / "compile.md").read_text() in done.stdout


@needs_libtpu
@pytest.mark.slow
@pytest.mark.long
def test_what_does_not_fit_is_said_by_the_compiler_and_mended():
    """A learner with too long a batch: the compiler refuses, and the first change that compiles is named."""
    slice_ = find_topology("v5e:2x2")
    config = load(
        "fit",
        "setting=math",
        domain__vocab_size=32000,
        policy__vocab_size=32000,
        policy__num_layers=1,
        policy__embed_dim=512,
        policy__num_heads=4,
        policy__num_kv_heads=4,
        policy__mlp_dim=1024,
        run__mesh__fsdp=1,
        run__mesh__tensor=1,
        run__num_microbatches=1,
        run__token_chunk=0,  # logits of 256 rows x 1024 tokens x 32000 on each chip: 31 GiB
    )
    said: list[str] = []
    failed = compile_all(config, slice_, first=("learn",), show=said.append)
    assert [program.fits for program in failed.programs] == [False]
    assert failed.programs[0].peak > CHIPS["v5e"].hbm_bytes
    assert "15.75G" in failed.programs[0].message
    better = suggest(failed, show=said.append)
    assert better is not None
    assert better[1].fits
    assert better[0] == "--topology=v5e:2x2 --config.run.num_microbatches=32"
