"""25 kinds of secrets, and how to find them in what was written."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path

PEM = "-----BEGIN PRIVATE KEY-----\n{}\n{}\n-----END PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dBjftJeZ4CVPmB92K27uhbUJU1p1r"

# Variable, value, and whether the value alone looks like a secret, so that it goes where no variable has it either.
KINDS: dict[str, tuple[str, str, bool]] = {
    "hugging face": ("HF_TOKEN", "hf_QmZxWvUtSrPoNmLkJiHgFeDcBa0192", True),
    "openai": ("OPENAI_API_KEY", "sk-proj-Zq3W8xC5vB7nM1aS4dF6gH9j", True),
    "anthropic": ("ANTHROPIC_API_KEY", "sk-ant-api03-Pl5Ok8Ij2Uh7Yg4Tf1Rd6", True),
    "github classic": ("GITHUB_TOKEN", "ghp_" + "Zx9Cv8Bn7M" * 4, True),
    "github fine-grained": ("GH_TOKEN", "github_pat_11ABCDEFG0aBcDeFgHiJkL_mNoPqRsTuV", True),
    "gitlab": ("GITLAB_TOKEN", "glpat-Xy7Zw3Vu9Ts1Rq5Po2Nm", True),
    "aws id": ("AWS_ACCESS_KEY_ID", "AKIAQWERTYUIOPASDFGH", True),
    "aws secret": ("AWS_SECRET_ACCESS_KEY", "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", False),
    "aws session": ("AWS_SESSION_TOKEN", "FwoGZXIvYXdzEBYaDPlantedSessionToken9Q", False),
    "google": ("GOOGLE_API_KEY", "AIzaSyD4-Q8wErTyUiOpAsDfGhJkLzXcVbNm12", True),
    "google service account": ("GCP_CREDENTIALS", PEM.format("MIIEvQIBADANplanted0", "G9w0BAQEFAASCplanted1"), True),
    "azure": ("AZURE_STORAGE_KEY", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsu==", False),
    "wandb": ("WANDB_API_KEY", "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c", False),
    "modelscope": ("MODELSCOPE_API_TOKEN", "ms-1a2b3c4d-5e6f-7a8b-9c0d-1e2f3a4b5c6d", True),
    "slack": ("SLACK_TOKEN", "xoxb-210987654321-Qw3rTy5uI7oP9aS1dF", True),
    "stripe": ("STRIPE_KEY", "sk_live_4eC39HqLyjWDarjtT1zdp7dc", True),
    "jwt": ("SERVICE_TOKEN", JWT, True),
    "npm": ("NPM_TOKEN", "npm_aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789", True),
    "pypi": ("TWINE_PASSWORD", "pypi-AgEIcHlwaS5vcmcCJDplantedQwErTyUiOp12", True),
    "data base": ("DB_PASSWORD", "tr0ub4dor&3", False),
    "comet": ("COMET_API_KEY", "Qk7Lm2Np9Rs4Tu6Vw1Xy3Za5B", False),
    "swanlab": ("SWANLAB_API_KEY", "Hj8Kl3Zx6Cv1Bn4Mq7We2R", False),
    "passphrase": ("SSH_PASSPHRASE", "correct horse battery staple", False),
    "ssh key": ("DEPLOY_PRIVATE_KEY", PEM.format("b3BlbnNzaC1rZXktplanted", "QyNTUxOQAAACplanted2"), True),
    "own": ("TUNERUN_SERVE_API_KEY", "serve-me-4711-please", False),
}


def pieces(value: str) -> list[str]:
    """What must not be found: every line of a secret but its fence, as it is, quoted for JSON, and as in an address."""
    lines = [line for line in value.splitlines() if "-----" not in line]
    return [form for line in lines for form in (line, json.dumps(line)[1:-1], urllib.parse.quote(line, safe=""))]


def found_in(texts: dict[str, str]) -> list[tuple[str, str]]:
    return [
        (kind, name)
        for kind, (_, value, _) in KINDS.items()
        for name, text in texts.items()
        if any(piece in text for piece in pieces(value))
    ]


def written(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes().decode("utf-8", "replace") for path in files}
