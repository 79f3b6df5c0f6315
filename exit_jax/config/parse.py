"""From a config file to a checked ``Config``; every fault is found, and all are reported at once."""

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Mapping

import ml_collections

from exit_jax import domains, plugins, settings
from exit_jax.config import learning
from exit_jax.config.checks import contradictions
from exit_jax.config.schema import Config, ServeConfig
from exit_jax.errors import ConfigError, UserError
from exit_jax.policy.shape import no_shape


def default(domain_name: str, **fields: typing.Any) -> ml_collections.ConfigDict:
    """Return the full config of a domain at its defaults, locked: a config file states what its experiment decides.

    Args:
      domain_name: one that ships, domains.NAMES, or your own: module:function, or file.py:function from the working directory.
      fields: values of top-level fields.
    """
    content = settings.tree(Config) | {
        "domain_name": domain_name,
        "domain": settings.tree(domains.settings_of(domain_name)),
    }
    return ml_collections.ConfigDict(content | fields).lock()


def arguments(arg: str, **defaults: typing.Any) -> dict[str, typing.Any]:
    """Parse a config file's argument "name=value,..." into the defaults' types.

    Raises:
      ValueError: for a name that is none of them, or a value of another type.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, equals, value = item.partition("=")
        if name not in defaults or not equals:
            raise ValueError(f"config argument {item!r} is not one of {', '.join(f'{k}=...' for k in defaults)}")
        values[name] = type(defaults[name])(value)
    return values


def validate(config: ml_collections.ConfigDict, num_devices: int | None, trains: bool = True) -> Config:
    """Turn a config file's content into ``Config``.

    Args:
      trains: whether settings under which nothing is learnt are faults, too; a run that was made by them may be evaluated.
      num_devices: devices that JAX has; ``run.mesh.data = 0`` takes those that the other axes leave. None for as many as the
        mesh asks for, where nothing is computed on it.

    Raises:
      ConfigError: listing all unknown, missing, mistyped and contradictory fields together.
    """
    faults: list[str] = []
    parsed = _parse(Config, _with_shape(config.to_dict(), faults), "config", faults)
    if faults:
        raise ConfigError(_list_faults(faults))
    mesh = parsed.run.mesh
    devices: int = max(mesh.data, 1) * mesh.fsdp * mesh.tensor if num_devices is None else num_devices
    if not mesh.data:
        rest = devices // max(mesh.fsdp * mesh.tensor, 1)
        mesh = dataclasses.replace(mesh, data=max(rest, 1))
        parsed = dataclasses.replace(parsed, run=dataclasses.replace(parsed.run, mesh=mesh))
    faults = [*contradictions(parsed, devices), *(learning.faults_of(parsed) if trains else [])]
    if faults:
        raise ConfigError(_list_faults(faults))
    return parsed


def domain_fields(config: ml_collections.ConfigDict) -> tuple[str, typing.Any]:
    """Return name and settings of a config's domain, whatever the rest says: its data needs no checkpoint and no mesh.

    Raises:
      ConfigError: as ``validate``, for this group alone.
    """
    faults: list[str] = []
    name: typing.Any = config.get("domain_name")
    try:
        kind = domains.settings_of(name)
    except UserError as error:
        raise ConfigError(_list_faults([f"config.{error}"])) from error
    fields = _parse(kind, config.to_dict().get("domain", {}), "config.domain", faults)
    if faults:
        raise ConfigError(_list_faults(faults))
    if faults := settings.faults(fields, "domain."):
        raise ConfigError(_list_faults(faults))
    return name, fields


def serve_fields(values: Mapping[str, typing.Any]) -> ServeConfig:
    """Return the group ``serve``, whatever the rest of a config says: what is served has a config of its own.

    Raises:
      ConfigError: as ``validate``, for this group alone.
    """
    faults: list[str] = []
    fields = _parse(ServeConfig, values, "serve", faults)
    if faults := faults or settings.faults(fields, "serve."):
        raise ConfigError(_list_faults(faults))
    return fields


def _with_shape(values: dict, faults: list[str]) -> dict:
    """Add the shape of the decoder that ``checkpoint`` names to the group ``policy``."""
    policy = values.get("policy")
    if not values.get("checkpoint") or not isinstance(values["checkpoint"], str) or not isinstance(policy, dict):
        return values
    from exit_jax.policy.hf import config as hf_config
    from exit_jax.policy.hf import generation

    given = sorted(name for name, value in no_shape().items() if policy.get(name, value) != value)
    if given:
        faults.append(
            f"config.policy gives {', '.join(given)}, but the shape is that of config.checkpoint; leave them out"
        )
    try:
        folder = hf_config.resolve(values["checkpoint"])
        shape = hf_config.read(folder)
        hf_config.check_tokenizer(folder, shape["vocab_size"])
        given = values.get("eval")
        if isinstance(given, dict) and given.get("from_checkpoint") is True:
            values = values | {"eval": given | generation.read(folder)}
        return values | {"policy": policy | shape}
    except ValueError as error:
        faults.append(str(error))
        return {name: value for name, value in values.items() if name != "policy"}


def _list_faults(faults: list[str]) -> str:
    return f"{len(faults)} fault(s) in the config:\n" + "\n".join(f"  - {fault}" for fault in faults)


def _parse(cls, values, path: str, faults: list[str], defaults: Mapping[str, typing.Any] | None = None) -> typing.Any:
    """Build dataclass ``cls`` from a mapping; faults are appended, and None is returned if there are any below.

    ``defaults`` stand for the fields that the mapping leaves out, those of the class if not given.
    """
    if not isinstance(values, Mapping):
        faults.append(f"{path} = {values!r} is not a group of fields")
        return None
    types, defaults = field_types(cls, values), settings.defaults(cls) if defaults is None else defaults
    names = [field.name for field in dataclasses.fields(cls)]
    known = set(names)
    if cls is Config and (fault := _fault_of_domain(values.get("domain_name"))):
        faults.append(f"{path}.{fault}")
        names.remove("domain")
    for unknown in sorted(set(values) - known):
        near = difflib.get_close_matches(unknown, names, n=1)
        faults.append(f"{path}.{unknown} is unknown" + (f"; did you mean {near[0]}?" if near else ""))
    before = len(faults)
    fields = {}
    for name in names:
        kind, default = types[name], defaults.get(name)
        if dataclasses.is_dataclass(kind):
            own = settings.defaults(kind) | (vars(default) if default is not None else {})
            fields[name] = _parse(kind, values.get(name, {}), f"{path}.{name}", faults, own)
        elif name in values:
            fields[name] = _convert(kind, values[name], f"{path}.{name}", faults)
        elif name not in defaults:
            faults.append(f"{path}.{name} is missing")
    if len(faults) > before:
        return None
    try:
        return cls(**{**defaults, **fields})
    except (TypeError, ValueError) as error:
        faults.append(str(error))
        return None


def field_types(cls, values: Mapping) -> dict[str, typing.Any]:
    """Return the types of a group's fields; that of ``domain`` is the named domain's, and absent if it cannot be had."""
    types = typing.get_type_hints(cls)
    if cls is Config:
        del types["domain"]
        with contextlib.suppress(UserError):
            types["domain"] = domains.settings_of(values.get("domain_name", ""))
    return types


def _fault_of_domain(name: typing.Any) -> str:
    """Return what is wrong with a domain's name, "" if nothing is."""
    try:
        domains.settings_of(name)
    except UserError as error:
        return str(error)
    return ""


def _convert(kind, value, path: str, faults: list[str]):
    """Check ``value`` against a type of the schema."""
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        if not isinstance(value, (tuple, list)):
            faults.append(f"{path} = {value!r} is not a tuple")
            return None
        if args[-1] is not Ellipsis and len(args) != len(value):
            faults.append(f"{path} = {value!r} does not have {len(args)} items")
            return None
        return tuple(_convert(args[0], item, f"{path}[{i}]", faults) for i, item in enumerate(value))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        remedy = "; " + plugins.REMEDY if kind is str and callable(value) else ""
        faults.append(f"{path} = {value!r} is a {type(value).__name__}, not a {kind.__name__}{remedy}")
    return value
