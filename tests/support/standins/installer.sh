#!/bin/sh
# Stand-in for the @NAME@ installer: see README.md beside this file's source.
# VER: @VERSION@

unset LD_LIBRARY_PATH DYLD_LIBRARY_PATH

case "$0" in
    *.sh) ;;
    *)
        echo 'Please run using "bash" or "sh", but not "." or "source".' >&2
        exit 1
        ;;
esac

PREFIX="${HOME:-/opt}/@DEFAULT@"
BATCH=0
FORCE=0
while getopts "bfhkmp:stu" option; do
    case "$option" in
        b) BATCH=1 ;;
        f | u) FORCE=1 ;;
        p) PREFIX="$OPTARG" ;;
        k | m | s | t) ;;
        *)
            echo "usage: $0 [-b] [-f] [-u] [-p PREFIX]"
            exit 2
            ;;
    esac
done

if [ "$BATCH" = 0 ]; then
    printf 'Welcome to @NAME@ @VERSION@\n\nDo you accept the license terms? [yes|no]\n>>> '
    read -r answer || exit 2
    [ "$answer" = yes ] || exit 2
    printf 'Do you wish to initialize @NAME@ by running conda init? [yes|no]\n>>> '
    read -r answer || exit 2
    [ "$answer" != yes ] || echo "# >>> conda initialize >>>" >>"$HOME/.bashrc"
fi

case "$PREFIX" in
    *\ *)
        echo "ERROR: Cannot install into directories with spaces" >&2
        exit 1
        ;;
esac
if [ "$FORCE" = 0 ] && [ -e "$PREFIX" ]; then
    echo "ERROR: File or directory already exists: '$PREFIX'" >&2
    echo "If you want to update an existing installation, use the -u option." >&2
    exit 1
fi
if ! mkdir -p "$PREFIX"; then
    echo "ERROR: Could not create directory: '$PREFIX'" >&2
    exit 1
fi
PREFIX=$(cd "$PREFIX" && pwd)
echo "PREFIX=$PREFIX"
echo "Unpacking payload ..."
tail -n +@LINES@ "$0" | tar -xzf - -C "$PREFIX" || exit 1

# The first line of the programs names the interpreter. Where that is longer than the kernel reads, conda writes
# /usr/bin/env instead (conda/conda: conda/core/portability.py, replace_long_shebang).
first="#!$PREFIX/bin/python"
[ "${#first}" -le 127 ] || first="#!/usr/bin/env python"
for name in conda mamba; do
    {
        echo "$first"
        cat "$PREFIX/bin/$name.body"
    } >"$PREFIX/bin/$name"
    rm "$PREFIX/bin/$name.body"
    chmod 755 "$PREFIX/bin/$name"
done

# Whatever CONDA_REGISTER_ENVS says outside: the header sets it itself
# (conda/constructor: constructor/header.sh, "Installing base environment").
mkdir -p "$HOME/.conda"
echo "$PREFIX" >>"$HOME/.conda/environments.txt"
env >"$PREFIX/installed-with.txt" # for the tests
echo "installation finished."
exit 0
