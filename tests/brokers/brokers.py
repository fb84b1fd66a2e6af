"""Brokers as people run them, each started on loopback in a folder of its own, with what it keeps over a restart."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import logs
from broker_rig import Mosquitto, free_port
from patience import PATIENCE, eventually

HERE = Path(__file__).parent
USER, PASSWORD = "worker", "not a secret"
COOKIE = "edged-tests"
"""Nodes of Erlang with the same one talk to each other."""

_ERLANG = {"ERL_EPMD_ADDRESS": "127.0.0.1", "LC_ALL": "C.UTF-8"}
_ON_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"


class Broker:
    """A broker's process and its port. A subclass writes the configuration and says how it is started."""

    name: str
    username: str | None = None
    needs: tuple[str, ...]
    """The programs that must be there, by name or path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log_file = folder / "broker.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}

    @classmethod
    def missing(cls) -> str | None:
        """The first program that this broker needs and this machine lacks."""
        return next((one for one in cls.needs if not (shutil.which(one) or Path(one).exists())), None)

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        logs.show_on_failure(self.log_file, f"log of {self.name}")
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                cwd=self.folder,
                start_new_session=True,
            )
        eventually(self._listens, lambda: f"{self.name} listens; its log ends: {self.log_file.read_text()[-800:]}")

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended: {self.log_file.read_text()[-2000:]}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End it in order, so that it keeps what it keeps."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once; start() goes on with what is on its disk."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        logs.forget(self.log_file)

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, number)
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        except ProcessLookupError:
            self.process.wait()
        self.process = None


class MosquittoBroker(Broker):
    name = "mosquitto"
    needs = ("/usr/sbin/mosquitto",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._mosquitto = Mosquitto(folder)
        self.port = self._mosquitto.port

    def start(self) -> None:
        self._mosquitto.start()

    def stop(self) -> None:
        self._mosquitto.stop()

    def close(self) -> None:
        self._mosquitto.close()


class Nats(Broker):
    name = "NATS"
    needs = ("nats-server",)

    def command(self) -> list[str]:
        configuration = self.folder / "nats.conf"
        configuration.write_text(
            f'server_name: edge\nhost: "127.0.0.1"\nport: {free_port()}\n'
            f'jetstream {{ store_dir: "{self.folder}/store" }}\n'
            f'mqtt {{ host: "127.0.0.1", port: {self.port} }}\n'
        )
        return ["nats-server", "-c", str(configuration)]


class RabbitMq(Broker):
    name = "RabbitMQ"
    needs = ("/usr/lib/rabbitmq/bin/rabbitmq-server",)

    def command(self) -> list[str]:
        (self.folder / "plugins").write_text("[rabbitmq_mqtt].\n")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.local = 127.0.0.1:{free_port()}\nmqtt.listeners.tcp.local = 127.0.0.1:{self.port}\n"
            "mqtt.allow_anonymous = true\nmqtt.subscription_ttl = 86400000\nlog.console = true\n"
        )
        self.environment = {
            **_ERLANG,
            "HOME": str(self.folder),
            "RABBITMQ_NODENAME": f"edged{self.port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ON_LOOPBACK,
        }
        return ["/usr/lib/rabbitmq/bin/rabbitmq-server"]


class Ejabberd(Broker):
    name = "ejabberd"
    needs = ("/usr/sbin/ejabberdctl",)
    username = f"{USER}@localhost"

    @property
    def node(self) -> str:
        """What other nodes call this one."""
        return f"edged{self.port}@localhost"

    def join(self, other: Ejabberd) -> None:
        """Make this running node one of the cluster of another one; what it had kept is gone. Both know each other."""
        assert self.eval(f"ejabberd_cluster:join('{other.node}')") == "ok"

    def members(self) -> set[str]:
        """The running nodes that this one sees, itself among them."""
        return set(self.eval("ejabberd_cluster:get_nodes()").strip("[]").replace("'", "").split(","))

    def eval(self, expression: str) -> str:
        """What an Erlang expression is on this node."""
        called = f"rpc:call('{self.node}', erlang, apply, [fun() -> {expression} end, []])"
        line = ["erl", "-noinput", "-sname", f"edged-asks-{free_port()}@localhost", "-setcookie", COOKIE]
        line += [*_ON_LOOPBACK.split(), "-eval", f'io:format("~p", [{called}]), halt().']
        environment = {**os.environ, **self.environment}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True)
        return done.stdout.replace("\n", "").replace(" ", "")

    def command(self) -> list[str]:
        (self.folder / "ejabberd.yml").write_text(
            "hosts:\n  - localhost\nloglevel: warning\nauth_method: anonymous\nanonymous_protocol: login_anon\n"
            f'listen:\n  - port: {self.port}\n    ip: "127.0.0.1"\n    module: mod_mqtt\n'
            "    max_payload_size: infinity\nmodules:\n  mod_mqtt:\n    match_retained_limit: infinity\n"
        )
        (self.folder / "data").mkdir(exist_ok=True)
        self.environment = {
            **_ERLANG,
            "HOME": str(self.folder / "data"),
            "EJABBERD_CONFIG_PATH": str(self.folder / "ejabberd.yml"),
            "EJABBERD_LOG_PATH": str(self.folder / "ejabberd.log"),
            "ERL_LIBS": str(next(Path("/usr/lib").glob("*/ejabberd-*")).parent),
        }
        return [
            "erl",
            "-noinput",
            "-sname",
            self.node,
            "-setcookie",
            COOKIE,
            *_ON_LOOPBACK.split(),
            "-mnesia",
            "dir",
            f'"{self.folder}/data"',
            "-s",
            "ejabberd",
        ]


class Aedes(Broker):
    name = "aedes"
    needs = ("node",)

    def command(self) -> list[str]:
        self.environment = {"NODE_PATH": os.environ["BROKERS_NODE"]}
        return ["node", str(HERE / "aedes.js"), str(self.port)]

    @classmethod
    def missing(cls) -> str | None:
        return super().missing() or (None if "BROKERS_NODE" in os.environ else "aedes (npm)")


class Amqtt(Broker):
    name = "amqtt"
    needs = ()

    def command(self) -> list[str]:
        configuration = self.folder / "amqtt.yaml"
        configuration.write_text(
            f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{self.port}\n"
            "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
        )
        return [os.environ["BROKERS_AMQTT"], "-c", str(configuration)]

    @classmethod
    def missing(cls) -> str | None:
        return None if "BROKERS_AMQTT" in os.environ else "amqtt (PyPI)"


ALL: tuple[type[Broker], ...] = (MosquittoBroker, Ejabberd, RabbitMq, Nats, Aedes, Amqtt)
