"""One typed, frozen configuration tree: YAML in, ``--set train.epochs=2`` on top, unknown keys refused.

Every key carries a sentence that ``broadsheet config`` prints. Sources in rising order of precedence:
the defaults here, the YAML file, ``--set``, and the command's own flags.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.data.config import DataConfig
from pipeline.errors import UserError, first_line
from pipeline.model.config import ModelConfig
from pipeline.section import Section
from pipeline.train.config import TrainConfig
from pipeline.tune_config import TuneConfig

NAMED_DATASETS = ("ag_news", "reuters8", "reuters52", "newsgroups20")


class EvaluateConfig(Section):
    """What evaluation does besides scoring."""

    evidence_rows: int = Field(
        2_000,
        ge=0,
        description="Training rows (a stratified sample) in the index that finds a text's nearest ones; 0: no index.",
    )


class ServeConfig(Section):
    """The HTTP endpoint."""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; anything but loopback needs serve.keys or serve.insecure (flag --host).",
    )
    port: int = Field(8000, ge=1, le=65535, description="HTTP port (flag --port).")
    latency_goal_ms: float | None = Field(
        None,
        gt=0,
        description="Milliseconds within which 95 of 100 requests of one text are to be answered: what a replica does "
        "is measured, and target_ongoing_requests, max_queue and batch_tokens follow, unless they are set.",
    )
    min_replicas: int = Field(
        1, ge=0, description="Replicas when idle; 0: the first request after a pause waits until one has started."
    )
    max_replicas: int = Field(2, ge=1, description="Replicas under load.")
    target_ongoing_requests: float = Field(
        16.0, gt=0, description="Requests in flight per replica that autoscaling aims at."
    )
    cpus_per_replica: float = Field(1.0, gt=0, description="CPU cores of one replica.")
    gpus_per_replica: float = Field(0.0, ge=0, description="GPUs of one replica.")
    engine: Literal["auto", "torch", "torch-int8", "onnx", "onnx-int8"] = Field(
        "auto",
        description="What runs the network; auto: the fastest that agrees with it, measured once per kind of machine.",
    )
    cascade: bool = Field(
        False,
        description="The linear model that evaluation left answers where it is sure enough, the network the rest.",
    )
    batch_tokens: int = Field(2048, ge=64, description="The most tokens (padding included) of one forward pass.")
    max_queue: int = Field(
        512, ge=1, description="Texts waiting per replica; beyond that the answer is 429 with Retry-After."
    )
    timeout_s: float = Field(30.0, gt=0, description="A text that waited longer is answered 503.")
    max_texts: int = Field(256, ge=1, description="Texts per request; more is 413.")
    max_text_chars: int = Field(100_000, ge=1, description="Characters per text; more is 413.")
    max_body_bytes: int = Field(4_000_000, ge=1024, description="Bytes per request body; more is 413.")
    feedback: str | None = Field(
        None,
        min_length=1,
        description="Folder or URI for the corrections that /v1/feedback takes, in Parquet; null: none are taken.",
    )
    drift_window_s: float = Field(
        3600.0, ge=60, description="How far back drift is measured, in seconds; see /v1/drift."
    )
    keep_previous: bool = Field(
        True, description="Keep the model that was replaced in memory: a rollback is immediate, and costs its memory."
    )
    haproxy: bool = Field(True, description="HAProxy in front (13 times the requests per second of Ray's own proxy).")
    keys: str | None = Field(
        None,
        min_length=1,
        description="File or URI of the API keys ('broadsheet keys add'); null: whoever reaches the port may ask.",
    )
    insecure: bool = Field(False, description="Listen beyond loopback without keys (flag --insecure).")
    rate_limit: float | None = Field(
        None,
        gt=0,
        description="Requests per second that a replica takes of one key, or without keys of one client address.",
    )
    tls_cert: str | None = Field(
        None, min_length=1, description="Certificate in PEM, with its chain, for HTTPS; null: plain HTTP."
    )
    tls_key: str | None = Field(None, min_length=1, description="Private key of serve.tls_cert, in PEM.")

    def follows_from_goal(self, key: str) -> bool:
        """Whether the latency goal, and not the user, says what a key is."""
        return self.latency_goal_ms is not None and getattr(self, key) == type(self).model_fields[key].default

    @model_validator(mode="after")
    def _replicas(self) -> ServeConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: give both, or neither")
        return self


class Config(Section):
    """The whole configuration. Sections: data, model, train, tune, evaluate, serve."""

    name: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="Name of the run: <storage>/<name>/.",
    )
    storage: str = Field(
        "runs", min_length=1, description="Where runs and prepared data live: a folder or an s3:// or gs:// URI."
    )
    seed: int = Field(17, ge=0, lt=2**31, description="Seed of sampling, batch order, initial weights and dropout.")
    data: DataConfig = DataConfig()  # type: ignore[call-arg]
    model: ModelConfig = ModelConfig()  # type: ignore[call-arg]
    train: TrainConfig = TrainConfig()  # type: ignore[call-arg]
    tune: TuneConfig = TuneConfig()  # type: ignore[call-arg]
    evaluate: EvaluateConfig = EvaluateConfig()  # type: ignore[call-arg]
    serve: ServeConfig = ServeConfig()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _name_is_free(self) -> Config:
        if self.name == "prepared":
            raise ValueError("name: 'prepared' is where prepared data lives; choose another name")
        return self

    @property
    def search_name(self) -> str:
        """The name of a search with this configuration: it is not the run 'default'."""
        named = "name" in self.model_fields_set and self.name != "default"
        return self.name if named else "search"

    def updated(self, changes: Mapping[str, Any]) -> Config:
        """A copy with dotted keys changed, validated again.

        Args:
            changes: for example ``{"train.epochs": 2, "name": "first"}``.

        Raises:
            UserError: a key is unknown or a value does not fit.
        """
        tree = self.model_dump()
        for key, value in changes.items():
            _place(tree, key, value)
        return _validated(tree)


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Every leaf key, dotted, with its pydantic field: ``{"train.epochs": FieldInfo, ...}``."""
    keys: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys.update(all_keys(kind, f"{prefix}{name}."))
        else:
            keys[prefix + name] = field
    return keys


def unknown_key(key: str) -> UserError:
    """The error for a key that does not exist, naming the nearest one that does."""
    keys = list(all_keys())
    # The right last word under the wrong (or no) section is the usual slip; train's keys are the best known.
    same_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = sorted(same_leaf, key=lambda k: k.startswith("tune."))[:1]
    near = near or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "'broadsheet config' lists them all."
    return UserError(f"unknown config key '{key}': {hint}")


def load(
    file: str | Path | Mapping[str, Any] | None = None, sets: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Build the configuration from a YAML file, ``--set`` items and a command's flags.

    Args:
        file: a YAML file, the tree of a configuration that was valid before, or None for the defaults.
        sets: items ``key=value``; the value is read as YAML.
        flags: dotted keys set by command flags; None values are skipped.

    Raises:
        UserError: the file, a key or a value is wrong; the message names it.
    """
    tree: dict[str, Any] = {}
    if isinstance(file, Mapping):
        tree = copy.deepcopy(dict(file))
    elif file is not None:
        tree = _read_yaml(str(file))
        for key in _flatten(tree):
            if key not in all_keys():
                raise UserError(f"{file}: {unknown_key(key)}")
    for item in sets:
        key, eq, raw = item.partition("=")
        if not eq:
            raise UserError(f"--set {item}: write it as key=value, for example --set train.epochs=2")
        try:
            value = yaml.load(raw, Loader=_Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as e:
            raise UserError(f"--set {key}: the value {raw!r} is not valid YAML") from e
        _place(tree, key.strip(), value)
    for key, value in (flags or {}).items():
        if value is not None and value != ():
            _place(tree, key, value)
    return _validated(tree)


def changed(config: Config, sections: Sequence[str]) -> dict[str, Any]:
    """The keys of some sections that are not at their defaults, with their values as JSON knows them."""
    now, usual = (_flatten(c.model_dump(mode="json")) for c in (config, Config.model_validate({})))
    return {k: v for k, v in now.items() if v != usual.get(k) and k.split(".")[0] in sections}


def dump(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def explained(config: Config) -> str:
    """The resolved configuration as YAML with a comment per key, for ``broadsheet config``."""
    lines: list[str] = []
    section = ""
    values = _flatten(config.model_dump(mode="json"))
    for key, field in all_keys().items():
        head, _, leaf = key.rpartition(".")
        if head != section:
            section = head
            lines.append(f"\n{head}:")
        pad = "  " if head else ""
        value = yaml.dump(
            values[key], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10_000
        ).strip()
        value = value.removesuffix("...").strip()
        lines += [f"{pad}# {field.description}", f"{pad}{leaf}: {value}"]
    return "\n".join(lines).strip() + "\n"


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads ``1e-4`` as a number, as people write it, and refuses a key that comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    again = f"the second time in line {key.start_mark.line + 1}"
                    raise yaml.YAMLError(f"'{key.value}' stands there twice, {again}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a string such as '12e4', which ``_Loader`` would read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        if "://" in path:
            from pipeline.storage import Place

            text = Place.of(path).read_text()
        else:
            text = Path(path).read_text(encoding="utf-8")
        tree = yaml.load(text, Loader=_Loader)
    except FileNotFoundError as e:
        raise UserError(f"no such config file: {path}") from e
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"cannot read the config file {path}: {e}") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise UserError(f"{path} is not valid YAML: {first_line(e)}") from e
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: expected keys and values at the top level, for example 'train:' with 'epochs: 2' below"
        )
    return tree


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    sections = {k.rsplit(".", 1)[0] for k in all_keys() if "." in k}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and (name in sections or (value and name not in all_keys())):
            flat.update(_flatten(value, f"{name}."))
        elif value is None and name in sections:
            continue
        else:
            flat[name] = value
    return flat


def _place(tree: dict[str, Any], key: str, value: Any) -> None:
    if key not in all_keys():
        raise unknown_key(key)
    *sections, leaf = key.split(".")
    for name in sections:
        node = tree.get(name)
        if not isinstance(node, dict):
            node = tree[name] = {}
        tree = node
    tree[leaf] = value


def _validated(tree: dict[str, Any]) -> Config:
    # A single value where a list is expected (text: title) is what people write; accept it.
    for key, field in all_keys().items():
        if str(field.annotation).startswith(("tuple[str", "tuple[typing.Literal")):
            *sections, leaf = key.split(".")
            node: Any = tree
            for name in sections:
                node = node.get(name) if isinstance(node, dict) else None
            if isinstance(node, dict) and isinstance(node.get(leaf), str):
                node[leaf] = tuple(part.strip() for part in node[leaf].split(",") if part.strip())
    named = {key.split(".")[0] for key in all_keys() if "." in key}
    tree = {k: v for k, v in tree.items() if v is not None or k not in named}
    try:
        return Config.model_validate(tree)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"] if not isinstance(p, int))
        while where not in all_keys() and where.rpartition(".")[0] in all_keys():  # pydantic adds which kind it tried
            where = where.rpartition(".")[0]
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first.get("input"), (dict, BaseModel)) else f", got {first.get('input')!r}"
        raise UserError(f"config key '{where}': {message}{shown}" if where else f"config: {message}") from e
