"""The endpoint for real: Ray Serve behind HAProxy, HTTP over a socket, a tiny untrained network."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pyarrow.parquet as pq
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from pipeline.config import Config
from pipeline.doctor import examination
from pipeline.errors import UserError, WorkFailed
from pipeline.evaluate.classifier import Classifier
from pipeline.evaluate.reference import make
from pipeline.storage import Place
from serve import client, deploy, desk, haproxy_config, haproxy_processes, release_stage

LABELS = ["sport", "world", "科技"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained LSTM over a vocabulary of a few words."""
    from pipeline.data import clean
    from pipeline.data.tokenize import pad_id, train_wordpiece
    from pipeline.model import build
    from pipeline.model.source import resolve
    from pipeline.train.checkpoint import save_model

    tokenizer = tmp_path_factory.mktemp("tokenizer")
    size = train_wordpiece(["a team won the cup", "oil prices", "芯片 手机"] * 3, 100, tokenizer)["vocab_size"]
    config = Config().updated({"model.name": "lstm", "model.embedding_dim": 16, "model.hidden": [16]})
    source = resolve("lstm")
    card = {
        "labels": LABELS,
        "max_tokens": 32,
        "pad_id": pad_id(tokenizer),
        "temperature": 1.0,
        "cleaning": {"version": clean.VERSION, "rules": list(clean.RULE_NAMES), "max_chars": 1000},
    }
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_model(build.initial(config, source, LABELS, size, pad_id(tokenizer)), tokenizer, card, folder)
    classifier = Classifier.load(str(folder))
    encoded = classifier.encode(["the team won", "oil prices", "芯片"] * 200)
    probabilities = classifier.probabilities(classifier.logits(encoded.ids))
    make(LABELS, probabilities, encoded.ids, encoded.truncated, classifier.unknown_id).save(Place.of(folder))
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Config:
    from conftest import unused_port

    kept = tmp_path_factory.mktemp("kept")
    return Config().updated({"serve.port": unused_port(), "serve.timeout_s": 20, "serve.feedback": str(kept)})


@pytest.fixture(scope="module")
def url(ray_session: None, checkpoint: Path, settings: Config) -> Iterator[str]:
    yield deploy.deploy(str(checkpoint), settings)
    deploy.shutdown()


def post(url: str, body: bytes) -> httpx.Response:
    return httpx.post(f"{url}/v1/classify", content=body, timeout=60)


def test_it_answers(url: str) -> None:
    texts = ["The team won the cup", "oil & gas <b>prices</b>", "芯片", "", "a " * 5000]
    answers = client.classify(url, texts, top_k=2)
    assert [len(a) for a in answers] == [2] * 5
    assert {row["label"] for a in answers for row in a} <= set(LABELS)
    (alone,) = client.classify(url, texts[0])
    assert [row["label"] for row in alone][:2] == [row["label"] for row in answers[0]]
    assert sum(row["score"] for row in alone) == pytest.approx(1)
    response = post(url, json.dumps({"inputs": texts}).encode())
    assert response.headers["x-broadsheet-truncated"] == "1"
    assert response.headers["x-model-version"] == httpx.get(f"{url}/ready").json()["model_version"]


def test_explain_feedback_v2_metrics_and_page(url: str, settings: Config) -> None:
    text = "The team won the cup. 芯片 oil prices"
    (best,) = client.classify(url, text, top_k=1)[0]
    explained = client.request(f"{url}/v1/explain", json.dumps({"inputs": text}).encode())
    assert explained["label"] == best["label"]
    assert explained["probability"] == pytest.approx(best["score"], abs=1e-5)
    assert explained["nearest"] == []  # this checkpoint was never evaluated
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}
    answer = client.request(f"{url}/v2/models/broadsheet/infer", json.dumps(body).encode())
    assert answer["outputs"][0]["data"] == [best["label"]]
    item = {"text": text, "label": "科技", "predicted": best["label"]}
    assert client.request(f"{url}/v1/feedback", json.dumps(item).encode()) == {"kept": 1}
    (file,) = Path(str(settings.serve.feedback)).iterdir()
    assert pq.read_table(file)["label"].to_pylist() == ["科技"]
    assert 'broadsheet_requests_total{path="/v1/explain",status="200"}' in httpx.get(f"{url}/metrics").text
    assert client.request(f"{url}/v1/drift")["reference_rows"] == 600
    page = httpx.get(url, headers={"accept": "text/html"})
    assert page.text.startswith("<!doctype html>")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_each_replica_is_on_its_nodes_port_of_metrics(url: str) -> None:
    """Fails loudly where a new Ray no longer exports them, or not under these names."""
    # Replicas of earlier tests stay on the port for a while.
    version = httpx.get(f"{url}/ready").json()["model_version"]
    client.classify(url, "Oil prices")
    (node,) = ray.nodes()
    port = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    own = {s.name for f in text_string_to_metric_families(httpx.get(f"{url}/metrics").text) for s in f.samples}
    own = {name for name in own if not name.endswith("_created")}
    for _ in range(60):
        families = list(text_string_to_metric_families(httpx.get(port).text))
        shown = [s for f in families for s in f.samples if s.name.startswith("ray_broadsheet_")]
        shown = [s for s in shown if s.labels.get("version", version) == version]
        samples = {s.name: s for s in shown}
        if {name.removeprefix("ray_") for name in samples} >= own and samples["ray_broadsheet_texts_total"].value:
            break
        time.sleep(1)
    assert {name.removeprefix("ray_") for name in samples} >= own
    share = samples["ray_broadsheet_drift_reference"].labels
    assert {"replica", "deployment", "application", "version", "feature", "bin"} <= set(share)
    assert samples["ray_broadsheet_phase_seconds_bucket"].labels["le"]
    found = {s.labels["label"] for s in shown if s.name == "ray_broadsheet_predicted_labels_total"}
    assert found == set(LABELS)


BAD: list[tuple[bytes, int]] = [
    (json.dumps({"inputs": ["a"] * 10_000}).encode(), 413),
    (json.dumps({"inputs": "b" * 5_000_000}).encode(), 413),
    (json.dumps({"inputs": "b" * 200_000}).encode(), 413),
    (b'{"inputs": "\xff\xfe"}', 400),
    (b"[1, 2]", 400),
    (b'{"inputs": 7}', 422),
    (b'{"inputs": []}', 422),
    (b'{"inputs": "\\ud800"}', 422),
]


@pytest.mark.parametrize(("body", "status"), BAD)
def test_bad_input_over_a_socket(url: str, body: bytes, status: int) -> None:
    response = post(url, body)
    assert response.status_code == status
    assert set(response.json()) == {"error", "error_type"}


def test_an_endless_chunked_body_is_refused(url: str) -> None:
    """The answer arrives although the client would go on sending for ever."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    with socket.create_connection((address.hostname, address.port), timeout=60) as s:
        s.sendall(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        stop = threading.Event()

        def send() -> None:
            chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
            try:
                while not stop.is_set():
                    s.sendall(chunk)
            except OSError:
                pass  # the server hung up, as it may

        sender = threading.Thread(target=send)
        sender.start()
        answer = s.recv(100)
        stop.set()
        s.shutdown(socket.SHUT_RDWR)
        sender.join(30)
    assert answer.startswith(b"HTTP/1.1 413")


def test_errors_carry_the_servers_sentence(url: str) -> None:
    with pytest.raises(WorkFailed, match="422: 'top_k' is 4, but the model has 3 labels"):
        client.classify(url, ["a"], top_k=4)
    with pytest.raises(WorkFailed, match="404: nothing here"):
        client.request(f"{url}/nowhere")
    with pytest.raises(WorkFailed, match="did not answer"):
        client.request("http://127.0.0.1:9/ready", timeout=5)


def test_clients_that_hang_up_do_not_stop_later_requests(url: str) -> None:
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    body = json.dumps({"inputs": ["the team won the cup " * 20] * 200}).encode()
    head = f"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    for part in (body[:50], body, body, body):  # one hangs up in mid body, the others while the model works
        with socket.create_connection((address.hostname, address.port), timeout=60) as s:
            s.sendall(head + part)
    assert len(client.classify(url, ["oil"] * 5)) == 5


def test_many_at_once(url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(n: int) -> Any:
        return client.classify(url, ["oil prices " * (n % 7 + 1)] * (n % 4 + 1), top_k=1, timeout=60)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(100)))
    assert [len(a) for a in answers] == [n % 4 + 1 for n in range(100)]


def test_only_loopback_listens(url: str, settings: Config) -> None:
    """HAProxy's front end, statistics and metrics, the replica and the fallback: none on another interface."""
    ((_, command),) = haproxy_processes.running(deploy._haproxy_config())
    file = Path(command.split(" -f ")[1].split()[0])
    until = time.monotonic() + 60
    while haproxy_config.CLIENT_HEADER.decode() not in (text := file.read_text()) and time.monotonic() < until:
        time.sleep(0.1)  # Ray has just written it for a reload; HAProxy reads what the stand-in makes of it
    binds = re.findall(r"^\s*bind (\S+):(\d+)", text, re.MULTILINE)
    servers = re.findall(r"^\s*server \S+ (\S+):(\d+)", text, re.MULTILINE)
    assert len(binds) == 3
    assert len(servers) == 2
    assert {host for host, _ in binds + servers} == {"127.0.0.1"}
    own = ray.util.get_node_ip_address()
    for _, port in binds + servers:
        with socket.socket() as s:
            assert s.connect_ex(("127.0.0.1", int(port))) == 0
        with socket.socket() as s:
            assert own == "127.0.0.1" or s.connect_ex((own, int(port))) != 0
    assert deploy.listens_on() == "127.0.0.1"
    assert examination._serves() == settings.serve.port
    counted = httpx.get(f"http://127.0.0.1:{os.environ['RAY_SERVE_HAPROXY_METRICS_PORT']}/metrics").text
    assert 'haproxy_frontend_http_responses_total{proxy="http_frontend",code="4xx"}' in counted  # see alerts.yaml


def test_another_port_on_the_same_cluster_is_refused(url: str, checkpoint: Path, settings: Config) -> None:
    other = settings.updated({"serve.port": settings.serve.port - 1})
    with pytest.raises(UserError, match=f"already runs on this cluster, on 127.0.0.1:{settings.serve.port}"):
        deploy.deploy(str(checkpoint), other)


def test_deploying_again_keeps_answering(url: str, checkpoint: Path, settings: Config) -> None:
    assert deploy.deploy(str(checkpoint), settings) == url
    (name,) = desk.names()
    release = release_stage.Desk(ray.get_actor(name, desk.NAMESPACE)).state().lineup.stable
    assert (release.checkpoint, Path(release.place).parent) == (str(checkpoint), checkpoint.parent / "served")
    assert len(client.classify(url, "oil")) == 1


def test_no_checkpoint(settings: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint to serve in .*: train one first with 'broadsheet train'"):
        deploy.deploy(str(tmp_path), settings)


def test_shutdown_leaves_nothing_and_a_broken_checkpoint_says_why(
    url: str, checkpoint: Path, settings: Config, tmp_path: Path
) -> None:
    """Last: it stops the endpoint that the tests above use."""
    config_file = deploy._haproxy_config()
    assert haproxy_processes.running(config_file)
    deploy.shutdown()
    assert not haproxy_processes.running(config_file)
    deploy.check_port(settings.serve.host, settings.serve.port)
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(WorkFailed, match=r"the model server did not start: .*(SafetensorError|cannot be loaded)"):
        deploy.deploy(str(tmp_path), settings)
    assert not haproxy_processes.running(config_file)
    deploy.check_port(settings.serve.host, settings.serve.port)
