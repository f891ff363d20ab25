#!/bin/sh
# Builds Staithe, starts it on this machine and deploys a small shop on it. Needs a Rust toolchain and root.
#   sudo ./demo.sh          everything
#   ./demo.sh build         only what needs the internet
#   sudo ./demo.sh run      only what needs root
set -eu
cd "$(dirname "$0")"
if ! command -v cargo >/dev/null 2>&1 && [ -f "${HOME:-/root}/.cargo/env" ]; then . "${HOME:-/root}/.cargo/env"; fi
if ! command -v cargo >/dev/null 2>&1; then
    echo "error: cargo is not in PATH: install a Rust toolchain (1.90 or newer), or run: sudo env PATH=\"\$PATH\" ./demo.sh" >&2
    exit 1
fi
if [ "${1:-}" != run ] && ! command -v cc >/dev/null 2>&1; then
    echo "installing a C compiler and linker from the distribution: gcc libc6-dev"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null
fi
exec cargo run --quiet --package xtask -- demo "$@"
