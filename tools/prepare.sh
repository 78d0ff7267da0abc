#!/usr/bin/env bash
# Installs what the tests need and can be had without asking; says what is left
# out. A test whose need is missing skips with a line of its own.
set -u
cd "$(dirname "$0")/.."

say() { echo "prepare: $*"; }

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif sudo -n true 2>/dev/null; then
		sudo -n "$@"
	else
		return 1
	fi
}

if ! command -v softhsm2-util >/dev/null; then
	if command -v apt-get >/dev/null &&
		{ as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends softhsm2 >/dev/null ||
			{ as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends softhsm2 >/dev/null; }; }; then
		say "installed softhsm2"
	else
		say "skip: no softhsm2 (install the package softhsm2); tests on a PKCS#11 token will skip"
	fi
fi

node=tools/e2e/node
if [ -f $node/package-lock.json ]; then
	if ! command -v npm >/dev/null; then
		say "skip: no npm; tests with JavaScript clients will skip"
	elif [ ! -d $node/node_modules ] || [ $node/package-lock.json -nt $node/node_modules/.package-lock.json ]; then
		if (cd $node && npm ci --no-audit --no-fund --loglevel=error); then
			say "installed the JavaScript clients"
		else
			say "skip: npm ci failed; tests with JavaScript clients will skip"
		fi
	fi
fi
exit 0
