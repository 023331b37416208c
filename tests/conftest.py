"""Shared fixtures: one local Ray for the whole suite, and free ports."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline per example: the machine may be busy with something else.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

pytest_plugins = ["s3_server"]


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors; these come from libraries and cannot be fixed here."""
    for line in (
        # Ray leaves sockets and pipes of its own processes to the garbage collector at shutdown.
        "ignore:unclosed:ResourceWarning",
        "ignore:subprocess \\d+ is still running:ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning:ray",
        # Ray Data copies its own context, old keys included, and warns of them.
        "ignore:.*is deprecated! Configure:DeprecationWarning",
        "ignore::DeprecationWarning:ray",
        # Ray announces a change of default for CUDA_VISIBLE_DEVICES on every init without GPUs.
        "ignore:Tip. In future versions of Ray:FutureWarning",
    ):
        config.addinivalue_line("filterwarnings", line)


def unused_port() -> int:
    """A TCP port that nothing listens on right now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    """A TCP port that nothing listens on right now."""
    return unused_port()


@pytest.fixture(scope="session")
def haproxy_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed ``broadsheet-haproxy``, or one like it when the project runs from a checkout."""
    installed = Path(sys.executable).with_name("broadsheet-haproxy")
    if installed.is_file():
        return installed
    script = tmp_path_factory.mktemp("bin") / "broadsheet-haproxy"
    root = Path(__file__).parent.parent
    script.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(root)!r})\nfrom serve.haproxy import main\n\nmain()\n"
    )
    script.chmod(0o755)
    return script


@pytest.fixture(scope="session")
def ray_session(haproxy_script: Path) -> Iterator[None]:
    """One local Ray (4 logical CPUs) for every test that needs one, with HAProxy in front of Serve."""
    from pipeline.config import ServeConfig
    from serve.haproxy import environment

    before = dict(os.environ)
    os.environ.update(environment(ServeConfig(), script=haproxy_script))
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=True, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer's checkpoint with random weights, see ``small_bert``."""
    import small_bert

    return small_bert.write(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def bert_onnx(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of ``bert`` as an ONNX file: writing one takes seconds."""
    from pipeline.evaluate.classifier import Classifier
    from serve.engine import onnx_file

    file = tmp_path_factory.mktemp("onnx") / "bert.onnx"
    onnx_file.write(Classifier.load(str(bert)).network, file)
    return file
