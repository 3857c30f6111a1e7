#!/bin/sh
# Finds a cargo that can build xtask (installing Debian's where there is none), and runs it.
set -eu

# The oldest Rust that builds the workspace: "rust-version" in Cargo.toml.
OLDEST=1.95
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)

stop() {
    echo "peerboot: $*" >&2
    exit 2
}

# new_enough COMMAND: whether COMMAND is a Rust tool that works and is at least $OLDEST.
new_enough() {
    found=$("$1" --version 2>/dev/null | cut -d' ' -f2) && [ -n "$found" ] &&
        [ "$(printf '%s\n%s\n' "$OLDEST" "$found" | sort -V | head -n1)" = "$OLDEST" ]
}

install() {
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; } >&2
}

use_debian() {
    if ! { new_enough /usr/bin/cargo && new_enough /usr/bin/rustc; }; then
        [ "$(id -u)" = 0 ] || stop "no Rust $OLDEST here: run 'apt-get install cargo-web ca-certificates' as root, or install rustup."
        echo "peerboot: installing Debian's Rust (cargo-web)" >&2
        install cargo-web ca-certificates ||
            stop "apt-get could not install cargo-web; with rustup (https://rustup.rs) it is not needed."
        { new_enough /usr/bin/cargo && new_enough /usr/bin/rustc; } ||
            stop "this cargo-web is older than Rust $OLDEST: add bookworm-security to apt's sources, or install rustup (https://rustup.rs)."
    fi
    export CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
    # Two compilers must not undo each other's work in one directory.
    export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$ROOT/target}/debian"
    export PEERBOOT_TOOLCHAIN=debian
}

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
    stop "this needs an x86-64 Linux machine; this one is $(uname -s) $(uname -m)."
command -v apt-get >/dev/null ||
    stop "this needs Debian 12 or a system like it (apt-get is missing)."

if [ "${PEERBOOT_TOOLCHAIN:-}" != debian ] && new_enough cargo && new_enough rustc; then
    CARGO=$(command -v cargo)
    export CARGO CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$ROOT/target}"
elif [ "${PEERBOOT_TOOLCHAIN:-}" = rustup ]; then
    stop "PEERBOOT_TOOLCHAIN=rustup, but no cargo and rustc of at least $OLDEST work here."
else
    use_debian
fi
command -v cc >/dev/null || {
    [ "$(id -u)" = 0 ] || stop "no C compiler to link with: run 'apt-get install gcc libc6-dev' as root."
    echo "peerboot: installing a linker (gcc, libc6-dev)" >&2
    install gcc libc6-dev || stop "apt-get could not install gcc and libc6-dev."
}

# Cargo's progress is worth seeing the first time only.
XTASK=$CARGO_TARGET_DIR/debug/xtask
"$CARGO" build $([ ! -x "$XTASK" ] || echo --quiet) --manifest-path "$ROOT/Cargo.toml" -p xtask >&2 ||
    stop "xtask does not build."
exec "$XTASK" "$@"
