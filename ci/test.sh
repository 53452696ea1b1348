#!/usr/bin/env bash
# Check everything: bash ci/test.sh [--fast] [pytest options]
#
# Installs what the checks need and nothing else: as root the missing packages of ci/apt-packages.txt by apt,
# the Python tools of pyproject.toml's group "dev" into .venv; then lints, type-checks and runs the tests.
# An ordinary user gets the same without apt; tests of what is not there are then skipped, each with its reason.
#
# --fast: no apt, no network for the tests; lints, types, the floors of the house, and tests/unit. Two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

fast=
if [ "${1:-}" = --fast ]; then
    fast=1
    shift
fi

if [ -z "$fast" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    mapfile -t wanted < <(grep -v '^#' ci/apt-packages.txt)
    missing=()
    for package in "${wanted[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    export DEBIAN_FRONTEND=noninteractive
    if [ ${#missing[@]} -gt 0 ] || ! apt-cache show openssh-server >/dev/null 2>&1; then # a test looks names up
        apt-get update -qq
    fi
    if [ ${#missing[@]} -gt 0 ]; then
        say "System packages: ${missing[*]}"
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
fi

# A company's authority may be in the system's store alone: uv and requests have lists of their own.
for store in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem; do
    if [ -z "${SSL_CERT_FILE-}" ] && [ -f "$store" ]; then export SSL_CERT_FILE=$store; fi
done
if [ -n "${SSL_CERT_FILE-}" ]; then
    export REQUESTS_CA_BUNDLE="${REQUESTS_CA_BUNDLE-$SSL_CERT_FILE}" PIP_CERT="${PIP_CERT-$SSL_CERT_FILE}"
fi

say "Python tools in .venv"
python=
for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { echo "error: the tests need Python 3.11, 3.12 or 3.13" >&2; exit 3; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
.venv/bin/uv pip install --quiet --python .venv/bin/python --group dev
export PATH="$PWD/.venv/bin:$PATH"

say "Lint, floors and types"
ruff check .
ruff format --check --quiet .
lint-imports --no-logo --no-cache
mypy

say "Tests"
if [ -n "$fast" ]; then
    exec pytest -n auto tests/unit "$@"
elif [ $# -gt 0 ]; then
    exec pytest "$@"
fi

work=$(mktemp -d /tmp/ciXXXX) # short: a socket's name is limited
clean() {
    umount -l "$work" 2>/dev/null || true
    rm -rf "$work" "$work.disk" || true
}
trap clean EXIT
# Environments are made a hundred times from uv's cache. Where copies share blocks (XFS, in a file) each takes 3 s; on
# ext4 it is 11.
if [ "$(id -u)" = 0 ] && command -v mkfs.xfs >/dev/null && truncate -s 100G "$work.disk" &&
    mkfs.xfs -q "$work.disk" && mount -o loop,discard "$work.disk" "$work" 2>/dev/null; then
    export UV_CACHE_DIR="${UV_CACHE_DIR:-$work/uv}"
fi
if [ -z "${COLAB_LOCAL_TEST_HOME:-}" ]; then
    export COLAB_LOCAL_TEST_HOME="$work/home"
    "$python" bootstrap.py --cpu --engine host --prefix "$COLAB_LOCAL_TEST_HOME" >"$work/install.log" 2>&1 ||
        { cat "$work/install.log"; exit 1; }
fi
# Most tests wait for hosts, browsers and services: two at a time for each core. A file's tests stay together, they
# share its hosts.
run() { pytest -o cache_dir="$work/cache" "$@"; }
failed=
run -n $((2 * $(nproc))) --dist loadfile --no-loadscope-reorder --basetemp="$work/t" -m "not alters_home" || failed=1
say "Tests that need the installation for themselves"
run --basetemp="$work/own" -m alters_home tests/real || failed=1

# What failed is tried once more by itself: several at a time are more than some time limits were made for. A fault of
# ours fails again.
if [ -n "$failed" ]; then
    say "Once more, alone: what failed"
    run --basetemp="$work/a" --last-failed --last-failed-no-failures none
fi
