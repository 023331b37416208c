"""cluster.yaml against Ray's own schema and against what its comments promise. Starts no Ray and no cloud."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "~/.ray/auth_token"
Config = dict[str, Any]


@pytest.fixture(scope="module")
def config() -> Config:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def ray_schema() -> Config:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    assert path.is_file(), f"Ray has moved its cluster schema ({path}): point this test at the new place"
    return json.loads(path.read_text(encoding="utf-8"))


def start_commands(config: Config) -> list[str]:
    """The commands that start Ray, head first."""
    lines = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return [line for line in lines if "ray start" in line]


def test_matches_rays_schema(config: Config) -> None:
    schema = ray_schema()
    assert schema["additionalProperties"] is False, "Ray's schema no longer refuses unknown keys"
    jsonschema.validate(config, schema)


def test_rays_schema_refuses_a_misspelt_key(config: Config) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        jsonschema.validate({**config, "idle_timeout_minuts": 5}, ray_schema())


def test_rays_own_validation_accepts_it(config: Config) -> None:
    # Private, and the only place that knows the rules beyond the schema.
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(json.loads(json.dumps(config)))
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == config["available_node_types"].keys()
    assert prepared["docker"] == {}


def test_head_takes_no_work_and_is_on_demand(config: Config) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_worker_groups_and_their_resources(config: Config) -> None:
    types = config["available_node_types"]
    assert types.keys() == {"head", "cpu", "gpu"}
    workers = [types["cpu"], types["gpu"]]
    # Explicit, because the plan is counted from them; more than one CPU, or reading starves behind training.
    assert types["cpu"]["resources"].keys() == {"CPU"}
    assert types["gpu"]["resources"].keys() == {"CPU", "GPU"}
    assert all(node["resources"]["CPU"] >= 2 for node in workers)
    assert types["gpu"]["resources"]["GPU"] >= 1
    for node in workers:
        assert 0 <= node["min_workers"] < node["max_workers"], "the group cannot grow"
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        # Ray gives only the head a profile by itself: workers without one cannot reach the bucket.
        assert node["node_config"]["IamInstanceProfile"]
    assert sum(node["max_workers"] for node in workers) <= config["max_workers"]
    assert config["idle_timeout_minutes"] > 0


def test_one_image_for_all_nodes(config: Config) -> None:
    images = {node["node_config"].get("ImageId") for node in config["available_node_types"].values()}
    assert len(images) == 1
    assert None not in images


def test_every_ray_start_demands_the_token(config: Config) -> None:
    commands = start_commands(config)
    assert len(commands) == 2
    for command in commands:
        before, _, _ = command.partition("ray start")
        assert re.search(r"export [^;]*\bRAY_AUTH_MODE=token\b", before), command
    assert config["file_mounts"][TOKEN] == TOKEN
    assert f"chmod 600 {TOKEN}" in config["setup_commands"]


def test_the_token_is_where_ray_looks_for_it() -> None:
    from ray._private.authentication.authentication_token_setup import _get_default_token_path

    assert _get_default_token_path() == Path(TOKEN).expanduser()


def test_ray_still_has_the_command_that_makes_the_token() -> None:
    from ray.scripts.scripts import cli

    assert "--generate" in [opt for p in cli.commands["get-auth-token"].params for opt in p.opts]


def test_dashboard_listens_on_loopback_only(config: Config) -> None:
    head, worker = start_commands(config)
    assert re.findall(r"--dashboard-host=(\S+)", head) == ["127.0.0.1"]
    assert "--dashboard-host" not in worker
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker


def test_haproxy_is_set_before_ray_starts_and_threads_are_rays_business(config: Config) -> None:
    for command in start_commands(config):
        before, _, _ = command.partition("ray start")
        assert "RAY_SERVE_ENABLE_HA_PROXY=1" in before
        assert 'RAY_SERVE_HAPROXY_BINARY_PATH="$(command -v broadsheet-haproxy)"' in before
        assert "unset OMP_NUM_THREADS" in before


def test_the_whole_project_and_nothing_else_is_mounted(config: Config) -> None:
    local = {Path(p) for p in config["file_mounts"].values() if p != TOKEN}
    missing = sorted(str(p) for p in local if not (ROOT / p).exists())
    assert not missing, f"cluster.yaml mounts what is not there: {missing}"
    packages = {p.parent.relative_to(ROOT) for p in ROOT.glob("*/__init__.py")}
    assert packages - {Path("tests"), Path("benchmarks")} <= local, (
        "a package of the project is not shipped to the nodes"
    )
    assert {Path("pyproject.toml"), Path("constraints.txt"), Path("broadsheet.py")} <= local
    for remote, path in config["file_mounts"].items():
        assert path == TOKEN or remote == f"~/app/{path}"
    # `ray up` hashes everything below a mount and sets all nodes up again when it changed.
    assert not {Path(p) for p in (".", ".venv", "runs", ".git")} & local
    for name in (".venv", ".git", "runs"):
        assert f"**/{name}/**" in config["rsync_exclude"]


def test_every_node_installs_the_pinned_versions(config: Config) -> None:
    (install,) = [line for line in config["setup_commands"] if "pip install" in line]
    assert install.startswith("cd ~/app && ")
    assert "-c constraints.txt -e ." in install


def test_constraints_pin_exactly_and_fit_the_project() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins = {canonicalize_name(r.name): r for r in requirements}
    for pin in pins.values():
        assert [s.operator for s in pin.specifier] == ["=="], f"{pin} is not an exact version"
        assert "+" not in str(pin.specifier), f"{pin}: a local build is not to be had elsewhere"
    project = re.findall(r'^    "([^"]+)",$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    asked = [Requirement(text) for text in project if re.match(r"[A-Za-z][\w.-]*(\[|[<>=]|$)", text)]
    assert len(asked) > 20
    for requirement in asked:
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version), f"{requirement} does not admit {pin}"
