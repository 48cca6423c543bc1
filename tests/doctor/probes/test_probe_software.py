from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from dist_trainer.doctor.probes.software import package_versions, revision, torch_cuda_version


@pytest.mark.parametrize(
    ("line", "cuda"),
    [
        ("cuda: Optional[str] = None", None),
        ("cuda: Optional[str] = '12.8'", "12.8"),
        ('cuda = "11.8"', "11.8"),
        ("hip: Optional[str] = '6.4'", None),
    ],
)
def test_the_cuda_of_torch_is_read_from_its_file(line: str, cuda: str | None, tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\ngit_version = 'x'\n")
    assert torch_cuda_version(tmp_path) == cuda


def test_a_torch_without_that_file(tmp_path: Path) -> None:
    assert torch_cuda_version(tmp_path) is None


def test_the_file_of_the_torch_that_is_here_is_understood() -> None:
    import torch

    assert torch_cuda_version() == torch.version.cuda


def test_packages_have_their_versions() -> None:
    versions = package_versions()
    assert versions["torch"] == version("torch")
    assert versions["nvidia-ml-py"] == version("nvidia-ml-py")


def test_a_revision_is_its_bytes_and_its_commit(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("1\n")
    plain = revision(package)
    assert (plain.head, plain.is_dirty) == (None, None)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    committed = revision(package)
    assert committed.digest == plain.digest
    assert committed.head is not None and committed.is_dirty is False
    (package / "a.py").write_text("2\n")
    changed = revision(package)
    assert changed.digest != plain.digest
    assert (changed.head, changed.is_dirty) == (committed.head, True)
