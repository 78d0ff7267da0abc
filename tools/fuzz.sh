#!/usr/bin/env bash
# fuzz.sh TIME runs every fuzz target of the module for TIME each and fails when
# one of them finds something. What it finds is kept under testdata/fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: fuzz.sh TIME}
go=${GO:-go}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# run DIR NAME runs one target. On a busy machine the go command sometimes reports
# the end of the time it was given as a failure of the target, with these words
# and without an input; then the target runs again.
run() {
	local try
	for try in 1 2 3; do
		# Shortening an input that is merely new is not worth more than a second.
		"$go" test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 1s "$1" >"$log" 2>&1 && { cat "$log"; return 0; }
		cat "$log"
		grep -q '^ *context deadline exceeded$' "$log" && ! grep -q 'Failing input' "$log" || return 1
		echo "== the time was up while a worker was busy; run $try does not count"
	done
	return 1
}

targets=0
failed=()
for dir in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u); do
	for name in $("$go" test -list '^Fuzz' "$dir" | grep '^Fuzz'); do
		echo "== $dir $name"
		targets=$((targets + 1))
		run "$dir" "$name" || failed+=("$dir $name")
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
