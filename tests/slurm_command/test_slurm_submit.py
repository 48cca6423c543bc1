"""What `submit` leaves in the run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.slurm.job_request import JobRequest
from dist_trainer.slurm.submit import submit


@pytest.mark.parametrize(("is_private", "mode"), [(True, 0o600), (False, 0o644)])
def test_a_script_with_values_of_the_user_is_the_users_alone(
    is_private: bool, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 7\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=":")
    # One that others could read, of an earlier submission.
    script = tmp_path / "run" / "resolved" / "job.sbatch"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o644)
    script.chmod(0o644)
    told = submit(
        "#!/bin/sh\nexport HF_TOKEN=of-the-user\n",
        tmp_path / "run",
        JobRequest(),
        {"PATH": str(sbatch.parent)},
        output="%j",
        tasks=(),
        num_ranks=1,
        arguments=(),
        is_private=is_private,
    )
    assert told.job_id == "7"
    assert script.stat().st_mode & 0o777 == mode
