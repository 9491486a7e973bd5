"""``deployments/kuberay`` without a Kubernetes: schemas where there are any, and what its files must say to each other.

Kubernetes' own objects, and every pod template as the pod that it will be, are checked against Kubernetes' JSON schemas.
The RayService is KubeRay's; its fields are compared with those of KubeRay's API reference, and Ray's autoscaler reads it as
it would in the cluster.
"""

from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.scripts.scripts import start
from ray.serve.schema import ServeDeploySchema

from cascade.serving.app import AppArgs
from cascade.serving.environment import FAST_PATH, GRPC
from tests.test_cluster_file import LADDER, NODE_TYPES, ROOT, SERVE

FOLDER = ROOT / "deployments" / "kuberay"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


(RAY_SERVICE,) = documents("rayservice.yaml")
SERVICE, *POLICIES = documents("network.yaml")
BUDGETS = documents("disruption.yaml")
SPEC = RAY_SERVICE["spec"]
CLUSTER = SPEC["rayClusterConfig"]
HEAD = CLUSTER["headGroupSpec"]
WORKERS = {group["groupName"]: group for group in CLUSTER["workerGroupSpecs"]}
GROUPS = {"head": HEAD, **WORKERS}
CONTAINERS = {name: group["template"]["spec"]["containers"][0] for name, group in GROUPS.items()}
ARGS = AppArgs.model_validate(SERVE["applications"][0]["args"])
HTTP, GRPC_PORT = (int(str(address).rpartition(":")[2]) for address in (ARGS.listen, ARGS.listen_grpc))

# https://ray-project.github.io/kuberay/reference/api: fields of KubeRay's v1 API, those that are deprecated left out.
FIELDS = {
    "RayServiceSpec": """rayClusterDeletionDelaySeconds serveService upgradeStrategy managedBy serveConfigV2 rayClusterConfig
        excludeHeadPodFromServeSvc suspend""",
    "RayClusterSpec": """upgradeStrategy authOptions suspend managedBy autoscalerOptions headServiceAnnotations
        enableInTreeAutoscaling gcsFaultToleranceOptions networkPolicy tlsOptions headGroupSpec rayVersion
        workerGroupSpecs""",
    "AutoscalerOptions": """resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env
        envFrom volumeMounts""",
    "HeadGroupSpec": "template headService enableIngress rayStartParams serviceType resources labels",
    "WorkerGroupSpec": """suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds rayStartParams template
        scaleStrategy numOfHosts resources labels""",
}


def unknown(kind: str, given: dict[str, Any]) -> set[str]:
    """Fields that KubeRay's API does not have."""
    return set(given) - set(FIELDS[kind].split())


def matches(selector: dict[str, Any]) -> set[str]:
    """Groups whose pods a selector of labels selects."""
    wanted = selector.get("matchLabels", selector).items()
    return {name for name, group in GROUPS.items() if wanted <= group["template"]["metadata"]["labels"].items()}


def check_against_kubernetes(document: dict[str, Any]) -> None:
    # Part of the development extra; 22 MB of schemas that nothing else needs.
    schemas = pytest.importorskip("kubernetes_validate")
    schemas.validate(document, schemas.latest_version(), strict=True)


@pytest.mark.parametrize("document", [SERVICE, *POLICIES, *BUDGETS], ids=lambda document: document["metadata"]["name"])
def test_kubernetes_knows_every_field(document):
    check_against_kubernetes(document)


@pytest.mark.parametrize("name", GROUPS)
def test_kubernetes_knows_every_field_of_a_pod(name):
    template = GROUPS[name]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}, "spec": template["spec"]}
    check_against_kubernetes(pod)


def test_a_misspelt_field_would_be_noticed():
    schemas = pytest.importorskip("kubernetes_validate")
    with pytest.raises(schemas.ValidationError, match="minimumAvailable"):
        check_against_kubernetes({**BUDGETS[0], "spec": {"minimumAvailable": 1}})


def test_kuberay_knows_every_field():
    assert (RAY_SERVICE["apiVersion"], RAY_SERVICE["kind"]) == ("ray.io/v1", "RayService")
    assert unknown("RayServiceSpec", SPEC) == set()
    assert unknown("RayClusterSpec", CLUSTER) == set()
    assert unknown("AutoscalerOptions", CLUSTER["autoscalerOptions"]) == set()
    assert unknown("HeadGroupSpec", HEAD) == set()
    for group in WORKERS.values():
        assert unknown("WorkerGroupSpec", group) == set()
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_deployment_is_that_of_the_ladder_and_serve_reads_it():
    document = yaml.safe_load(SPEC["serveConfigV2"])
    assert document == SERVE
    assert ServeDeploySchema.model_validate(document).applications[0].name == "cascade"


def test_the_version_of_ray_is_the_pinned_one():
    assert f"ray=={CLUSTER['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_ray_reads_from_the_groups_what_cluster_yaml_gives_to_its_node_types():
    found = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "y"}, "spec": CLUSTER})
    types = found["available_node_types"]
    assert types.pop("headgroup")["resources"]["CPU"] == 0
    assert list(types) == list(NODE_TYPES)
    for name, wanted in NODE_TYPES.items():
        had = types[name]
        assert (had["min_workers"], had["max_workers"]) == (wanted["min_workers"], wanted["max_workers"])
        assert had["resources"].items() >= wanted["resources"].items()
        assert had["resources"].get("GPU", 0) == (0 if name == "routers" else 1)
        node_selector = WORKERS[name]["template"]["spec"]["nodeSelector"]
        assert node_selector == {"node.kubernetes.io/instance-type": wanted["node_config"]["InstanceType"]}


def test_a_pod_has_the_cpus_of_the_replicas_that_may_share_it():
    for name, wanted in NODE_TYPES.items():
        cpus = float(WORKERS[name]["rayStartParams"]["num-cpus"])
        assert CONTAINERS[name]["resources"]["requests"]["cpu"] == f"{cpus:g}"
        if name == "routers":
            assert LADDER.spec.router.num_cpus <= cpus
            continue
        stages = [stage for stage in LADDER.spec.stages if stage.resources.keys() == wanted["resources"].keys()]
        assert max(stage.num_cpus / stage.num_gpus for stage in stages) <= cpus


@pytest.mark.parametrize("name", GROUPS)
def test_ray_starts_with_exactly_the_fast_path(name):
    assert {each["name"]: each["value"] for each in CONTAINERS[name]["env"]} == FAST_PATH | GRPC
    options = [f"--{key}={value.strip(chr(34))}" for key, value in GROUPS[name]["rayStartParams"].items()]
    assert start.make_context("start", options).params["num_cpus"] is not None


@pytest.mark.parametrize("name", GROUPS)
def test_no_pod_may_do_what_a_server_need_not(name):
    # What Kubernetes' Pod Security Standards call "restricted".
    pod = GROUPS[name]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for security in (CONTAINERS[name]["securityContext"], CLUSTER["autoscalerOptions"]["securityContext"]):
        assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    # The head's autoscaler asks Kubernetes for pods; nobody else asks for anything.
    assert (name == "head") == pod.get("automountServiceAccountToken", True)


@pytest.mark.parametrize("name", GROUPS)
def test_every_pod_says_what_it_takes_and_how_to_see_that_it_lives(name):
    container = CONTAINERS[name]
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/api/local_raylet_healthz", "port": 52365}
    assert container["readinessProbe"]["httpGet"]["path"]


def test_gpu_pods_go_to_gpu_nodes_and_the_others_do_not():
    for name, container in CONTAINERS.items():
        has_gpu = name.startswith("gpu")
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == has_gpu
        assert ("tolerations" in GROUPS[name]["template"]["spec"]) == has_gpu
        assert container["image"] == ("cascade-cuda" if has_gpu else "cascade-cpu")


def test_clients_reach_the_routers_on_the_ports_on_which_these_listen_once_they_are_ready():
    assert matches(SERVICE["spec"]["selector"]) == {"routers"}
    named = {port["name"]: port["containerPort"] for port in CONTAINERS["routers"]["ports"]}
    assert [named[port["targetPort"]] for port in SERVICE["spec"]["ports"]] == [HTTP, GRPC_PORT]
    assert CONTAINERS["routers"]["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    # KubeRay's exporter of metrics, Ray's store, dashboard, agent and client have these.
    assert {HTTP, GRPC_PORT}.isdisjoint({8080, 6379, 8265, 52365, 10001})


def test_a_router_that_is_sent_away_first_ends_what_it_may_have_under_way():
    *_, command = CONTAINERS["routers"]["lifecycle"]["preStop"]["exec"]["command"]
    word, seconds = command.split()
    assert word == "sleep"
    grace = GROUPS["routers"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert LADDER.spec.deadline.max_s < float(seconds) < grace


def test_who_is_not_of_the_cluster_reaches_only_what_is_meant_for_them():
    inside, *others = POLICIES
    assert matches(inside["spec"]["podSelector"]) == set(GROUPS)
    assert inside["spec"]["ingress"] == [{"from": [{"podSelector": inside["spec"]["podSelector"]}]}]
    opened = {}
    for policy in others:
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        for rule in policy["spec"]["ingress"]:
            assert rule["from"], "a rule without `from` is open to the world"
            for port in rule["ports"]:
                opened.setdefault(port["port"], set()).update(matches(policy["spec"]["podSelector"]))
    assert opened == {HTTP: {"routers"}, GRPC_PORT: {"routers"}, 8265: {"head"}, 8080: set(GROUPS)}


def test_a_drain_of_nodes_leaves_a_router_and_the_head():
    found = {}
    for budget in BUDGETS:
        (name,) = matches(budget["spec"]["selector"])
        # Of pods whose controller Kubernetes does not know, nothing but a whole number of those that stay.
        assert set(budget["spec"]) == {"minAvailable", "selector"}
        found[name] = budget["spec"]["minAvailable"]
    assert found == {"routers": 1, "head": 1}
    assert found["routers"] < WORKERS["routers"]["minReplicas"]


def test_one_apply_takes_every_file_and_names_every_image():
    (kustomization,) = documents("kustomization.yaml")
    assert set(kustomization["resources"]) == {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert {image["name"] for image in kustomization["images"]} == {each["image"] for each in CONTAINERS.values()}
    variants = {image["name"]: image["newTag"].rpartition("-")[2] for image in kustomization["images"]}
    assert variants == {"cascade-cpu": "cpu", "cascade-cuda": "cuda"}
    assert len({image["newTag"].rpartition("-")[0] for image in kustomization["images"]}) == 1
