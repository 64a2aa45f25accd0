#!/bin/bash
# sbatch [sbatch's options] slurm/train_ldm.sh CONFIG [KEY=VALUE]...
#
# Trains in a Slurm allocation: raises Ray on its nodes, runs `python -m jobs.train_ldm`, takes everything down, returns
# the pipeline's exit code. Nodes, GPUs and CPUs are those of the allocation:
#   sbatch slurm/train_ldm.sh my.yaml                                                   one node, its CPUs
#   sbatch --nodes=32 --gpus-per-node=8 --cpus-per-task=64 slurm/train_ldm.sh my.yaml   256 GPUs
# After a notice (time limit, preemption, drain) the ranks save, the job is queued again and goes on; after scancel they
# save and it ends. What a site sets is in slurm/site.sh (slurm/site.sh.example), all else in docs/operations.md.
# First `ldm preflight` looks for what cannot work (exit code 2, and nothing is queued again); not on a restart, whose
# time is short and whose config ran before, nor with LDM_PREFLIGHT=0.

# What `squeue` shows, and the start of the log's name.
#SBATCH --job-name=ldm
# The log; a job that was queued again has the same number, and without `append` would begin it anew.
#SBATCH --output=%x-%j.out --open-mode=append
# One task a node: it holds Ray, which places the ranks. Nodes and CPUs for a first try; on the command line for more.
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=4
# A site changes: its longest time, or less for a place in the gaps. The job is queued again until it is done.
#SBATCH --time=24:00:00
# SIGUSR1 to this script alone (B:), so many seconds before the time limit: what one step, a preview, a validation and a
# checkpoint take, and 30 more. Also sent at a preemption where the site has SlurmctldParameters=preempt_send_user_signal.
#SBATCH --signal=B:USR1@180
# May be queued again: after a notice by this script, after the loss of a node by Slurm.
#SBATCH --requeue
# A site adds, here or on the command line: --partition, --account, --qos, --mem, --gpus-per-node, --constraint.

set -uo pipefail
# An array's own number is that of its last task too: `scontrol requeue` of it would requeue all tasks
me=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} me=${me:-$SLURM_JOB_ID}
say() { printf '[%(%T)T] slurm: %s\n' -1 "$*"; } # no $(...) in a trap: a `wait` for what ends meanwhile may hang
die() { say "$*"; exit 1; }

# ---- the site: modules, environments, containers --------------------------------------------------------------------
home=${LDM_HOME:-$SLURM_SUBMIT_DIR} # the repository; Slurm runs a copy of this file from elsewhere
[ -f "$home/pipeline/cluster/slurm.py" ] || die "$home is not the repository: sbatch from there, or set LDM_HOME"
LDM_SRUN=() LDM_WRAP=()
[ -x "$home/.venv/bin/python" ] && PATH=$home/.venv/bin:$PATH
site=${LDM_SITE:-$home/slurm/site.sh}
# shellcheck source=/dev/null
if [ -f "$site" ]; then . "$site" || die "$site failed"; fi

export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export RAY_TMPDIR=${LDM_LOCAL:-/tmp}/ldm-job-$SLURM_JOB_ID # on each node its own; short, for the sake of socket paths
scratch=$RAY_TMPDIR.d # of the pipeline itself; a lock that ends with it keeps other jobs from clearing it away
rm -rf "$scratch" && mkdir -m 700 "$scratch" || die "$scratch: cannot be made; set LDM_LOCAL"
exec {lock}>"$scratch/lock" && flock "$lock" && printf %s "$(uname -n)" >&"$lock" # whose it is, as `folders.Claim` says
ulimit -n "$(ulimit -Hn)"                                  # Ray holds a connection from each process to each
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
kill_wait=$(scontrol show config | sed -n 's/^KillWait *= *\([0-9]*\).*/\1/p')

# A command on every node, once; beside others in the same CPUs, with all environment whatever sbatch was told. Not
# --unbuffered: lines of two nodes would run into each other.
each=(srun --overlap --export=ALL --input=none --nodes="${#nodes[@]}" --ntasks="${#nodes[@]}" --ntasks-per-node=1
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind=none "${LDM_SRUN[@]}")
# Signals of Slurm to this script's process group are for this script: srun would answer SIGTERM by killing its step, and
# the tasks must live from their first moment on (`hold` takes the signal over)
own=(setsid) deaf=(bash -c 'trap "" TERM; exec "$@"' -)
here=("${LDM_WRAP[@]}" python -m) # on this node
[ ${#LDM_SRUN[@]} = 0 ] || here=(srun --overlap --export=ALL --input=none --nodes=1 --ntasks=1 --nodelist="${nodes[0]}"
  --cpu-bind=none "${LDM_SRUN[@]}" "${here[@]}")

# ---- notice, and the end --------------------------------------------------------------------------------------------
driver='' ray='' watch='' alarm='' notice='' ended=''
alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }
on_notice() { # save, and be queued again
  [ -z "$notice$ended" ] || return 0
  notice=$1
  say "notice: $1; saving, then queueing again"
  ! alive "$driver" || kill -USR1 "$driver"
}
on_end() { # save, and end: KILL comes in KillWait seconds
  [ -z "$ended" ] || return 0
  ended=yes
  say "SIGTERM: ${kill_wait:-30} s to save and end"
  ! alive "$driver" || kill -TERM "$driver"
  sleep $((${kill_wait:-30} > 8 ? ${kill_wait:-30} - 5 : 3)) & alarm=$!
}
watching() { # ends with a notice that no signal brings to this script, and leaves $scratch/leaving
  local i=0 said=''
  while [ -z "$said" ] && sleep 1; do
    # The steps were sent SIGTERM: a preemption begins, and the site does not send the user's signal
    [ ! -e "$RAY_TMPDIR/notice" ] || said="SIGTERM to the job's steps"
    i=$((i + 1))
    [ "$said$((i % ${LDM_DRAIN_POLL:-30}))" = 0 ] || continue
    said=$(sinfo --noheader --Node --nodes="$SLURM_JOB_NODELIST" --states=drain --format=%n | sort -u)
    said=${said:+drained: ${said//$'\n'/ }}
  done
  [ -z "$said" ] || { say "$said"; touch "$scratch/leaving"; }
}
cleanup() { # idempotent. No new step starts after scancel: the steps themselves clean their nodes
  trap '' USR1 TERM INT
  trap - EXIT
  for process in "$driver" "$watch" "$alarm"; do
    alive "$process" || continue
    kill -KILL "$process"
    wait "$process" 2>/dev/null # quietly
  done
  for _ in 1 2 3; do
    alive "$ray" || break
    kill -USR2 "$ray"
    timeout 20 tail --pid="$ray" -f /dev/null
  done
  ! alive "$ray" || { say "a node does not answer"; kill -KILL "$ray"; }
  rm -rf "$scratch"
  say "taken down"
}
trap cleanup EXIT
trap 'on_notice "SIGUSR1 (time limit, or preemption)"' USR1
trap on_end TERM INT

# ---- ports, Ray -----------------------------------------------------------------------------------------------------
say "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, on ${#nodes[@]} nodes: ${nodes[*]}"
seen=$(timeout "${LDM_JOIN_DEADLINE:-300}" "${each[@]}" "${LDM_WRAP[@]}" python -m pipeline.cluster.slurm look) # words of trouble go to the log
planned=$("${LDM_WRAP[@]}" python -m pipeline.cluster.slurm plan "${nodes[@]}" <<<"$seen") || exit 1
eval "$planned" # RAY_ADDRESS, LDM_BASE_PORT, LDM_RAY_NODES
# Whatever addresses they are given, Ray's ports listen on all interfaces: without this token nobody gets in
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_USAGE_STATS_ENABLED=0 RAY_DEDUP_LOGS=0 RAY_TRAIN_ENABLE_STATE_TRACKING=0
say "Ray's head is $RAY_ADDRESS, ports up to $((LDM_BASE_PORT + 6))"
"${own[@]}" "${each[@]}" --kill-on-bad-exit=1 --output="ray-%j.out" --open-mode=append \
  "${deaf[@]}" "${LDM_WRAP[@]}" python -m pipeline.cluster.slurm hold & ray=$!
watching & watch=$!

# ---- the pipeline ---------------------------------------------------------------------------------------------------
mind() { # VERB CONFIG...: run it, and mind signals and Ray meanwhile; its exit code is left in `code`
  TMPDIR=$scratch "${own[@]}" "${here[@]}" "jobs.$1" --config "${@:2}" & driver=$!
  while alive "$driver"; do # `wait` returns whenever a trap ran
    wait -n "$driver" "$ray" ${watch:+"$watch"} ${alarm:+"$alarm"}
    alive "$driver" || break
    if [ -n "$watch" ] && ! alive "$watch"; then # without a word: Slurm's SIGTERM, which is trapped here as well
      watch=''
      [ ! -e "$scratch/leaving" ] || on_notice "the allocation is going away"
    fi
    if [ -n "$alarm" ] && ! alive "$alarm"; then say "no more time to save"; break; fi
    alive "$ray" || die "Ray ended by itself; its words are in ray-$SLURM_JOB_ID.out"
  done
  if alive "$driver"; then code=137; else wait "$driver"; code=$?; fi
}
[ $# -gt 0 ] || die "sbatch slurm/train_ldm.sh CONFIG [KEY=VALUE]..."
verb=${LDM_VERB:-train_ldm} code=0
if [ -z "$notice$ended" ] && [ "${LDM_PREFLIGHT:-1}${SLURM_RESTART_COUNT:-0}" = 10 ]; then
  case $verb in train_ldm | autoencoder | diffusion | evaluate) # those that train, by a pipeline's config
    keys=() # of what follows the config, its overrides: the options are the pipeline's
    for word in "${@:2}"; do [[ $word = -* || $word != *=* ]] || keys+=("$word"); done
    mind preflight "$1" ${keys[@]+"${keys[@]}"}
    [ "$code" = 0 ] || say "preflight's exit code is $code"
    [ "$code" != 1 ] || { say "that is a bug of preflight's own: going on without it"; code=0; }
  esac
fi
if [ "$code$notice$ended" = 0 ]; then
  mind "$verb" "$@"
  say "the pipeline's exit code is $code"
elif [ "$code" = 0 ]; then
  code=75 # the notice came before there was anything to save
fi
cleanup
if [ -z "$ended" ] && { [ "$code" = 75 ] || { [ -n "$notice" ] && [ "$code" = 138 ]; }; }; then # 138: it died of USR1, early
  say "queueing again"
  trap - TERM # which Slurm sends now: at its default it ends this script at once, not after KillWait
  if scontrol requeue "$me"; then sleep 600 & wait $!
  else say "cannot be queued again: the same sbatch goes on where it was"; fi
fi
exit "$code"
