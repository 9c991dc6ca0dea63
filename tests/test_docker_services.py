"""Compose, Kubernetes and KServe: no rights, the ports and times of the server, secrets."""

from __future__ import annotations

import pytest
import typer
import yaml
from container_files import GRPC, HTTP, USER, read

from eomt_deploy.cli.app import app


def documents(name):
    return list(yaml.safe_load_all(read(name)))


def kubernetes(kind):
    (found,) = (document for document in documents("kubernetes.yaml") if document["kind"] == kind)
    return found


def pod_of_kubernetes():
    return kubernetes("Deployment")["spec"]["template"]["spec"]


def pod_of_kserve():
    return documents("kserve.yaml")[0]["spec"]["predictor"]


PODS = pytest.mark.parametrize("pod", [pod_of_kubernetes(), pod_of_kserve()], ids=["k8s", "kserve"])


def test_compose():
    (file,) = documents("compose.yaml")
    server, prometheus = (file["services"][name] for name in ("eomt-deploy", "prometheus"))
    assert server["build"] == {"context": "..", "dockerfile": "docker/cpu.Dockerfile"}
    assert server["ports"] == [f"127.0.0.1:{port}:{port}" for port in (HTTP, GRPC)]
    mounts = {v["target"] if isinstance(v, dict) else v.split(":")[1] for v in server["volumes"]}
    assert mounts == {"/models", "/cache"}
    (secret,) = server["secrets"]
    assert server["environment"]["EOMT_DEPLOY_TOKEN_FILE"] == f"/run/secrets/{secret}"
    assert file["secrets"][secret] == {"file": "./token"}
    for service in (server, prometheus):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(server["stop_grace_period"].removesuffix("s")) > drain_seconds()
    (job,) = documents("prometheus.yml")[0]["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"eomt-deploy:{HTTP}"]}]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
    assert secret in prometheus["secrets"]


def drain_seconds():
    """The time that the server takes at most for its queue."""
    serve = typer.main.get_command(app).commands["serve"]
    options = {parameter.name: parameter for parameter in serve.params}
    return options["drain_seconds"].default


@PODS
def test_the_pod_has_no_rights(pod):
    (container,) = pod["containers"]
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert {str(context[key]) for key in ("runAsUser", "runAsGroup", "fsGroup")} == {USER}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@PODS
def test_the_pod_asks_for_a_gpu_and_writable_folders(pod):
    (container,) = pod["containers"]
    for part in ("requests", "limits"):
        assert container["resources"][part]["nvidia.com/gpu"] == "1"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for path in ("/cache", "/tmp"):
        assert "emptyDir" in volumes[mounts[path]["name"]]
    assert set(volumes) == {mount["name"] for mount in mounts.values()}


@PODS
def test_the_pod_is_probed_and_stops_in_time(pod):
    (container,) = pod["containers"]
    ports = {port["containerPort"]: port["name"] for port in container["ports"]}
    assert set(ports) == {HTTP, GRPC}
    paths = {"startupProbe": "ready", "readinessProbe": "ready", "livenessProbe": "live"}
    for probe, path in paths.items():
        get = container[probe]["httpGet"]
        assert get["path"] == f"/v2/health/{path}"
        assert get["port"] in (HTTP, ports[HTTP])
    wait = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [0])
    assert pod["terminationGracePeriodSeconds"] > drain_seconds() + float(wait[-1])


@PODS
def test_the_token_is_a_secret(pod):
    (container,) = pod["containers"]
    variables = {variable["name"]: variable for variable in container["env"]}
    source = variables["EOMT_DEPLOY_TOKEN"]["valueFrom"]
    assert source == {"secretKeyRef": {"name": "eomt-deploy", "key": "token"}}
    assert container["image"] == "eomt-deploy:cuda"
    assert "command" not in container  # the entry point of the image
    assert "args" not in container


def test_the_service_reaches_the_pod():
    labels = kubernetes("Deployment")["spec"]["template"]["metadata"]["labels"]
    service = kubernetes("Service")["spec"]
    assert service["selector"] == labels
    assert kubernetes("Deployment")["spec"]["selector"]["matchLabels"] == labels
    (container,) = pod_of_kubernetes()["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["port"]: ports[port["targetPort"]] for port in service["ports"]} == {
        HTTP: HTTP, GRPC: GRPC,
    }  # fmt: skip
    claim = kubernetes("PersistentVolumeClaim")["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod_of_kubernetes()["volumes"]}
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim
    (kserve,) = pod_of_kserve()["containers"]
    variables = {variable["name"]: variable.get("value") for variable in kserve["env"]}
    assert variables["STORAGE_URI"] == f"pvc://{claim}/"
    assert (variables["EOMT_DEPLOY_MODELS"], variables["PROTOCOL"]) == ("/mnt/models", "v2")
