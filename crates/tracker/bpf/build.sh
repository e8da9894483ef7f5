#!/bin/sh
# Compiles tracker.bpf.c into the two objects that are checked in, and writes down what
# they were made from: `sha256sum --check objects.sha256` says whether they belong together.
# With an argument, writes there and leaves the checked-in files alone.
set -eu
cd "$(dirname "$0")"
out=${1:-.}
CLANG=${CLANG:-clang}
STRIP=${STRIP:-llvm-strip}

build() { # object, then what is special about it
	object=$1
	shift
	"$CLANG" -target bpfel -O2 -g -Wall -Wextra -Werror -fdebug-compilation-dir=. "$@" \
		-c tracker.bpf.c -o "$out/$object"
	"$STRIP" -g "$out/$object"
}

build atomic.bpf.o -mcpu=v3
build plain.bpf.o -mcpu=v2 -DPLAIN_BYTES
"$CLANG" --version | head -n 1 >"$out/compiler.txt"
if [ "$out" = . ]; then
	sha256sum tracker.bpf.c build.sh compiler.txt atomic.bpf.o plain.bpf.o >objects.sha256
fi
