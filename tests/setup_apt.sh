#!/usr/bin/env bash
# Installs, as root, the programs of Debian that suites of `make test-full` need; a suite without its own is skipped and
# says so. llama-server and vLLM are made by the tests that need them: see build_llama_server.sh and vllm/setup.sh.
set -euo pipefail

packages=(
  chromium chromium-driver # the chat page
  slurm-wlm munge          # a Slurm cluster on this machine
  iproute2                 # a network between two nodes
  golang-go                # Ollama's chat templates
  curl shellcheck          # the line that `serve` prints, and the scripts that jobs run
)
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q --yes --no-install-recommends "${packages[@]}"
