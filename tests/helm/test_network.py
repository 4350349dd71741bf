"""Who may connect to whom, by evaluating the network policies as Kubernetes does."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import product
from typing import Any

import pytest

from services.executor.egress.addresses import is_public
from tests.helm.rendering import COMPONENT, NAMESPACE, SERVICES, SIZES, Release, changed, release
from tools.configuration import SECTIONS

GRPC, HTTP, METRICS = 50051, 8080, 9090
PostgreSQL, NATS = ("10.20.0.5", 5432), ("10.20.0.6", 4222)
Peer = dict[str, Any]


def _callers() -> set[tuple[str, str]]:
    """Who calls whom by gRPC, by the settings: each service that asks for another's target."""
    found = set()
    for service, classes in SECTIONS:
        for kind in classes:
            prefix = str(kind.model_config.get("env_prefix", ""))
            for name, field in kind.model_fields.items():
                alias = field.validation_alias
                variable = (alias if isinstance(alias, str) else f"{prefix}{name}").upper()
                if variable.endswith("_TARGET"):
                    found.add((service, variable.removeprefix("HEADRACE_").removesuffix("_TARGET").lower()))
    return found


class Network:
    """The policies of one installation, for pods of its own namespace, of others, and for addresses outside."""

    def __init__(self, rendered: Release) -> None:
        self._policies = [each["spec"] for each in rendered.of("NetworkPolicy")]
        self._labels = {
            template["metadata"]["labels"][COMPONENT]: template["metadata"]["labels"] for _, template in rendered.pods()
        }

    @property
    def components(self) -> list[str]:
        return list(self._labels)

    def connects(self, source: str, target: str, port: int) -> bool:
        """Whether one component's pods may connect to another's."""
        return self.may_send(source, self._pod(target), port) and self.may_receive(target, self._pod(source), port)

    def may_send(self, source: str, target: Peer | str, port: int) -> bool:
        """Whether policies let a component's pods out to a pod or to an address."""
        return self._allowed("egress", "to", source, target, port)

    def may_receive(self, target: str, source: Peer | str, port: int) -> bool:
        """Whether policies let a pod or an address in to a component's pods."""
        return self._allowed("ingress", "from", target, source, port)

    def policies_of(self, component: str, kind: str) -> list[dict[str, Any]]:
        """The policies of a kind that select a component."""
        labels = self._labels[component]
        return [
            policy
            for policy in self._policies
            if policy["podSelector"]["matchLabels"].items() <= labels.items() and kind in policy["policyTypes"]
        ]

    def _pod(self, component: str) -> Peer:
        return {"namespace": NAMESPACE, "labels": self._labels[component]}

    def _allowed(self, kind: str, side: str, component: str, other: Peer | str, port: int) -> bool:
        policies = self.policies_of(component, kind.capitalize())
        assert policies, f"nothing restricts {kind} of {component}"
        rules = [rule for policy in policies for rule in policy.get(kind, [])]
        return any(
            ("ports" not in rule or port in [each["port"] for each in rule["ports"]])
            and (side not in rule or any(_is(other, peer) for peer in rule[side]))
            for rule in rules
        )


def _is(other: Peer | str, peer: Peer) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        if not isinstance(other, str) or ip_address(other) not in ip_network(block["cidr"]):
            return False
        return not any(ip_address(other) in ip_network(each) for each in block.get("except", ()))
    if isinstance(other, str):
        return False
    namespaces = peer.get("namespaceSelector", {}).get("matchLabels", {"kubernetes.io/metadata.name": NAMESPACE})
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    return (
        namespaces == {"kubernetes.io/metadata.name": other["namespace"]} and labels.items() <= other["labels"].items()
    )


def _in(namespace: str, **labels: str) -> Peer:
    return {"namespace": namespace, "labels": labels}


@pytest.mark.parametrize("size", SIZES)
def test_every_pod_is_denied_all_that_no_policy_allows(size):
    network = Network(release(size))
    deny = release(size).one("NetworkPolicy", "deny")["spec"]
    assert deny.keys() == {"podSelector", "policyTypes"}
    for component in network.components:
        for kind in ("Ingress", "Egress"):
            assert deny in network.policies_of(component, kind)
            assert len(network.policies_of(component, kind)) == 2, f"{component} has no policy of its own"


@pytest.mark.parametrize("size", SIZES)
def test_services_reach_those_whose_targets_they_have_and_no_others(size):
    network, callers = Network(release(size)), _callers()
    assert ("worker", "vector") in callers
    for source, target in product(network.components, SERVICES):
        is_called = (source, target) in callers
        assert network.connects(source, target, GRPC) is is_called, f"{source} -> {target}"
        assert not network.connects(source, target, METRICS) or source == target


def test_a_policys_targets_are_those_in_the_environment():
    for service in SERVICES:
        names = {each["name"] for each in release("dev").container(service)["env"] if each["name"].endswith("_TARGET")}
        assert names == {f"HEADRACE_{target.upper()}_TARGET" for source, target in _callers() if source == service}


def test_postgresql_is_reached_by_services_with_a_schema_and_by_migrations_alone():
    network = Network(release("small"))
    reached = {component for component in network.components if network.may_send(component, *PostgreSQL)}
    assert reached == {"auth", "workflows", "executor", "vector", "migrate"}


def test_nats_is_reached_by_executors_and_workers_alone():
    network = Network(release("small"))
    assert {each for each in network.components if network.may_send(each, *NATS)} == {"executor", "worker"}


def test_everybody_may_ask_for_names():
    network = Network(release("ha"))
    server = {"namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
    assert all(network.may_send(component, server, 53) for component in network.components)


def test_the_collector_is_reached_by_all_services_when_there_is_one():
    network, collector = Network(release("ha")), _in("observability")
    assert all(network.may_send(service, collector, 4317) for service in SERVICES)
    assert not Network(release("dev")).may_send("auth", collector, 4317)


def test_the_api_is_open_to_the_proxy_alone_where_one_is_named_and_else_to_all():
    network = Network(release("small"))
    assert network.may_receive("gateway", _in("ingress"), HTTP)
    assert not network.may_receive("gateway", _in("elsewhere"), HTTP)
    assert Network(release("dev")).may_receive("gateway", "203.0.113.9", HTTP)


def test_metrics_are_scraped_by_those_who_are_named_and_by_nobody_else():
    network = Network(release("ha"))
    for component in network.components:
        port = 8000 if component.startswith("vllm-") else METRICS
        assert network.may_receive(component, _in("monitoring"), port) is (component != "migrate")
        assert not network.may_receive(component, _in("elsewhere"), port)
    assert not Network(release("dev")).may_receive("gateway", _in("monitoring"), METRICS)


def test_nodes_that_are_named_may_probe():
    network = Network(changed({"networkPolicy.nodes.from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}))
    for service in SERVICES:
        assert network.may_receive(service, "10.1.2.3", HTTP if service == "gateway" else GRPC)


def test_vllm_servers_are_called_by_the_llm_service_alone():
    network = Network(release("ha"))
    callers = {component for component in network.components if network.connects(component, "vllm-qwen3-4b", 8000)}
    assert callers == {"llm"}


def test_only_workers_reach_the_public_internet_unless_models_are_there():
    network = Network(release("small"))
    assert {each for each in network.components if network.may_send(each, "93.184.216.34", 443)} == {"worker"}
    network = Network(
        changed({"networkPolicy.publicInternet.llm": True, "networkPolicy.publicInternet.worker": False}, "ha")
    )
    assert {each for each in network.components if network.may_send(each, "93.184.216.34", 443)} == {
        "llm",
        "vllm-qwen3-4b",
    }


def test_the_public_internet_is_what_the_egress_rules_of_workers_say_it_is():
    policy = release("dev").one("NetworkPolicy", "worker")["spec"]
    (public,) = (rule["to"] for rule in policy["egress"] if "ports" not in rule)
    for address in _edges(public):
        if not getattr(address, "scope_id", None):
            assert any(_is(str(address), peer) for peer in public) is is_public(address), str(address)


def _edges(peers: list[Peer]) -> Iterator[IPv4Address | IPv6Address]:
    """The first and last address of each network that is left out, and their neighbours outside."""
    for peer in peers:
        for network in map(ip_network, (peer["ipBlock"]["cidr"], *peer["ipBlock"]["except"])):
            first, last = network[0], network[-1]
            yield from (first, last)
            yield from (first - 1,) if int(first) else ()
            yield from (last + 1,) if int(last) < 2**network.max_prefixlen - 1 else ()


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "172.20.1.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "127.0.0.1"]
)
def test_workers_reach_no_address_inside(address):
    network = Network(release("ha"))
    assert not any(network.may_send("worker", address, port) for port in (80, 443, 5432, 6443, 10250))


def test_public_networks_of_the_cluster_and_ports_that_are_not_wanted_are_left_out():
    network = Network(
        changed(
            {
                "networkPolicy.publicInternet.ports": [443],
                "networkPolicy.publicInternet.exceptCluster": ["34.118.224.0/20", "2600:1900::/28"],
            }
        )
    )
    assert network.may_send("worker", "34.118.223.1", 443)
    assert not network.may_send("worker", "34.118.224.1", 443)
    assert network.may_send("worker", "2a00:1450::1", 443)
    assert not network.may_send("worker", "2600:1900::1", 443)
    assert not network.may_send("worker", "34.118.223.1", 80)


def test_a_service_gets_further_rules():
    rule = {"to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}], "ports": [{"port": 443}]}
    network = Network(
        changed(
            {
                "services.worker.extraEgress": [rule],
                "services.gateway.extraIngress": [
                    {"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tools"}}}]}
                ],
            },
            "small",
        )
    )
    assert network.may_send("worker", "10.9.1.1", 443)
    assert not network.may_send("llm", "10.9.1.1", 443)
    assert network.may_receive("gateway", _in("tools"), HTTP)


def test_without_network_policies_there_are_none():
    assert changed({"networkPolicy.enabled": False, "networkPolicy.nats.to": []}).of("NetworkPolicy") == []
