#!/usr/bin/env bash
# A Ray cluster for the length of one Slurm job, and one igdit command on it.
#
#   sbatch --nodes=4 --gpus-per-node=1 --cpus-per-task=8 --time=24:00:00 cluster/slurm.sh \
#     study digits --yes --experiment.resources.use-gpu
#
# Submitted again, it resumes. From the project's folder, with the environment of `make setup` in it
# (or IGDIT_PYTHON). IGDIT_HOME is a folder that all nodes see.
#SBATCH --job-name=igdit
#SBATCH --ntasks-per-node=1
#SBATCH --output=igdit-%j.log
# Slurm tells this script of the end of its time 90 seconds before it kills.
#SBATCH --signal=B:TERM@90
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "slurm.sh needs the words of an igdit command, such as: study digits --yes" >&2
  exit 2
fi
: "${IGDIT_HOME:?IGDIT_HOME must be a folder that all nodes see}"

python="${IGDIT_PYTHON:-$PWD/.venv/bin/python}"
ray=("$python" -m ray.scripts.scripts)
port="${IGDIT_RAY_PORT:-6379}"
head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
head_address="$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --ip-address)"
head_address="${head_address%% *}"
gpus="${SLURM_GPUS_ON_NODE:-0}"
cpus="${SLURM_CPUS_PER_TASK:-1}"

# A token of this job alone, which only its user reads: others on these nodes do not get in.
umask 077
private="$IGDIT_HOME/slurm/$SLURM_JOB_ID"
mkdir -p "$private"
"$python" -c 'import secrets; print(secrets.token_hex(32), end="")' > "$private/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/token"
export RAY_USAGE_STATS_ENABLED=0 RAY_TRAIN_METRICS_ENABLED=0 RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.5

pids=()
finish() {
  # Ends the Ray of this job only; `ray stop` would end other jobs' on shared nodes as well.
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2> /dev/null || true; done
  wait || true
  rm -rf "$private"
}
trap finish EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head_node" --overlap \
  "${ray[@]}" start --head --block --node-ip-address="$head_address" --port="$port" \
  --dashboard-host=127.0.0.1 --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats \
  --temp-dir="${IGDIT_RAY_TMP:-/tmp/ray-$SLURM_JOB_ID}" &
pids+=("$!")

until "${ray[@]}" health-check --address "$head_address:$port" > /dev/null 2>&1; do
  kill -0 "${pids[0]}" || { echo "Ray's head did not start" >&2; exit 1; }
  sleep 2
done

workers=$((SLURM_JOB_NUM_NODES - 1))
if ((workers > 0)); then
  srun --nodes="$workers" --ntasks="$workers" --exclude="$head_node" --overlap \
    "${ray[@]}" start --block --address="$head_address:$port" \
    --num-cpus="$cpus" --num-gpus="$gpus" &
  pids+=("$!")
fi
# Else a command that asks for more workers than have come would be refused.
until [[ "$("${ray[@]}" list nodes --address "$head_address:$port" --filter state=ALIVE \
  --format json | grep -o '"node_id"' | wc -l)" -ge "$SLURM_JOB_NUM_NODES" ]]; do
  sleep 2
done

# The driver runs on this node; it handles SIGTERM like Ctrl-C and stops its workers.
RAY_ADDRESS="$head_address:$port" "$python" -m pipelines "$@" &
driver="$!"
trap 'kill -TERM "$driver" 2> /dev/null || true' TERM INT
status=0
wait "$driver" || status="$?"
# A signal ends the first wait before the driver has ended.
while kill -0 "$driver" 2> /dev/null; do wait "$driver" || status="$?"; done
exit "$status"
