"""The chart, rendered by helm and held against Kubernetes and against the service."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from tests.contract.deploying import (
    BUILD_SECONDS_MAX,
    CHART,
    ENDING_SECONDS_MAX,
    KUBERNETES,
    ROOT,
    SECONDS_MAX,
    accepted,
    helm,
    port,
    user_of_the_image,
)
from trunkline import config, otel

HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
SECRETS = {config.variable(f.name) for f in config.names() if f.metadata["secret"]} | {HEADERS}
URL = "postgresql://trunkline@db/trunkline"
SERVER = {"app.kubernetes.io/component": "server"}
PLAINTEXT: dict[str, Any] = {"allowPlaintext": True}
TLS: dict[str, Any] = {"tls": {"secretName": "a-certificate"}}
TRACED = TLS | {"tracing": {"endpoint": "https://collector.example:4318"}}
LEAST: dict[str, Any] = PLAINTEXT | {
    "http": {"enabled": False},
    "metrics": {"enabled": False},
    "migrations": {"job": False},
    "podDisruptionBudget": {"enabled": False},
    "serviceAccount": {"create": False},
}
EVERYTHING: dict[str, Any] = {
    "image": {"digest": "sha256:" + "0" * 64, "pullSecrets": ["a-registry"]},
    "bootstrapToken": {"secretName": "a-token"},
    "tls": {"secretName": "a-certificate", "clientCa": {"secretName": "a-ca"}},
    "listen": "[::]",
    "http": {"corsOrigins": "https://a.example,https://b.example"},
    "metrics": {
        "annotations": True,
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "tracing": {
        "endpoint": "http://collector.voice:4317",
        "protocol": "grpc",
        "sampler": "traceidratio",
        "samplerArgument": 0,
        "headersSecret": {"name": "a-collector", "key": "all"},
    },
    "drain": {"delaySeconds": 60, "seconds": 600},
    "settings": {"HISTORY_DAYS": "30", "REFLECTION": "0"},
    "service": {"type": "LoadBalancer", "annotations": {"a.example/b": "c"}},
    "networkPolicy": {
        "enabled": True,
        "clients": [{"namespaceSelector": {}}],
        "scrapers": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        "database": {"peers": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]},
        "collector": {"peers": [{"podSelector": {}}], "port": 14317},
    },
    "podAnnotations": {"a.example/b": "c"},
    "podLabels": {"a.example/b": "c"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "a", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
}
CASES = {"plaintext": PLAINTEXT, "tls": TRACED, "least": LEAST, "everything": EVERYTHING}
PROBES = {"plaintext": "grpc", "tls": "httpGet", "least": "grpc", "everything": "exec"}
TRACING: dict[str, dict[str, str]] = {
    "tls": {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    },
    "everything": {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.voice:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        HEADERS: "authorization=Bearer x",
    },
}
KINDS = {
    "plaintext": {"ServiceAccount", "PodDisruptionBudget", "Service", "Deployment", "Job"},
    "least": {"Service", "Deployment"},
}
KINDS["tls"] = KINDS["plaintext"]
KINDS["everything"] = KINDS["plaintext"] | {"NetworkPolicy", "ServiceMonitor"}
pytestmark = pytest.mark.timeout(BUILD_SECONDS_MAX + SECONDS_MAX)


def rendered(values: dict[str, Any], tmp_path: Path) -> tuple[int, str]:
    """What `helm template` makes of values."""
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    options: list[str | Path] = [
        "--kube-version",
        KUBERNETES[0],
        "--namespace",
        "voice",
        "--values",
        file,
    ]
    return helm("template", "a", CHART, *options)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def objects(case: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the chart makes of a case's values."""
    code, out = rendered(CASES[case], tmp_path_factory.mktemp("chart"))
    assert code == 0, out
    return [one for one in yaml.safe_load_all(out) if one]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == kind]


def server(objects: list[dict[str, Any]]) -> Any:
    """The pod of the Deployment."""
    (deployment,) = of_kind(objects, "Deployment")
    return deployment["spec"]["template"]


def pods(objects: list[dict[str, Any]]) -> list[Any]:
    """The servers' pod, and the migration's where there is one."""
    return [
        one["spec"]["template"] for kind in ("Deployment", "Job") for one in of_kind(objects, kind)
    ]


def container(pod: Any) -> Any:
    (one,) = pod["spec"]["containers"]
    return one


def environment(pod: Any) -> dict[str, str]:
    """The variables of a container; those from Secrets have values that could be there."""
    given = {"TRUNKLINE_DATABASE_URL": URL, "TRUNKLINE_BOOTSTRAP_TOKEN": "t" * 32}
    given |= {HEADERS: "authorization=Bearer x"}
    return {
        one["name"]: one["value"] if "value" in one else given[one["name"]]
        for one in container(pod)["env"]
    }


def test_chart_has_nothing_that_lint_complains_of(case: str, tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps(CASES[case]))
    options: list[str | Path] = ["--strict", "--kube-version", KUBERNETES[0], "--values", file]
    code, out = helm("lint", CHART, *options)
    assert (code, re.findall(r"\[(?:WARNING|ERROR)\].*", out)) == (0, [])


def test_chart_has_the_objects_that_the_values_ask_for(objects: list[Any], case: str) -> None:
    assert {one["kind"] for one in objects} == KINDS[case]
    services = len(of_kind(objects, "Service"))
    assert services == (2 if case == "least" else 4)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field_of_every_object(objects: list[Any], version: str) -> None:
    for one in objects:
        if one["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(one, version.rpartition(".")[0], strict=True)


def test_containers_get_settings_that_the_service_takes(objects: list[Any]) -> None:
    for pod in pods(objects):
        accepted(environment(pod))


def test_ports_are_those_that_the_server_listens_on(objects: list[Any]) -> None:
    settings = accepted(environment(server(objects)))
    listening = {
        name: port(address)
        for name in ("grpc", "http", "metrics")
        if (address := getattr(settings, f"{name}_address"))
    }
    declared = {p["name"]: p["containerPort"] for p in container(server(objects))["ports"]}
    assert declared == listening
    for service in of_kind(objects, "Service"):
        for one in service["spec"]["ports"]:
            assert one["port"] == listening[one["targetPort"]]
    for policy in of_kind(objects, "NetworkPolicy"):
        let_in = [one["port"] for rule in policy["spec"]["ingress"] for one in rule["ports"]]
        assert sorted(let_in) == sorted(listening)


def test_pods_run_with_the_least_rights(objects: list[Any]) -> None:
    for pod in pods(objects):
        spec, rights = pod["spec"], container(pod)["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == user_of_the_image()
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert container(pod)["resources"]["limits"]["memory"]


def test_kubelet_asks_in_a_way_that_works_with_the_ports(objects: list[Any], case: str) -> None:
    one = container(server(objects))
    settings = accepted(environment(server(objects)))
    kind = PROBES[case]
    for name, service, path in (
        ("startupProbe", "liveness", "/healthz"),
        ("livenessProbe", "liveness", "/healthz"),
        ("readinessProbe", "", "/readyz"),
    ):
        asks = {
            "grpc": {"port": port(settings.grpc_address), "service": service},
            "httpGet": {"port": "http", "path": path, "scheme": "HTTPS"},
            "exec": {
                "command": ["trunkline", "probe", *(["--service", service] if service else [])]
            },
        }
        assert one[name][kind] == asks[kind]
        assert one[name].keys() & asks.keys() == {kind}
    # The kubelet's gRPC has no TLS, its HTTPS no certificate of its own, and a command is slow.
    assert (kind == "grpc") == (not settings.tls_cert)
    assert (kind == "exec") == bool(settings.tls_client_ca) == bool(settings.grpc_socket)


def test_pod_has_time_to_drain(objects: list[Any]) -> None:
    settings = accepted(environment(server(objects)))
    drained = settings.drain_delay_seconds + settings.drain_seconds
    assert server(objects)["spec"]["terminationGracePeriodSeconds"] > (drained + ENDING_SECONDS_MAX)
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_no_object_has_a_secret_in_it(objects: list[Any]) -> None:
    assert of_kind(objects, "Secret") == []
    for pod in pods(objects):
        for one in container(pod)["env"]:
            assert ("valueFrom" in one) == (one["name"] in SECRETS)


def test_servers_alone_send_traces_where_there_is_an_endpoint(
    objects: list[Any], case: str
) -> None:
    for pod in pods(objects):
        found = {n: value for n, value in environment(pod).items() if n.startswith("OTEL_")}
        wanted = TRACING.get(case, {}) if pod is server(objects) else {}
        assert found == wanted
        assert otel.wanted(found) == bool(wanted)
    reads = [one for one in container(server(objects))["env"] if one["name"] == HEADERS]
    secrets = [one["valueFrom"]["secretKeyRef"] for one in reads]
    assert secrets == ([{"name": "a-collector", "key": "all"}] if case == "everything" else [])


@pytest.mark.parametrize("tracing", [EVERYTHING["tracing"], {}])
def test_policy_lets_servers_reach_a_collector_only_where_there_are_traces(
    tracing: dict[str, Any], tmp_path: Path
) -> None:
    code, out = rendered(EVERYTHING | {"tracing": tracing}, tmp_path)
    assert code == 0, out
    (policy,) = of_kind([one for one in yaml.safe_load_all(out) if one], "NetworkPolicy")
    rule = {"ports": [{"port": 14317, "protocol": "TCP"}], "to": [{"podSelector": {}}]}
    _, database, *more = policy["spec"]["egress"]
    assert database["ports"] == [{"port": 5432, "protocol": "TCP"}]
    assert more == ([rule] if tracing else [])


def test_selectors_select_the_servers_and_not_the_migration(objects: list[Any]) -> None:
    labels = server(objects)["metadata"]["labels"]
    (deployment,) = of_kind(objects, "Deployment")
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in spread(objects)),
        *(one["spec"]["selector"] for one in of_kind(objects, "Service")),
        *(
            one["spec"]["selector"]["matchLabels"]
            for one in of_kind(objects, "PodDisruptionBudget")
        ),
    ]
    for selector in selectors:
        assert SERVER.items() <= selector.items() <= labels.items()
    for policy in of_kind(objects, "NetworkPolicy"):
        for pod in pods(objects):
            chosen = policy["spec"]["podSelector"]["matchLabels"]
            assert chosen.items() <= pod["metadata"]["labels"].items()
    for job in of_kind(objects, "Job"):
        assert not SERVER.items() <= job["spec"]["template"]["metadata"]["labels"].items()
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        services = of_kind(objects, "Service")
        (found,) = [one for one in services if wanted <= one["metadata"]["labels"].items()]
        ports = [one["name"] for one in found["spec"]["ports"]]
        assert [one["port"] for one in monitor["spec"]["endpoints"]] == ports


def spread(objects: list[Any]) -> Iterator[Any]:
    yield from server(objects)["spec"]["topologySpreadConstraints"]


def test_files_that_settings_name_are_in_directories_mounted_whole(objects: list[Any]) -> None:
    settings = accepted(environment(server(objects)))
    mounts = container(server(objects))["volumeMounts"]
    volumes = {one["name"]: one for one in server(objects)["spec"]["volumes"]}
    assert {one["name"] for one in mounts} == volumes.keys()
    assert not any("subPath" in one for one in mounts)
    for name in ("secret_keys_file", "tls_cert", "tls_key", "tls_client_ca", "grpc_socket"):
        path = getattr(settings, name)
        if path:
            (mount,) = [one for one in mounts if Path(path).parent == Path(one["mountPath"])]
            is_secret = "secret" in volumes[mount["name"]]
            assert is_secret == mount.get("readOnly", False) == (name != "grpc_socket")


def test_either_the_job_migrates_or_the_servers_do(objects: list[Any]) -> None:
    jobs = of_kind(objects, "Job")
    assert accepted(environment(server(objects))).migrate == ("off" if jobs else "auto")
    made = [one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")]
    for job in jobs:
        assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert container(job["spec"]["template"])["args"] == ["migrate"]
        assert job["spec"]["template"]["spec"].get("serviceAccountName") not in made


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "set tls.secretName, or allowPlaintext=true"),
        (PLAINTEXT | {"tls": {"clientCa": {"secretName": "a"}}}, "needs tls.secretName"),
        (PLAINTEXT | {"replcas": 3}, "'replcas' not allowed"),
        (PLAINTEXT | {"database": {"secretName": ""}}, "/database/secretName"),
        (PLAINTEXT | {"settings": {"SECRET_KEYS": "k1:x"}}, "SECRET_KEYS"),
        (PLAINTEXT | {"settings": {"MIGRATE": "auto"}}, "settings.MIGRATE: this chart sets"),
        (PLAINTEXT | {"settings": {"CALLS_MAX": 1000000}}, "want string"),
        (PLAINTEXT | {"tracing": {"endpoint": "http://me:secret@a:4318"}}, "/tracing/endpoint"),
        (PLAINTEXT | {"tracing": {"endpoint": "collector:4318"}}, "/tracing/endpoint"),
        (PLAINTEXT | {"tracing": {"sampler": "sometimes"}}, "/tracing/sampler"),
        (PLAINTEXT | {"tracing": {"headers": "a=b"}}, "'headers' not allowed"),
        (TRACED | {"tracing": TRACED["tracing"] | {"samplerArgument": "0.1"}}, "takes a ratio"),
        (TRACED | {"tracing": TRACED["tracing"] | {"samplerArgument": 2}}, "samplerArgument"),
    ],
)
def test_values_that_can_not_be_meant_are_refused(
    values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    code, out = rendered(values, tmp_path)
    assert code != 0
    assert says in out


def test_chart_is_of_the_release_that_it_installs() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    found = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    assert chart["appVersion"] == found[1]
