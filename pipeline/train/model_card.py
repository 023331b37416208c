"""The model card: ``README.md`` of a checkpoint, with the front matter that the Hugging Face hub reads.

What is not known is left out: the licence depends on the data and on the base model, the language is not guessed.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.data.prepared import Prepared

FILE = "README.md"
HUB_DATASETS = {"ag_news": "fancyzhx/ag_news"}  # data sets that are on the hub as we read them
BASES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
LABELS_SHOWN = 50
MORE_FIGURES = {"log_loss": "log loss", "ece": "calibration error"}


def model_card(card: Mapping[str, Any], figures: Mapping[str, Any], ledger: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args:
        card: the checkpoint's ``broadsheet.json``.
        figures: of ``metrics.json``: ``test``, ``split``, ``intervals``, ``calibration``, ``rows``.
        ledger: of the prepared data.
    """
    matter = _front_matter(card, figures)
    return "---\n" + matter + "---\n\n" + "\n\n".join(_sections(card, figures, ledger)) + "\n"


def of_training(card: Mapping[str, Any], prepared: Prepared) -> str:
    """The card of a checkpoint that was not evaluated yet: with the figures that chose it."""
    figures = {
        "test": card["metrics"]["validation"],
        "split": "validation" if prepared.rows("validation") else "train",
        "rows": {"trained_on": trained_rows(card, prepared)},
    }
    return model_card(card, figures, prepared.ledger)


def trained_rows(card: Mapping[str, Any], prepared: Prepared) -> int:
    """Rows the checkpoint was trained on, changed copies among them: the train split or a sample of it."""
    known = card.get("training", {}).get("rows")  # the linear model takes fewer than it is told where texts are long
    if known is not None:
        return int(known)
    limit = card["config"]["train"]["max_rows"]
    rows = prepared.rows("train")
    return rows if limit is None else min(rows, int(limit))


def data_name(card: Mapping[str, Any]) -> str:
    """What to call the data: the named data set or, for files, the run."""
    config = card["config"]
    return str(config["name"] if config["data"]["dataset"] == "files" else config["data"]["dataset"])


def _front_matter(card: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    name, dataset, test = card["config"]["model"]["name"], data_name(card), figures["test"]
    about = {
        "task_type": "text-classification",
        "dataset_type": HUB_DATASETS.get(dataset, dataset),
        "dataset_name": dataset,
        "dataset_split": figures["split"],
    }
    results = [
        EvalResult(metric_type=kind, metric_name=shown, metric_value=round(test[key], 6), **about)
        for kind, shown, key in (("accuracy", "accuracy", "accuracy"), ("f1", "macro F1", "macro_f1"))
    ]
    hub = card["kind"] == "transformer" and name.count("/") == 1 and name[0] not in "./~"
    base = BASES.get(name, name if hub and not Path(name).exists() else None)
    return (
        ModelCardData(
            library_name="transformers" if card["kind"] == "transformer" else None,
            pipeline_tag="text-classification",
            tags=["text-classification", "broadsheet", card["kind"]],
            datasets=[HUB_DATASETS[dataset]] if dataset in HUB_DATASETS else None,
            metrics=["accuracy", "f1"],
            base_model=base,
            model_name=f"{dataset}-{name.rstrip('/').rsplit('/', 1)[-1]}",
            eval_results=results,
        ).to_yaml()
        + "\n"
    )


def _sections(card: Mapping[str, Any], figures: Mapping[str, Any], ledger: Mapping[str, Any]) -> list[str]:
    config, test, labels = card["config"], figures["test"], card["labels"]
    dataset, name, text = data_name(card), config["model"]["name"], ", ".join(card["text"])
    shown = ", ".join(_code(label) for label in labels[:LABELS_SHOWN])
    more = f" and {len(labels) - LABELS_SHOWN} more" if len(labels) > LABELS_SHOWN else ""
    kept = ledger["kept"]
    intervals = figures.get("intervals") or {}
    per_class = [
        f"| {_cell(label)} | {one['precision']:.4f} | {one['recall']:.4f} | {one['f1']:.4f} | {one['support']:,} |"
        for label, one in test["per_class"].items()
    ]
    calibration = figures.get("calibration")
    training = {k: v for k, v in card.get("training", {}).items() if k in ("layout", "steps", "seconds")}
    recipe = {"model": config["model"], "train": config["train"], "seed": config["seed"], "training": training}
    parts = [
        f"# {dataset}: a text classifier from {name}",
        f"Assigns one of {len(labels)} labels to a text: {shown}{more}.",
        "## Intended use\n\n"
        f"Texts like those it was trained on ({dataset}, column {text}), in the same language, one label each. It "
        "always answers with one of its labels, also for texts that belong to none. Texts are cut at "
        f"{card['max_tokens']} tokens. Clean texts with the rules named in `broadsheet.json`, or let Broadsheet do it: "
        "`broadsheet serve` and `broadsheet predict` take this folder"
        + ("; `from_pretrained` loads it in transformers." if card["kind"] == "transformer" else "."),
        "## How good it is\n\n"
        f"On {test['rows']:,} {figures['split']} rows"
        + ("" if figures["split"] == "test" else ", which chose the checkpoint: expect a little less")
        + f": accuracy {test['accuracy']:.4f}{_range(test.get('accuracy_interval'))}, "
        + f"macro F1 {test['macro_f1']:.4f}{_range(intervals.get('macro_f1'))}"
        + "".join(f", {said} {test[key]:.4f}" for key, said in MORE_FIGURES.items() if key in test)
        + ".",
        "\n".join(["| class | precision | recall | F1 | rows |", "|---|---|---|---|---|", *per_class]),
    ]
    if calibration:
        parts.append(
            f"Divide the logits by {calibration['temperature']:g} before the softmax (temperature scaling, "
            f"{calibration['how']})."
        )
    parts += [
        "## Data\n\n"
        f"{ledger['read']:,} rows read = {sum(kept.values()):,} kept + {sum(ledger['rejected'].values()):,} rejected + "
        f"{ledger['duplicates']:,} duplicates. Train {kept['train']:,} ({_trained_on(figures, kept)}), "
        f"validation {kept['validation']:,}, test {kept['test']:,}. Prepared data `{card['data_fingerprint']}`.",
        "## Training\n\n"
        + _taught(config["train"])
        + "```yaml\n"
        + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
        + "```",
        "Made with " + ", ".join(f"{name} {version}" for name, version in card["versions"].items()) + ".",
        "## Limits\n\n"
        "The figures hold for rows drawn like the test rows; other sources, other times and other languages were not "
        "tried. Labels of the data are taken as they are, mistakes and bias among them. Nothing was tested against "
        "texts made to mislead it.",
    ]
    return parts


def _taught(train: Mapping[str, Any]) -> str:
    """From whom it learnt besides the labels; checkpoints of earlier versions know of no teacher."""
    if not train.get("teacher"):
        return ""
    weight, temperature = train["teacher_weight"], train["teacher_temperature"]
    return (
        f"Besides the labels it learnt from the answers of {_code(str(train['teacher']))} to the training rows "
        f"(distillation, weight {weight:g}, temperature {temperature:g}).\n\n"
    )


def _range(interval: Sequence[float] | None) -> str:
    return f" (95% {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""


def _trained_on(figures: Mapping[str, Any], kept: Mapping[str, int]) -> str:
    rows = figures["rows"]["trained_on"]
    return f"trained on {rows:,}" + (", changed copies among them" if rows > kept["train"] else "")


def _cell(text: str) -> str:
    """A label as Markdown shows it, whatever it holds: on one line, no mark-up, no column of its own."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _code(text: str) -> str:
    """A label as code; one with a backtick wants two around it (CommonMark, code spans)."""
    text = " ".join(text.split())
    return f"`` {text} ``" if "`" in text else f"`{text}`"
