#!/usr/bin/env bash
# `make demo`: from a bare machine to a running microVM that answers.
set -euo pipefail
cd "$(dirname "$0")/../.."
sudo=
[ "$(id -u)" = 0 ] || sudo="sudo"
begin=$(date +%s%N)
last=$begin
phases=()
phase() { # NAME: notes what the time since the last phase was spent on
	local now
	now=$(date +%s%N)
	phases+=("$(printf '%-28s %6d.%01d s' "$1" $(((now - last) / 1000000000)) $((((now - last) / 100000000) % 10)))")
	last=$now
}
step() { printf '\n\033[1m%s\033[0m\n' "==> $*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi; }
run() {
	printf '$ %s\n' "$*"
	"$@"
}
mvm=(bin/mvm)
[ -z "$sudo" ] || mvm=(sudo bin/mvm)

step "1. packages"
packaging/install-packages run
phase "packages"

step "2. build"
make -s build
phase "build"

step "3. set the machine up"
run "${mvm[@]}" init --non-interactive
phase "init"

step "4. a kernel and an image"
run "${mvm[@]}" kernel pull debian
phase "kernel"
run "${mvm[@]}" image build debian
phase "image"

step "5. a VM"
if "${mvm[@]}" vm inspect demo --json >/dev/null 2>&1; then
	echo "removing the demo VM of the last run"
	run "${mvm[@]}" vm rm --force demo
fi
run "${mvm[@]}" vm create demo --image debian --wait=ssh
phase "create until SSH answers"

step "6. it answers"
run "${mvm[@]}" ssh demo -c 'uname -a'
run "${mvm[@]}" vm ls
phase "ssh and ls"

printf '\nWhat each phase took:\n'
printf '  %s\n' "${phases[@]}"
printf '  %-28s %6d s\n' "in all" $((($(date +%s%N) - begin) / 1000000000))
cat <<END

The VM 'demo' runs.
  log in:  ${mvm[*]} ssh demo
  stop:    ${mvm[*]} vm stop demo
  remove:  ${mvm[*]} vm rm demo
  and what it has set up on this host:  ${mvm[*]} host reset
END
