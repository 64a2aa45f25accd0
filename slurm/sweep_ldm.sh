#!/bin/bash
# An element of a sweep a task of a job array:
#
#   sbatch --array=0-7 slurm/sweep_ldm.sh SWEEP.yaml [KEY=VALUE]...
#   ldm sweep SWEEP.yaml --dry-run            # how many elements there are
#   ldm sweep SWEEP.yaml --report             # the table and the winner, at any time
#
# Tasks share `run.root`: what elements have in common is made by the first, the others wait for it; a searcher chooses
# by what has ended so far. A task that is requeued goes on where it was. `--array=0-7%4` runs four at a time, which a
# searcher needs: of those that begin together none knows what another gave. Tasks that wait hold their nodes; where
# that is dear, the first goes ahead, or one job runs all elements in turn:
#
#   first=$(sbatch --parsable --array=0 slurm/sweep_ldm.sh SWEEP.yaml)
#   sbatch --array=1-7 --dependency=afterany:$first slurm/sweep_ldm.sh SWEEP.yaml
#   LDM_VERB=sweep sbatch slurm/train_ldm.sh SWEEP.yaml
#
# The lines below hold for one task; `slurm/train_ldm.sh`, which does the work, says what each means, and options on
# sbatch's command line go over them.
#SBATCH --job-name=ldm-sweep
#SBATCH --output=%x-%A_%a.out --open-mode=append
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue

set -uo pipefail

if [ $# -lt 1 ]; then
  echo "usage: sbatch --array=0-N slurm/sweep_ldm.sh SWEEP.yaml [KEY=VALUE]..." >&2
  exit 2
fi
if [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
  echo "sweep_ldm.sh: no task of a job array: give sbatch --array=0-N, or LDM_VERB=sweep sbatch slurm/train_ldm.sh $1 for all in one job" >&2
  exit 2
fi
machinery=${LDM_HOME:-$SLURM_SUBMIT_DIR}/slurm/train_ldm.sh # Slurm runs a copy of this file from elsewhere
if [ ! -f "$machinery" ]; then
  echo "sweep_ldm.sh: $machinery is missing: sbatch from the repository, or set LDM_HOME" >&2
  exit 2
fi
export LDM_VERB=sweep # train_ldm.sh runs `python -m jobs.sweep --config "$@"` in place of jobs.train_ldm
# Sourced, not started: Slurm sends its signals to the batch shell, and the traps are train_ldm.sh's.
# shellcheck source=slurm/train_ldm.sh
. "$machinery" "$@" --element "$SLURM_ARRAY_TASK_ID" --if-busy wait
