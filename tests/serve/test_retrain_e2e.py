"""The loop that closes, for real: served on Ray Serve, corrected over HTTP, trained again by the command, promoted."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import mislabelled
import pytest

import broadsheet
from pipeline import stages
from serve import deploy


@pytest.mark.timeout(400)
def test_what_people_said_makes_a_better_model_that_takes_over(
    ray_session: None,
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BROADSHEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = mislabelled.config(tmp_path, "base", "evaluate.evidence_rows=0")
    base = stages.run(config, True, None)
    kept = {"serve.port": free_port, "serve.feedback": "kept", "serve.engine": "torch", "serve.max_replicas": 1}
    url = deploy.deploy(str(base.checkpoint), config.updated(kept))
    text = " ".join(mislabelled.WORDS["sport", 1])

    def asked() -> tuple[str, str]:
        answer = httpx.post(f"{url}/v1/classify", json={"inputs": text, "top_k": 1}, timeout=60)
        return answer.json()[0][0]["label"], answer.headers["x-model-version"]

    command = ["run", "--from-feedback", "--name", "better", "--port", str(free_port)]
    try:
        label, before = asked()
        assert label == "money"
        items = [{"text": t, "label": right} for t, right in mislabelled.corrected(100, 60)]
        assert httpx.post(f"{url}/v1/feedback", json={"items": items}, timeout=60).json() == {"kept": 160}
        broadsheet.cli.main(command, standalone_mode=False)
        said = capsys.readouterr().out
        decision = json.loads((tmp_path / "runs" / "better" / "decision.json").read_text())
        assert (decision["better"], decision["promoted"]) == (True, True), said
        assert decision["comparison"]["p"] < 0.001
        label, after = asked()
        assert label == "sport"
        assert after != before

        broadsheet.cli.main(command, standalone_mode=False)  # the same again finds everything done
        said = capsys.readouterr().out
        assert said.count("unchanged, reusing") == 3
        assert "serves already" in said
        assert asked() == (label, after)
    finally:
        deploy.shutdown()
