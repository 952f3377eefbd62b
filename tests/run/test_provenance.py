import subprocess

import pytest

from tunerun.run import provenance

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org")


@pytest.fixture
def project(tmp_path):
    def git(*arguments):
        subprocess.run([*GIT, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "recipe.yaml").write_text("rank: 8\n")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def test_a_clean_project_has_its_commit(project):
    git = provenance.collect(project, {})["git"]
    assert len(git["commit"]) == 40
    assert (git["dirty"], git["diff"]) == (False, "")


def test_local_changes_are_kept_without_secrets(project):
    (project / "recipe.yaml").write_text("rank: 16\npassword: hunter2\nx: correct-horse\n")
    (project / "new.py").write_text("")
    git = provenance.collect(project, {"MY_TOKEN": "correct-horse"})["git"]
    assert git["dirty"]
    assert "+rank: 16" in git["diff"]
    assert "hunter2" not in git["diff"]
    assert "correct-horse" not in git["diff"]
    assert git["untracked"] == ["new.py"]


def test_new_configs_are_kept_and_data_are_not(project):
    (project / "rows.csv").write_text("private,row\n")
    subprocess.run([*GIT, "add", "."], cwd=project, check=True, capture_output=True)
    subprocess.run([*GIT, "commit", "-m", "data"], cwd=project, check=True, capture_output=True)
    (project / "rows.csv").write_text("private,other row\n")
    for name, text in {
        "recipes/mine.yaml": "rank: 16\nhub_token: hf_abcdefghij0123456789xyz\n",
        "recipes/second of mine.yaml": "rank: 32\n",
        "data/new.jsonl": '{"private": 1}\n',
        ".env": "HF_TOKEN=hf_abcdefghij0123456789xyz\n",
        "outputs/run/config.yaml": "rank: 64\n",
        "ignored.yaml": "rank: 128\n",
        ".gitignore": "ignored.yaml\n",
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    # A project may be a folder in a repository.
    for folder in (project, project / "recipes"):
        diff = provenance.collect(folder, {})["git"]["diff"]
        added = [line for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
        assert added == ["+rank: 16", "+hub_token: [redacted]", "+rank: 32"]
        assert "+++ b/recipes/mine.yaml" in diff if folder == project else "mine.yaml" in diff


def test_a_long_diff_is_cut_and_says_so(project):
    (project / "recipe.yaml").write_text("rank: 16\n" * 60_000)
    git = provenance.collect(project, {})["git"]
    assert git["diff_is_cut"]
    assert len(git["diff"].encode()) <= 256 << 10


def test_programs_that_a_repository_names_do_not_run(project):
    subprocess.run([*GIT, "config", "diff.external", f"touch {project}/ran"], cwd=project, check=True)
    (project / "recipe.yaml").write_text("rank: 16\n")
    provenance.collect(project, {})
    assert not (project / "ran").exists()


def test_before_the_first_commit_everything_is_a_change(tmp_path):
    subprocess.run([*GIT, "init"], cwd=tmp_path, check=True, capture_output=True)
    for name in ("added.yaml", "new.yaml", "rows.csv"):
        (tmp_path / name).write_text(f"{name}: 1\n")
    subprocess.run([*GIT, "add", "added.yaml"], cwd=tmp_path, check=True, capture_output=True)
    git = provenance.collect(tmp_path, {})["git"]
    assert git["commit"] is None
    added = [line for line in git["diff"].splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert added == ["+added.yaml: 1", "+new.yaml: 1"]


def test_outside_a_repository_there_is_no_commit(tmp_path):
    assert provenance.collect(tmp_path, {})["git"] is None


def test_secret_variables_are_kept_by_name_and_others_by_value():
    environment = {
        "HF_TOKEN": "abcdefgh",
        "HF_ENDPOINT": "https://me:pw@mirror",
        "OMP_NUM_THREADS": "2",
        "HOME": "/home/someone",
    }
    assert provenance.variables(environment) == {
        "HF_ENDPOINT": "https://[redacted]@mirror",
        "HF_TOKEN": "[redacted]",
        "OMP_NUM_THREADS": "2",
    }


def test_a_variable_that_the_config_names_is_kept_by_name_too():
    environment = {"TUNERUN_TEACHER": "short", "TUNERUN_NOTE": "correct-horse", "TORCH_X": "correct-horse 2"}
    assert provenance.variables(environment, ("TUNERUN_TEACHER", "TUNERUN_NOTE")) == {
        "TORCH_X": "[redacted] 2",
        "TUNERUN_NOTE": "[redacted]",
        "TUNERUN_TEACHER": "[redacted]",
    }


def test_machine_and_packages_are_named(tmp_path):
    found = provenance.collect(tmp_path, {})
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_bytes"] > 1 << 28
    assert found["packages"]["omegaconf"]
