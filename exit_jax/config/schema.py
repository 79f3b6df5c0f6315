"""The schema of a config: every section is a frozen dataclass whose fields say their default, their bounds and their meaning.

The defaults are what a researcher would want for a language model. The groups in OPERATIONAL may differ when a run resumes; all
other fields are scientific and fixed for a workdir.
"""

import dataclasses
import typing

from exit_jax.algorithm.settings import VARIANTS, ExItConfig
from exit_jax.embedding.settings import EncoderConfig
from exit_jax.parallel.settings import MeshConfig
from exit_jax.policy.shape import DecoderConfig
from exit_jax.settings import group, setting

TRACKERS = ("tensorboard", "trackio", "wandb")  # rows of the table in workdir/trackers.py, which is above this floor
OPTIMIZERS = ("adamw", "lion", "adafactor")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser of optax, after clipping by global norm."""

    kind: str = setting("adamw", "the optimiser", choices=OPTIMIZERS)
    learning_rate: float = setting(1e-6, "peak of the schedule (ExIt Table 4)", within="[0, inf)")
    warmup_steps: int = setting(0, "updates of a linear warm-up from 0", within="[0, inf)")
    decay_steps: int = setting(0, "update at which a cosine reaches 0; 0 keeps the rate constant", within="[0, inf)")
    b1: float = setting(0.9, "decay of the first moment; adafactor has none", within="[0, 1)")
    b2: float = setting(0.999, "decay of the second moment; adafactor has a schedule of its own", within="[0, 1)")
    weight_decay: float = setting(0.0, "decoupled weight decay", within="[0, inf)")
    max_grad_norm: float = setting(
        1.0,
        "gradients are clipped to this global norm (TRL's default); inf clips none",
        within="(0, inf)",
        remedy="it would clip every gradient to nothing; inf clips none",
    )


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Supervised phase before RL, on the domain's demonstrations."""

    seed: int = setting(
        -1,
        "seed of parameters (LoRA's frozen ones too) and demonstrations, if all runs are to begin alike; -1: the run's seed",
    )
    num_steps: int = setting(0, "updates; 0 for no warm start", within="[0, inf)")
    num_states: int = setting(128, "prompts a batch", within="[1, inf)")
    group_size: int = setting(4, "demonstrations a prompt", within="[1, inf)")
    optimizer: OptimizerConfig = group(OptimizerConfig, "optimiser of the warm start", learning_rate=1e-5)


@dataclasses.dataclass(frozen=True)
class TrainSamplingConfig:
    """How training samples from the policy; the paper's way is to cut nothing off, with the parameters as they are."""

    top_k: int = setting(0, "likeliest tokens that are sampled from; 0 for all", within="[0, inf)")
    top_p: float = setting(
        1.0, "probability of the tokens that are sampled from", within="(0, 1]", remedy="1.0 keeps all tokens"
    )
    min_p: float = setting(
        0.0, "least share of the likeliest token's probability", within="[0, 1]", remedy="0.0 keeps all tokens"
    )
    min_tokens: int = setting(0, "tokens before a stop token may be sampled", within="[0, inf)")
    int8: bool = setting(False, "sample from a copy whose layers have int8 kernels; learner and evaluation do not")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """K-step self-improvement on held-out tasks."""

    splits: tuple[str, ...] = setting(("test",), "the domain's splits that are evaluated on")
    steps: tuple[int, ...] = setting((0, 1, 2, 4, 8, 16), "the k reported; 0 is the first response", within="[0, inf)")
    samples_per_task: int = setting(8, "chains a task, avg@n", within="[1, inf)")
    batch_size: int = setting(256, "chains at once; a multiple of the mesh's data x fsdp", within="[1, inf)")
    from_checkpoint: bool = setting(True, "sample as the checkpoint's generation_config.json says, where it says so")
    temperature: float = setting(1.0, "sampling temperature; 0 is greedy", within="[0, inf)")
    top_k: int = setting(0, "likeliest tokens that are sampled from; 0 for all", within="[0, inf)")
    top_p: float = setting(
        1.0, "probability of the tokens that are sampled from", within="(0, 1]", remedy="1.0 keeps all tokens"
    )
    min_p: float = setting(
        0.0, "least share of the likeliest token's probability", within="[0, 1]", remedy="0.0 keeps all tokens"
    )
    restart_every: int = setting(
        0,
        "responses after which a chain of `restarts` starts over; 1 for independent ones, 0 to leave it out",
        within="[0, inf)",
    )
    greedy: bool = setting(False, "a greedy search, too: each step goes on from the best solution so far")
    num_chains_saved: int = setting(200, "chains a split that are kept for people to read", within="[0, inf)")
    seed: int = setting(0, "seed that evaluations sample with")
    repetition_penalty: float = setting(
        1.0,
        "divides the logits of tokens that prompt or response hold, as in transformers",
        within="(0, inf)",
        remedy="1.0 penalises nothing",
        younger=True,
    )
    min_tokens: int = setting(0, "tokens before a response may end", within="[0, inf)", younger=True)
    suppress_tokens: tuple[int, ...] = setting((), "ids that are never sampled", younger=True)
    scaffolds: tuple[str, ...] = setting(
        (),
        'further rivals of the plain chain: "best_of_n" for independent responses with a vote and pass@k, the searches "beam", '
        '"uct", "mcts_aira", "aide", "aira_greedy", "shinka", "shinka_power_law" and "map_elites", or rows of your own, as '
        "file.py:ROW or module:ROW",
        younger=True,
    )
    beam_width: int = setting(
        2, 'responses that a layer of the scaffold "beam" keeps of twice as many', within="[1, inf)", younger=True
    )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run is carried out; none of it changes the experiment."""

    num_iterations: int = setting(100, "training iterations (ExIt Table 4)", within="[0, inf)")
    mesh: MeshConfig = group(MeshConfig, "how the devices are laid out")
    num_microbatches: int = setting(
        1, "parts of a batch whose gradients are added up, to save memory", within="[1, inf)"
    )
    prompt_buckets: tuple[int, ...] = setting(
        (), "tokens: widths below the domain's that a batch of shorter prompts is cut to", within="[1, inf)"
    )
    response_buckets: tuple[int, ...] = setting(
        (), "tokens: widths that a batch of shorter responses is cut to before it is learnt from", within="[1, inf)"
    )
    sampler_slots: int = setting(
        0,
        "rows a prompt that are sampled at once; one that has ended makes room for another; 0 for all",
        within="[0, inf)",
    )
    token_chunk: int = setting(128, "positions of a row whose logits exist at once; 0 for all", within="[0, inf)")
    steps_per_call: int = setting(1, "iterations in one compiled program", within="[1, inf)")
    checkpoint_every: int = setting(
        10, "iterations between checkpoints; a multiple of steps_per_call", within="[1, inf)"
    )
    keep_checkpoints: int = setting(2, "checkpoints kept", within="[1, inf)")
    warm_start_dir: str = setting(
        "", 'folder of finished warm starts, or gs://bucket/folder; "" for one in the workdir'
    )
    export_dtype: str = setting(
        "bfloat16", "dtype of the tensors that --mode export writes", choices=("float32", "bfloat16", "float16")
    )
    profile: bool = setting(False, "write a JAX trace of one call of steps_per_call iterations")
    allow_idle_updates: bool = setting(
        False, "train on at a learning rate of 0, as after a decay that ends before the run", younger=True
    )
    check_grades: bool = setting(
        False, "hold the values of grades made on the device to the domain's contract; slower", younger=True
    )
    eval_every: int = setting(
        0,
        "iterations between evaluations during training, on a sample of tasks; a multiple of steps_per_call; 0 for none",
        within="[0, inf)",
        younger=True,
    )
    eval_tasks: int = setting(64, "tasks of each split in that sample, a chain each", within="[1, inf)", younger=True)
    eval_splits: tuple[str, ...] = setting(
        (), "splits that it is drawn from; () for validation, or eval.splits where there is none", younger=True
    )
    keep_best: str = setting(
        "",
        "figure of those evaluations, as eval/validation/quality@4, of whose highest value the run is kept in <workdir>/best",
        younger=True,
    )
    rollouts_every: int = setting(
        0,
        "iterations between those whose rollouts are kept for people, in Parquet; 0 for none",
        within="[0, inf)",
        younger=True,
    )
    stall_secs: float = setting(
        0.0,
        "time after which an iteration that does not end ends the process, with the stacks of all its threads; 0 for never",
        unit="s",
        within="[0, inf)",
        younger=True,
    )
    rollouts_kept: int = setting(4, "groups of such an iteration that are kept", within="[1, inf)", younger=True)
    rollouts_max_mb: int = setting(
        100, "megabytes of kept rollouts, beyond which the oldest are removed", within="[1, inf)", younger=True
    )
    trackers: tuple[str, ...] = setting(
        ("tensorboard",), "where the figures of training go, besides train.jsonl", choices=TRACKERS, younger=True
    )


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The runs of --mode study."""

    variants: tuple[str, ...] = setting(tuple(VARIANTS), 'values of the config file\'s argument "variant"')
    seeds: tuple[int, ...] = setting((0, 1, 2), "seeds of each variant")
    rows: str = setting(
        "",
        "file of JSON lines of finished runs, from any machine, which are not made again; a run that ends is added to it",
        younger=True,
    )


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """What --mode serve listens to, and its limits (docs/serve.md)."""

    policy: str = setting("", 'Hugging Face folder, hub id or a run\'s workdir; "" for --workdir', younger=True)
    name: str = setting("", 'what clients call the model; "" for the name of the folder, or the hub id', younger=True)
    host: str = setting("127.0.0.1", "address to listen on; one that others reach takes a token", younger=True)
    port: int = setting(8000, "port to listen on; 0 for a free one", within="[0, 65535]", younger=True)
    token_file: str = setting(
        "", 'file that holds the token; "" for the environment variable EXIT_JAX_SERVE_TOKEN', younger=True
    )
    rows: int = setting(16, "responses that are sampled at once", within="[1, inf)", younger=True)
    context: int = setting(
        2048, "tokens of a prompt and its response; no more than the checkpoint's", within="[2, inf)", younger=True
    )
    tokens_per_call: int = setting(
        8, "tokens a response that are sampled between two looks at the queue", within="[1, inf)", younger=True
    )
    max_queue: int = setting(
        256, "responses that may wait for a row; beyond it requests are refused", within="[1, inf)", younger=True
    )
    max_steps: int = setting(16, "largest k, self-improvement steps of a request", within="[0, inf)", younger=True)
    max_body: int = setting(1 << 20, "bytes of a request", within="[1024, inf)", younger=True)
    grace: float = setting(
        30.0, "seconds that requests have to finish once the server is to stop", within="[0, inf)", younger=True
    )
    dtype: str = setting(
        "",
        'what is computed with; "" for the run\'s own, or bfloat16 for a checkpoint',
        choices=("", "float32", "bfloat16"),
        younger=True,
    )
    tensor: int = setting(1, "devices that split heads, MLP and vocabulary", within="[1, inf)", younger=True)


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = setting("run", "what the run's folder is named by")
    variant: str = setting("exit", "what the config file's argument said; names the folder, too")
    seed: int = setting(0, "seed of parameters, demonstrations, selection and sampling", within="[0, inf)")
    domain_name: str = setting(
        "", "the domain: one that ships, or your own, module:function or file.py:function (docs/extend.md)"
    )
    domain: typing.Any = setting(None, "its settings, of the type domains.settings_of(domain_name)")
    checkpoint: str = setting(
        "", 'Hugging Face folder or hub id that gives the policy\'s shape and weights; "" for fresh ones'
    )
    policy: DecoderConfig = group(DecoderConfig, "the policy")
    algorithm: ExItConfig = group(ExItConfig, "Algorithm 1")
    sampling: TrainSamplingConfig = group(TrainSamplingConfig, "sampling in training")
    optimizer: OptimizerConfig = group(OptimizerConfig, "optimiser of RL")
    warm_start: WarmStartConfig = group(WarmStartConfig, "supervised phase before RL")
    encoder: EncoderConfig = group(EncoderConfig, "encoder of responses, for the diversity bonus")
    eval: EvalConfig = group(EvalConfig, "K-step evaluation")
    run: RunConfig = group(RunConfig, "how the run is carried out")
    study: StudyConfig = group(StudyConfig, "the runs of --mode study")
    serve: ServeConfig = group(ServeConfig, "what --mode serve listens to")


OPERATIONAL = (
    *(
        "run",
        "eval",
        "study",
        "serve",
        "policy.attention",
        "policy.remat",
        "policy.unroll_layers",
        "policy.decode_stages",
    ),
    *("domain.data_dir", "domain.files_dir", "domain.cache_dir", "domain.num_workers", "domain.max_instances"),
)
# what a warm start depends on, besides the domain's demonstrations
WARM_START_DEPENDS_ON = ("seed", "checkpoint", "policy", "warm_start", "domain_name")
