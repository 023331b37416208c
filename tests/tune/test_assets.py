"""What trials share, made before the first of them: a teacher's answers, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import small_bert
from preparing import write_csv

from pipeline import config as configuration
from pipeline import stages
from pipeline.storage import Place
from pipeline.train import teacher
from tune.assets import Assets
from tune.space import final_config, trial_config


def test_a_teacher_answers_to_the_rows_of_trials_and_finals(ray_session: None, tmp_path: Path, bert: Path) -> None:
    words = small_bert.WORDS
    rows = [(f"{word} {i}", label) for label, of in words.items() for word in of for i in range(8)]
    file = write_csv(tmp_path / "rows.csv", rows)
    sets = ["model.name=lstm", "model.vocab_size=300", "data.near_duplicates=keep", f"train.teacher={bert}"]
    flags: dict[str, Any] = {"storage": str(tmp_path), "data.train": (file,)}
    job = stages.begin(configuration.load(None, [*sets, "tune.max_rows=40", "tune.seeds=2"], flags), short=False)
    stages.make_prepared(job, None, note=False)
    assert job.prepared is not None
    Assets(job, {}, Place.of(tmp_path / "trials")).ask_teacher({}, None)
    seed = job.config.seed
    samples = [trial_config(job.config, {}), *(final_config(job.config, {}, s) for s in (seed + 1, seed + 2))]
    drawn = [teacher.rows_of(config, job.prepared) for config in samples]
    assert len({one.tobytes() for one in drawn}) == 3
    place = teacher.place_of(job.config, job.prepared)
    assert place is not None
    for one in drawn:
        assert teacher.read(place, one, 3).shape == (40, 3)
