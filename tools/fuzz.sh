#!/usr/bin/env bash
# fuzz.sh TIME runs every fuzz target of the module for TIME each and fails when
# one of them finds something. What it finds is kept under testdata/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: fuzz.sh TIME}
go=${GO:-go}
targets=0
failed=()
for dir in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u); do
	for name in $("$go" test -list '^Fuzz' "$dir" | grep '^Fuzz'); do
		echo "== $dir $name"
		targets=$((targets + 1))
		# Shortening an input that is merely new is not worth more than a second.
		"$go" test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 1s "$dir" || failed+=("$dir $name")
	done
done
if [ ${#failed[@]} -gt 0 ]; then
	printf 'failed: %s\n' "${failed[@]}"
	exit 1
fi
if [ $targets = 0 ]; then
	echo "no fuzz target found"
	exit 1
fi
echo "$targets fuzz targets, nothing found"
