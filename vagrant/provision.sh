#!/usr/bin/env bash
# Brings a fresh Debian (12 or later) to where `cargo xtask test` runs. Safe to run again.
set -euo pipefail

checkout=/tollgate
export DEBIAN_FRONTEND=noninteractive

say() { printf '==> %s\n' "$*"; }

say "packages: a linker and headers for the C parts, a container engine, what fetches rustup"
apt-get -q update
apt-get -q -y --no-install-recommends install \
    build-essential ca-certificates cmake curl docker.io git iptables pkg-config sudo

say "rustup, without a tool chain: rust-toolchain.toml in the checkout names it"
if ! command -v cargo >/dev/null && [ ! -x /root/.cargo/bin/cargo ]; then
    installer=$(mktemp)
    curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs -o "$installer"
    sh "$installer" -y --no-modify-path --default-toolchain none
    rm -f "$installer"
fi
# Privileged tests run as root, so root's tool chain is the one.
ln -sf /root/.cargo/bin/{cargo,rustc,rustup} /usr/local/bin/

say "the pinned tool chain, then what building and testing need (it says what and why)"
cd "$checkout"
rustup toolchain install
cargo xtask setup

say "cgroup v2: $(stat -fc %T /sys/fs/cgroup) (cgroup2fs is what it should be)"
docker info --format 'engine: {{.ServerVersion}}, cgroup v{{.CgroupVersion}}'
say "ready: cd $checkout && sudo cargo xtask test"
