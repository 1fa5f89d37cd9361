# What the scripts beside this file share. Source it; it changes to the top of the tree.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' red=$'\e[31m' plain=$'\e[0m'; else bold= red= plain=; fi

say() { printf '%s==> %s%s\n' "$bold" "$*" "$plain"; }
die() { printf '%serror: %s%s\n' "$red" "$*" "$plain" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "this needs root: $*"
    fi
}

# need COMMAND-OR-FILE PACKAGE …: installs each Debian package whose command or file is not there.
need() {
    local missing=()
    while [ $# -gt 1 ]; do
        case $1 in
            /*) [ -e "$1" ] || missing+=("$2") ;;
            *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || missing+=("$2") ;;
        esac
        shift 2
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (this script knows only apt-get)"
    say "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_cargo() {
    command -v cargo >/dev/null || die "no Rust toolchain found; install one (rustup.rs), then run this again"
}

# What the build lacks on a fresh Debian 12: a C compiler for ring, libseccomp for the process runtime, and what turns etcd's
# protocol into code.
need_build() {
    need_cargo
    need cc gcc pkg-config pkg-config /usr/include/seccomp.h libseccomp-dev \
        protoc protobuf-compiler /usr/include/google/protobuf/descriptor.proto libprotobuf-dev
}
