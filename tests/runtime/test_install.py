"""The slim runtime stays slim: in its imports, and installed as the Dockerfile installs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from conftest import REPOSITORY

HEAVY = ("torch", "monai", "onnx", "lightning", "pandas", "scipy", "matplotlib")

IMPORT_EVERYTHING = """
import json, pkgutil, sys
from importlib import import_module
import petseg_runtime
assert not {"numpy", "SimpleITK", "openvino"} & set(sys.modules), "import petseg_runtime is no longer free"
for module in pkgutil.walk_packages(petseg_runtime.__path__, "petseg_runtime."):
    try:
        import_module(module.name)
    except petseg_runtime.BackendError:  # a backend whose vendor is not installed says so
        pass
    except ModuleNotFoundError as error:  # the services need their extra, and nothing else imports them
        assert module.name.startswith("petseg_runtime.serve."), error
        assert error.name in ("pynetdicom", "fastapi", "uvicorn"), error
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_no_module_of_the_runtime_brings_torch_onnx_or_monai() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_EVERYTHING], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(json.loads(done.stdout))


def dockerfile_build_stage() -> tuple[list[str], list[str]]:
    """What the Dockerfile's first stage copies from here, and the commands it runs."""
    text = (REPOSITORY / "Dockerfile").read_text()
    stage = text[text.index("FROM ") : text.rindex("FROM ")]
    copied = [source for line in re.findall(r"^COPY (.*) \S+$", stage, re.MULTILINE) for source in line.split()]
    return copied, re.findall(r"^RUN (.*)$", stage, re.MULTILINE)


@pytest.mark.package_index
def test_the_dockerfiles_steps_give_a_runtime_that_works(tmp_path: Path) -> None:
    source, prefix = tmp_path / "source", tmp_path / "petseg"
    source.mkdir()
    copied, commands = dockerfile_build_stage()
    for name in copied:
        place = REPOSITORY / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, source / name)
    for command in commands:
        here = re.sub(r"^python ", f"{sys.executable} ", command.replace("/opt/petseg", str(prefix)))
        subprocess.run(here, shell=True, cwd=source, check=True, capture_output=True)  # noqa: S602  our Dockerfile

    python = prefix / "bin" / "python"
    imported = subprocess.run(
        [python, "-c", IMPORT_EVERYTHING], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert not set(HEAVY) & set(json.loads(imported.stdout))
    (packages,) = prefix.glob("lib/python*/site-packages")
    installed = {path.name.lower() for path in packages.iterdir()}
    assert not set(HEAVY) & installed
    megabytes = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 1e6
    print(f"site-packages of the slim runtime: {megabytes:.0f} MB")

    scan = REPOSITORY / "examples" / "pelvis.nii.gz"
    subprocess.run(
        [prefix / "bin" / "petseg-run", scan, "-o", tmp_path / "out", "-s", "-p", "--unit", "suvbw"],
        check=True,
        cwd=tmp_path,
    )
    for extra in ("train", "export"):
        refused = subprocess.run([prefix / "bin" / f"petseg-{extra}", "--help"], capture_output=True, check=False)
        assert refused.returncode == 2
        assert f", of an extra: pip install 'petseg[{extra}]'.\n" in refused.stderr.decode()
    mask = sitk.ReadImage(str(tmp_path / "out" / "pelvis_petseg.nii.gz"))
    image = sitk.ReadImage(str(scan))
    assert mask.GetSize() == image.GetSize()
    assert mask.GetOrigin() == image.GetOrigin()


def test_the_image_runs_as_an_ordinary_user() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    last_stage = text[text.rindex("FROM ") :]
    assert re.search(r"^USER (?!root)\w+", last_stage, re.MULTILINE)
    assert "pip" not in last_stage
