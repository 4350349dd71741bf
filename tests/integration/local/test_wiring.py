"""What each process of the local stack is told, and what it is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from deploy.local import services
from deploy.local.errors import StackError
from deploy.local.home import Home
from deploy.local.options import parse_options
from deploy.local.ports import Ports
from deploy.local.schemas import services_to_migrate
from deploy.local.secrets import Secrets
from deploy.local.services import Wiring, migration_programs, service_programs
from tests.support import backends

_GIVEN = {
    "HEADRACE_LOG_LEVEL": "debug",
    "HEADRACE_EGRESS_ALLOW": "10.0.0.7:80",
    "HEADRACE_LLM_MODELS": "[]",
    # A careless user's: still not for those who do not need them.
    "HEADRACE_POSTGRES_URL": "postgresql://root@database/postgres",
    "HEADRACE_INTERNAL_KEY": "given-internal-key",
    "HEADRACE_AUTH_PEPPER": "given-pepper",
}


@pytest.fixture
def wiring(home: Home, tmp_path: Path) -> Iterator[Wiring]:
    ports = Ports(tmp_path / "ports.json")
    yield Wiring(
        home=home,
        secrets=Secrets(tmp_path / "secrets.json", has_data=False),
        ports=ports,
        replicas={"executor": 2},
        gateway_port=18080,
        postgres_url="postgresql://postgres:pw@/postgres?host=/sockets",
        nats_urls={"executor": "nats://executor@nats", "worker": "nats://worker@nats"},
        environ=_GIVEN,
    )
    ports.close()


def environments(wiring: Wiring) -> dict[str, Mapping[str, str]]:
    return {program.name: program.env for program in service_programs(wiring, services.SERVICES)}


def test_a_worker_gets_no_secret_but_its_own_way_into_nats(wiring: Wiring, tmp_path: Path) -> None:
    env = environments(wiring)["worker-0"]
    secrets = Secrets(tmp_path / "secrets.json", has_data=True)

    assert env["HEADRACE_NATS_URL"] == "nats://worker@nats"
    assert not [name for name in env if name.endswith(("_POSTGRES_URL", "_KEY", "_PEPPER"))]
    assert not [value for value in env.values() if secrets["internal_key"] in value]


def test_each_service_gets_its_own_database_role_and_no_other(wiring: Wiring) -> None:
    urls = {
        name: [value for key, value in env.items() if key.endswith("_POSTGRES_URL")]
        for name, env in environments(wiring).items()
    }

    assert [len(urls[name]) for name in ("llm-0", "gateway-0", "worker-0")] == [0, 0, 0]
    for service in ("auth", "workflows", "executor", "vector"):
        (url,) = urls[f"{service}-0"]
        assert url.startswith(f"postgresql://headrace_{service}:")
        assert url.endswith("@/headrace?host=/sockets")


def test_only_auth_holds_the_keys_of_accounts(wiring: Wiring) -> None:
    holders = {name for name, env in environments(wiring).items() if "HEADRACE_AUTH_SIGNING_KEY" in env}

    assert holders == {"auth-0"}
    assert environments(wiring)["gateway-0"].get("HEADRACE_AUTH_PEPPER") is None


def test_callers_know_every_replica(wiring: Wiring) -> None:
    envs = environments(wiring)
    listens = [envs[f"executor-{replica}"]["HEADRACE_EXECUTOR_LISTEN"] for replica in (0, 1)]

    assert len(set(listens)) == 2
    assert envs["gateway-0"]["HEADRACE_EXECUTOR_TARGET"] == f"ipv4:{','.join(listens)}"


def test_what_the_user_sets_reaches_the_services(wiring: Wiring) -> None:
    envs = environments(wiring)

    assert {env["HEADRACE_LOG_LEVEL"] for env in envs.values()} == {"debug"}
    assert envs["worker-0"]["HEADRACE_EGRESS_ALLOW"] == f"10.0.0.7:80,127.0.0.1:{wiring.receiver_port}"
    assert envs["llm-0"]["HEADRACE_LLM_MODELS"] == "[]"
    assert "HEADRACE_LLM_DEFAULT_GGUF" not in envs["llm-0"]
    assert envs["gateway-0"]["HEADRACE_GATEWAY_LISTEN"] == "127.0.0.1:18080"


def test_default_models_are_files_that_exist(wiring: Wiring) -> None:
    unset = {name: value for name, value in _GIVEN.items() if name != "HEADRACE_LLM_MODELS"}
    env = environments(Wiring(**{**vars(wiring), "environ": unset}))["llm-0"]

    assert Path(env["HEADRACE_LLM_DEFAULT_GGUF"]).suffix == ".gguf"
    assert (Path(env["HEADRACE_LLM_DEFAULT_EMBEDDING_DIR"]) / "model.safetensors").exists()


def test_a_migration_runs_the_services_own_command_with_its_own_role(wiring: Wiring) -> None:
    (program,) = migration_programs(wiring, ["vector"])

    assert program.argv[-2:] == ("services.vector.main", "migrate")
    assert program.env["HEADRACE_VECTOR_POSTGRES_URL"].startswith("postgresql://headrace_vector:")


async def test_a_schema_is_migrated_when_it_is_behind_and_left_alone_when_not(
    database: Callable[[str], Awaitable[str]],
) -> None:
    empty = await backends.empty_database()

    assert await services_to_migrate({"auth": empty}) == ["auth"]
    assert await services_to_migrate({"auth": await database("auth")}) == []
    await backends.drop_database(empty)


def test_replicas_and_home_are_chosen_on_the_command_line() -> None:
    options = parse_options(["--replicas", "executor=2,worker=3", "--home", "here"], {"HEADRACE_HOME": "there"})

    assert options.settings.replicas == {"executor": 2, "worker": 3}
    assert options.home == Path("here")


@pytest.mark.parametrize("replicas", ["postgres=2", "worker=0", "worker", "worker=two"])
def test_replicas_that_make_no_sense_are_refused_with_what_would(replicas: str) -> None:
    with pytest.raises(StackError, match=r"SERVICE=N .* auth, workflows, executor"):
        parse_options(["--replicas", replicas], {})


def test_a_gateway_port_that_is_none_is_refused() -> None:
    with pytest.raises(StackError, match="port from 1 to 65535"):
        parse_options([], {"HEADRACE_GATEWAY_PORT": "80800"})
