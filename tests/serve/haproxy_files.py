"""HAProxy's configuration by Ray's own code."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path


def rendered(
    folder: Path, host: str, port: int, stats: int = 8404, metrics: int = 9101, applications: int = 1, servers: int = 1
) -> Path:
    """A configuration by Ray's own code, with one application behind it, or none; its replicas are on this machine."""
    from ray._common.network_utils import get_localhost_ip
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    async def write() -> None:
        api = HAProxyApi(
            cfg=HAProxyConfig(
                http_options=HTTPOptions(host=host, port=port),
                socket_path=str(folder / "admin.sock"),
                server_state_base=str(folder),
                server_state_file=str(folder / "state"),
                metrics_socket_path=str(folder / "metrics.sock"),
                stats_port=stats,
                metrics_port=metrics,
                has_received_routes=True,
                has_received_servers=True,
                is_head=True,
            ),
            backend_configs={
                name: BackendConfig(
                    name=name,
                    path_prefix="/",
                    app_name=name,
                    servers=[ServerConfig(f"r{i}", get_localhost_ip(), 1 + i) for i in range(servers)],
                )
                for name in ("app",)[:applications]
            },
            config_file_path=str(folder / "haproxy.cfg"),
        )
        api._generate_config_file_internal()

    asyncio.run(write())
    return folder / "haproxy.cfg"


def wait_for_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
