#!/bin/bash
# Pre-training on machines that SSH reaches. Every machine runs the same command in this folder, under the same path.
# Not run between machines: none were at hand. The tests run it with a stand-in for ssh on one machine. Two workers of the
# real training ran there to their end, and once one of them was killed (exit code 75 after a second).
# Command: configs/cluster/ssh.sh HOSTS CONFIG --data SHARDS --output RUN [--train.epochs 100 …]
# HOSTS is a file with a line for each worker, `host` or `host:port`. Workers on one host need different ports. The first
# worker is the chief. The default port is DUPR_PORT (2222). DUPR_TF is the command on the machines (dupr-tf).
# If one worker fails, the other workers have DUPR_GRACE seconds (120) to end. Then their connections are closed, which
# ends them. Exit code 75: a worker was lost. Run the same command again to resume from the last checkpoint.
set -euo pipefail

refuse() {
  echo "ssh.sh: error: $*" >&2
  exit 2
}

(($# >= 2)) || refuse "expected HOSTS CONFIG --data SHARDS --output RUN, received $# arguments"
hosts=$1
shift
[[ -r $hosts ]] || refuse "expected a file of hosts, received $hosts (cannot be read)"

workers=()
while read -r worker; do
  [[ $worker == *:* ]] || worker=$worker:${DUPR_PORT:-2222}
  [[ $worker =~ ^[A-Za-z0-9][A-Za-z0-9._-]*:[0-9]+$ ]] || refuse "expected host or host:port, received $worker in $hosts"
  workers+=("$worker")
done < <(sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e 's/^[[:space:]]*//' -e '/^$/d' "$hosts")
((${#workers[@]})) || refuse "expected hosts in $hosts, received none"
twice=$(printf '%s\n' "${workers[@]}" | sort | uniq -d | head -n 1)
[[ -z $twice ]] || refuse "expected each worker once, received $twice twice in $hosts. Fix: another port"

list=$(printf '"%s", ' "${workers[@]}")
arguments=$(printf '%q ' "$@")
connections=()

start() { # the index of a worker
  local config command
  config=$(printf '{"cluster": {"worker": [%s]}, "task": {"type": "worker", "index": %d}}' "${list%, }" "$1")
  command="cd $(printf %q "$PWD") && TF_CONFIG=$(printf %q "$config") exec ${DUPR_TF:-dupr-tf} pretrain $arguments"
  # -tt: the worker ends when its connection does
  ssh -tt -o BatchMode=yes "${workers[$1]%:*}" "$command" < /dev/null > >(sed -u "s/\r$//; s/^/[$1] /") 2>&1 &
  connections+=($!)
}

cut() {
  kill ${connections[@]+"${connections[@]}"} 2> /dev/null || true
}

trap 'cut; exit 130' INT
trap 'cut; exit 143' TERM
for index in "${!workers[@]}"; do
  start "$index"
done

status=0
deadline=
while ((${#connections[@]})); do
  running=()
  for connection in "${connections[@]}"; do
    if kill -0 "$connection" 2> /dev/null; then
      running+=("$connection")
      continue
    fi
    ended=0
    wait "$connection" || ended=$?
    if ((ended == 75 && status > 128)); then
      status=75 # the first was killed or disconnected, and this one noticed: start all again
    fi
    if ((ended && !status)); then
      status=$ended
      deadline=$((SECONDS + ${DUPR_GRACE:-120}))
      echo "ssh.sh: a worker ended with exit code $status" >&2
    fi
  done
  connections=(${running[@]+"${running[@]}"}) # bash before 4.4 takes an empty list for an unset name
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
    cut
  fi
  sleep 0.5
done
exit "$status"
