"""The images and manifests of ``docs/serving`` agree with the server, and with one another.

They are built and run by hand; this holds what would otherwise drift.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch

import pytest
import yaml

from bge_runtime import __version__
from bge_runtime.cli.serve import main
from tests.helpers.bundles import ROOT
from tests.helpers.servers import Server, running_server

FOLDER = ROOT / "docs" / "serving"
DOCKERFILE = (FOLDER / "Dockerfile").read_text("utf-8")
IGNORED = (FOLDER / "Dockerfile.dockerignore").read_text("utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))["services"]
MANIFESTS = {
    manifest["kind"]: manifest
    for manifest in yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8"))
}
POD = MANIFESTS["Deployment"]["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints-common.txt").read_text("utf-8").splitlines()
    if "==" in line
)


def words(instruction: str) -> list[str]:
    """Return the words of an instruction of the Dockerfile, which has them as JSON."""
    return json.loads(re.search(rf"^{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])


ENTRYPOINT = words("ENTRYPOINT")
PROBE = words("    CMD")
COMMANDS = {
    "Dockerfile": ENTRYPOINT[1:] + words("CMD"),
    "compose.yaml": ENTRYPOINT[1:] + COMPOSE["embeddings"]["command"],
    "kubernetes.yaml": ENTRYPOINT[1:] + CONTAINER["args"],
}


def options(arguments: list[str]) -> dict[str, str]:
    """Return the options of a command by name; each of them has a value here."""
    words = [part for word in arguments for part in word.split("=", 1 if word[0] == "-" else 0)]
    return {word: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}


@pytest.mark.parametrize("file", COMMANDS)
def test_commands_have_options_of_the_server(file: str):
    known = {name for parameter in main.params for name in parameter.opts}
    assert ENTRYPOINT[0] in PROJECT["scripts"]
    assert set(options(COMMANDS[file])) <= known
    assert options(COMMANDS[file])["--host"] == "0.0.0.0"


def test_every_place_has_the_same_port():
    port = options(ENTRYPOINT)["--port"]
    assert re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.MULTILINE) == [port]
    assert f"http://127.0.0.1:{port}/" in PROBE[-1]
    assert all(f"-p {port}:{port} " in line for line in re.findall("docker run --rm.*", DOCKERFILE))
    assert COMPOSE["embeddings"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"//embeddings:{port}/" in COMPOSE["qdrant"]["environment"]["QDRANT__INFERENCE__ADDRESS"]
    assert [each["containerPort"] for each in CONTAINER["ports"]] == [int(port)]


def test_versions_are_those_of_the_project():
    images = re.findall(r"bge-serve:\w+-([\d.]+)", DOCKERFILE)
    images += [COMPOSE["embeddings"]["image"].partition("-")[2].partition("-")[2]]
    images += [CONTAINER["image"].partition("-")[2].partition("-")[2]]
    assert set(images) == {__version__}
    assert re.findall(r"^ARG TORCH=(.*)", DOCKERFILE, re.MULTILINE) == [PINS["torch"]]
    (python,) = re.findall(r"^ARG PYTHON=(.*)", DOCKERFILE, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    client = PINS["qdrant-client"].rpartition(".")[0]
    assert COMPOSE["qdrant"]["image"].startswith(f"qdrant/qdrant:v{client}.")


def test_what_the_server_imports_is_pinned():
    for extra in ("serve", "otel"):
        for requirement in PROJECT["optional-dependencies"][extra]:
            assert re.match(r"[\w-]+", requirement)[0] in PINS


def test_the_build_copies_what_is_there():
    extras = re.findall(r"bge-runtime\[(.*?)\]", DOCKERFILE)
    assert extras == ["${DEVICE},serve,otel", "export"]
    assert {"cpu", "cuda", "serve", "otel", "export"} <= set(PROJECT["optional-dependencies"])
    kept = {line[1:] for line in IGNORED.splitlines() if line.startswith("!")}
    copied = {
        name
        for line in re.findall(r"^COPY ([^-].*)", DOCKERFILE, re.MULTILINE)
        for name in line.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    packages = {path.partition("/")[0] for path in ("runtime", "export", "benchmarks")}
    assert packages <= copied


def seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s", text)[1])


def test_requests_have_time_to_be_answered_before_the_server_is_killed():
    default = next(each.default for each in main.params if "--drain-timeout" in each.opts)
    (stop,) = re.findall(r"docker stop --time (\d+)", DOCKERFILE)
    assert default < int(stop)
    drain = int(options(COMMANDS["compose.yaml"])["--drain-timeout"])
    assert drain < seconds(COMPOSE["embeddings"]["stop_grace_period"])
    drain = int(options(COMMANDS["kubernetes.yaml"])["--drain-timeout"])
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before + drain < POD["spec"]["terminationGracePeriodSeconds"]


def test_the_server_has_a_processor_for_each_thread():
    assert float(options(COMMANDS["compose.yaml"])["--threads"]) == COMPOSE["embeddings"]["cpus"]
    threads = options(COMMANDS["kubernetes.yaml"])["--threads"]
    resources = CONTAINER["resources"]
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"] == threads


def test_nothing_runs_as_root_or_writes_outside_its_volumes():
    (user,) = re.findall(r"^USER (.*)", DOCKERFILE, re.MULTILINE)
    assert user == "1000:1000"
    context = POD["spec"]["securityContext"]
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 1000
    assert context["runAsNonRoot"]
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert COMPOSE["embeddings"]["read_only"]
    folders = re.findall(r"^ +(?:HF_HOME|XDG_CACHE_HOME)=(\S+)", DOCKERFILE, re.MULTILINE)
    assert folders == ["/data", "/data"]
    assert {"/data", "/tmp"} <= {each["mountPath"] for each in CONTAINER["volumeMounts"]}
    assert COMPOSE["embeddings"]["volumes"] == ["embeddings:/data"]
    assert COMPOSE["embeddings"]["tmpfs"] == ["/tmp"]


def test_manifests_are_of_one_application():
    labels = POD["metadata"]["labels"]
    assert MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["Service"]["spec"]["selector"] == labels
    target = MANIFESTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == MANIFESTS["Deployment"]["metadata"]["name"]
    volumes = {each["name"] for each in POD["spec"]["volumes"]}
    assert {each["name"] for each in CONTAINER["volumeMounts"]} == volumes
    keys = options(COMMANDS["kubernetes.yaml"])["--api-keys"]
    assert any(fnmatch(keys, f"{each['mountPath']}/*") for each in CONTAINER["volumeMounts"])


# -- Against a server ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tiny_bundle, tmp_path_factory: pytest.TempPathFactory):
    keys = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text("secret\n")
    with running_server(f"{tiny_bundle}=model", "--api-keys", str(keys)) as running:
        yield running


def test_probes_are_routes_that_need_no_key(server: Server):
    paths = {CONTAINER[name]["httpGet"]["path"] for name in CONTAINER if name.endswith("Probe")}
    assert paths
    for path in paths:
        assert server.client.get(path).status_code == 200, path


def test_the_health_check_of_the_image_tells_whether_the_server_answers(server: Server):
    assert PROBE[0] == "python"
    port = options(ENTRYPOINT)["--port"]
    for address, status in ((server.url, 0), ("http://127.0.0.1:1", 1)):
        code = PROBE[2].replace(f"http://127.0.0.1:{port}", address)
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == status


def test_qdrant_posts_to_a_route_and_has_its_key_in_the_body(server: Server):
    address = COMPOSE["qdrant"]["environment"]["QDRANT__INFERENCE__ADDRESS"]
    path = "/" + address.partition("//")[2].partition("/")[2]
    text = {"data": "a", "data_type": "text", "model": "model", "options": None}
    body = {"inputs": [text], "inference": "search"}
    answer = server.client.post(path, json=body | {"token": "secret"})
    assert answer.status_code == 200
    assert len(answer.json()["embeddings"]) == 1
    for token in (None, "wrong"):
        assert server.client.post(path, json=body | {"token": token}).status_code == 401
    headers = {"authorization": "Bearer secret"}
    assert server.client.post(path, json=body, headers=headers).status_code == 200
