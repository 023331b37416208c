"""``broadsheet prepare``: the passes of ``first_pass``, ``near_pass`` and ``second_pass`` on a ``layout``, resumable.

Read and clean stream into the exchange; near-duplicates are looked for; then each bucket is finished by one task and
written as one shard per folder. How rows meet, split and order depends on the data alone, so the prepared folder is
the same bytes whatever the number of workers, killed and resumed or not. ``manifest.json`` is written last:
without it there is no prepared data. What is needed to go on after a kill lies in ``<fingerprint>.work``.
"""

from __future__ import annotations

import json

from pipeline import alone, cluster, console
from pipeline.config import Config
from pipeline.data import (
    augment,
    clean,
    corrections,
    gates,
    near,
    tagger,
)
from pipeline.data.job import Job, neighbours_model
from pipeline.data.layout import choose
from pipeline.data.prepared import FORMAT, Prepared, digest
from pipeline.data.read import Source, content, find
from pipeline.errors import UserError
from pipeline.model.source import ModelSource
from pipeline.storage import Place

# Keys of the data section that change nothing in the prepared data, or are told in another way.
NOT_CONTENT = ("train", "validation", "test", "dataset", "in_process_mb", "corrections")


def plan(config: Config) -> list[Source]:
    """The input files of a job.

    Raises:
        UserError: a file is missing, empty, binary, in an unknown format, or lacks a column.
    """
    corrections.load(config.data)  # a wrong file of corrections is told before any work, too
    splits = ("train", "validation", "test")
    return find([(pattern, split) for split in splits for pattern in getattr(config.data, split)], config.data)


def fingerprint(config: Config, sources: list[Source], model: ModelSource) -> str:
    """What the prepared data depends on: the files' content, the data section, the tokenizer, the code version."""
    data = config.data.model_dump(mode="json", exclude={*NOT_CONTENT, *gates.KEYS})
    tokenizer = [model.kind, model.tokenizer_identity, str(config.model.max_tokens)]
    if model.folder is None:
        tokenizer.append(str(config.model.vocab_size))
    if config.data.augment:
        tokenizer += [str(augment.VERSION), str(config.seed)]
    if "neighbours" in config.data.augment:
        tokenizer.append(neighbours_model(model).identity)
    if config.data.profile_rows:
        tokenizer += tagger.installed()
    tokenizer += corrections.content(config.data)
    files = [f"{s.name}|{s.split}|{s.format}|{content(s)}" for s in sources]
    return digest(
        str(FORMAT), str(clean.VERSION), str(near.VERSION), json.dumps(data, sort_keys=True), *tokenizer, *files
    )


def prepare(config: Config, model: ModelSource, address: str | None = None) -> tuple[Prepared, bool]:
    """Make the prepared data, go on with an attempt that was cut off, or find it already made.

    Args:
        config: with ``data.train`` resolved (see ``named.resolve``).
        model: whose tokenizer is used.
        address: the Ray cluster.

    Returns:
        The prepared data, and whether it was reused.

    Raises:
        UserError: the input cannot be prepared; nothing is left behind.
        WorkFailed: the work stopped half-way; the same command goes on with it.
    """
    sources = plan(config)
    mark = fingerprint(config, sources, model)
    place = Place.of(config.storage) / "prepared" / mark
    work = Place.of(config.storage) / "prepared" / f"{mark}.work"
    if (place / "manifest.json").exists():
        work.delete()
        return Prepared.open(place), True
    with alone.waiting(place, _tell):
        if (place / "manifest.json").exists():  # made by the command that was waited for
            return Prepared.open(place), True
        how = choose(sources, config.data, address)  # a cluster that is not there is no reason to throw work away
        try:
            Job(config, sources, model, place, work, how).run()
        except BaseException as e:
            ours = cluster.our_error(e, "data.shard_mb (it then begins anew)")
            if isinstance(ours, UserError):
                place.delete()
                work.delete()
            if ours is not None:
                raise ours from None
            raise
        work.delete()
    return Prepared.open(place), False


def _tell(holder: str) -> None:
    console.say("prepare", f"another command prepares the same data ({holder}): waiting for it")
