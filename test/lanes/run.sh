#!/usr/bin/env bash
# Runs the tests of the packages named and says how many ran and were skipped in
# each lane. The state of the host before and after is compared: a test that
# leaves a link, a table, a process or a file fails the run.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export MVM_TEST_LANES=$dir/lanes.txt
: >"$MVM_TEST_LANES"
export MVM_TEST_MVM=$PWD/bin/mvm
go build -o "$dir/lanes" ./test/lanes
go vet ./...
"$dir/lanes" state >"$dir/before"
status=0
go test -json -count=1 -timeout 35m -p 2 "$@" | "$dir/lanes" report "$MVM_TEST_LANES" || status=$?
"$dir/lanes" state >"$dir/after"
# A VM of the user's own that ended meanwhile is no concern of the tests.
left=$(diff "$dir/before" "$dir/after" | grep '^[<>]' | grep -v '^< process' || true)
if [ -n "$left" ]; then
	printf '%s\nFAIL: the tests left or took the above on the host\n' "$left"
	exit 1
fi
exit "$status"
