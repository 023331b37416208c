"""The files for `ray up` against Ray's own schema and against what their comments promise. No Ray, no cloud."""

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
CLOUDS = ["cluster.yaml", "cluster/gcp.yaml"]
Config = dict[str, Any]


def read(name: str) -> Config:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(params=[*CLOUDS, "cluster/on-prem.yaml"])
def config(request: pytest.FixtureRequest) -> Config:
    return read(request.param)


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> Config:
    return read(request.param)


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
    if config["provider"]["type"] != "local":  # whose one type Ray makes up
        assert prepared["available_node_types"].keys() == config["available_node_types"].keys()
    assert prepared["docker"] == {}


def is_spot(node: Config) -> bool:
    market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or node["node_config"].get("scheduling", {}).get("provisioningModel") == "SPOT"


def test_head_takes_no_work_and_is_on_demand(cloud: Config) -> None:
    head = cloud["available_node_types"][cloud["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert not is_spot(head)


def test_worker_groups_and_their_resources(cloud: Config) -> None:
    types = cloud["available_node_types"]
    assert types.keys() == {"head", "cpu", "gpu"}
    workers = [types["cpu"], types["gpu"]]
    # Explicit, because the plan is counted from them; more than one CPU, or reading starves behind training.
    assert types["cpu"]["resources"].keys() == {"CPU"}
    assert types["gpu"]["resources"].keys() == {"CPU", "GPU"}
    assert all(node["resources"]["CPU"] >= 2 for node in workers)
    assert types["gpu"]["resources"]["GPU"] >= 1
    for node in workers:
        assert 0 <= node["min_workers"] < node["max_workers"], "the group cannot grow"
        assert is_spot(node)
        # Ray gives only the head an identity by itself: workers without one cannot reach the bucket.
        assert node["node_config"].get("IamInstanceProfile") or node["node_config"]["serviceAccounts"]
    assert sum(node["max_workers"] for node in workers) <= cloud["max_workers"]
    assert cloud["idle_timeout_minutes"] > 0


def test_one_image_for_all_nodes_on_aws() -> None:
    images = {node["node_config"].get("ImageId") for node in read("cluster.yaml")["available_node_types"].values()}
    assert len(images) == 1
    assert None not in images


def test_one_release_of_one_system_on_google() -> None:
    """An image with the driver costs more to start than one without, but Python must be the same to its last digit."""
    config = read("cluster/gcp.yaml")
    zone = config["provider"]["availability_zone"]
    for node in config["available_node_types"].values():
        (disk,) = node["node_config"]["disks"]
        assert "2404" in disk["initializeParams"]["sourceImage"]
        assert disk["initializeParams"]["diskType"].startswith(f"zones/{zone}/")
    text = (ROOT / "cluster/gcp.yaml").read_text(encoding="utf-8")
    assert text.count(f"zones/{zone}/") == 1, "one place to edit"
    assert "diskType" in text.partition("cluster_name:")[0], "and the steps name it"
    # A machine with a GPU cannot move to another host while it runs.
    assert config["available_node_types"]["gpu"]["node_config"]["scheduling"]["onHostMaintenance"] == "TERMINATE"


def test_machines_one_already_has() -> None:
    config = read("cluster/on-prem.yaml")
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(json.loads(json.dumps(config)))
    (only,) = prepared["available_node_types"].values()
    assert only["min_workers"] == only["max_workers"] == len(config["provider"]["worker_ips"])
    head, worker = start_commands(config)
    assert "--num-cpus=0 " in head
    assert "--num-cpus" not in worker
    text = (ROOT / "cluster/on-prem.yaml").read_text(encoding="utf-8")
    assert "RAY_UP_enable_autoscaler_v2=0" in text


def test_the_head_finds_its_address_in_what_ray_up_leaves_there(tmp_path: Path) -> None:
    import subprocess
    import sys

    (head,) = [line for line in start_commands(read("cluster/on-prem.yaml")) if "--head" in line]
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps({"provider": {"head_ip": "10.0.0.9"}}))
    line = re.search(r"export HEAD_IP=.*?; (?=ray start)", head)
    assert line
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(["bash", "-c", f"{line[0]} echo $HEAD_IP"], env={"HOME": str(tmp_path), "PATH": path},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "10.0.0.9"


def test_every_ray_start_demands_the_token(config: Config) -> None:
    commands = start_commands(config)
    assert len(commands) == 2
    for command in commands:
        before, _, _ = command.partition("ray start")
        assert re.search(r"export [^;]*\bRAY_AUTH_MODE=token\b", before), command
    assert config["file_mounts"][TOKEN] == TOKEN
    assert f"chmod 600 {TOKEN}" in config["setup_commands"]


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster/gcp.yaml"])
def test_spot_workers_watch_for_their_notice(name: str) -> None:
    """The line must come back at once, with nothing of it left on the connection, and be right if it runs twice."""
    config = read(name)
    (line,) = [one for one in config["worker_start_ray_commands"] if "pipeline.spot" in one]
    assert config["worker_start_ray_commands"][-1] == line
    assert line.startswith("RAY_AUTH_MODE=token nohup flock -n ")
    assert line.split("pipeline.spot")[1].split() == [">", "~/broadsheet-spot.log", "2>&1", "<", "/dev/null", "&"]
    assert not [one for one in config["head_start_ray_commands"] if "pipeline.spot" in one]


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
        assert 'eval "$(broadsheet-haproxy --environment || echo exit 1)"' in before
        assert "unset OMP_NUM_THREADS" in before


def test_the_whole_project_and_nothing_else_is_mounted(config: Config) -> None:
    local = {Path(p) for p in config["file_mounts"].values() if p != TOKEN}
    missing = sorted(str(p) for p in local if not (ROOT / p).exists())
    assert not missing, f"mounts what is not there: {missing}"
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
