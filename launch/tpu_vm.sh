#!/usr/bin/env bash
# A TPU VM or pod by queued resources, with gcloud.
#
#   launch/tpu_vm.sh [--dry-run] COMMAND [-- arguments of exit_jax.main]
#
#   create    queue for the TPU                    status   where it is in the queue: ACTIVE means ready
#   install   this repository and its Python       run      exit_jax.main on all workers, detached
#   logs      follow the workers' logs             stop     SIGTERM to the run, which saves and ends
#   collect   copy logs and results back           delete   the TPU and the request; the bill ends here
#
# Settings, from the environment:
#   PROJECT   Google Cloud project (no default)    ZONE      such as us-west4-a (no default)
#   NAME      of the TPU            [exit-jax]     TYPE      accelerator type  [v5litepod-16]
#   RUNTIME   TPU software version  [by TYPE]      SPOT      1 for a pre-emptible one  [0]
#   BUCKET    gs://... for the workdir, mounted on every worker; a pod cannot do without  [none: the VM's disk]
#   RUN       name of the run       [NAME]         WORKER    whose log to follow: all, 0, 1...  [all]
#   REVISION  of git to install     [HEAD]         EXTRAS    of setup.py to install  [tpu,math]

# shellcheck disable=SC2016,SC2088  # remote commands: $ and ~ are for the worker's shell
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
require PROJECT ZONE
NAME="${NAME:-exit-jax}" TYPE="${TYPE:-v5litepod-16}" RUN="${RUN:-${NAME:-exit-jax}}" BUCKET="${BUCKET:-}"
plain_name NAME
plain_name RUN
where=(--project="$PROJECT" --zone="$ZONE")

# A software version fits one generation of chips (https://cloud.google.com/tpu/docs/runtimes).
case "$TYPE" in
  v4-*) default_runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) default_runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) default_runtime=v2-alpha-tpuv5 ;;
  v6e-*) default_runtime=v2-alpha-tpuv6e ;;
  *) default_runtime="" ;;
esac
RUNTIME="${RUNTIME:-$default_runtime}"

workdir="~/runs/$RUN"
if [[ -n $BUCKET ]]; then
  [[ $BUCKET =~ ^gs://[a-z0-9][a-z0-9._-]*/?$ ]] || fail "BUCKET='$BUCKET' is not of the form gs://name"
  BUCKET="${BUCKET%/}"
  workdir="~/bucket/$RUN"
fi

# Run a shell command on workers: on_workers all 'COMMAND' [flag of gcloud...]
on_workers() {
  execute gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2" "${@:3}"
}

# The command that makes a Python of our own (the images' is older than 3.11) and installs the repository.
install_command() {
  printf '%s' 'rm -rf ~/exit_jax && mkdir ~/exit_jax && tar -xzf ~/exit_jax.tar.gz -C ~/exit_jax' \
    ' && curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --python 3.12 ~/exit_jax/.venv' \
    " && ~/.local/bin/uv pip install --python ~/exit_jax/.venv/bin/python -e ~/exit_jax\"[${EXTRAS:-tpu,math}]\""
}

# The command that installs Cloud Storage FUSE where the image lacks it.
fuse_command() {
  local apt='sudo apt-get -o DPkg::Lock::Timeout=300' key=/usr/share/keyrings/cloud.google.asc
  printf '%s' 'command -v gcsfuse || { curl -sSf https://packages.cloud.google.com/apt/doc/apt-key.gpg' \
    " | sudo tee $key > /dev/null && echo \"deb [signed-by=$key] https://packages.cloud.google.com/apt" \
    ' gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list' \
    " && $apt update && $apt install -y gcsfuse; }"
}

# The command that starts the run and returns. Every worker runs it; EXIT_JAX_DISTRIBUTED lets JAX find the others.
run_command() {
  printf '%s' 'mkdir -p ~/runs && '
  # No metadata cache: the workers wait for folders that another worker makes.
  [[ -z $BUCKET ]] || printf '%s' 'mkdir -p ~/bucket && { mountpoint -q ~/bucket || gcsfuse --implicit-dirs' \
    " --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 ${BUCKET#gs://} ~/bucket; } && "
  printf '%s' "cd ~/exit_jax && { EXIT_JAX_DISTRIBUTED=1 nohup .venv/bin/python -m exit_jax.main --workdir $workdir $(quoted "${arguments[@]}")" \
    " >> ~/runs/$RUN.log 2>&1 < /dev/null & echo \$! > ~/runs/$RUN.pid; }"
}

case "$command" in
  create)
    [[ -n $RUNTIME ]] ||
      fail "no software version is known for TYPE='$TYPE': set RUNTIME, or TYPE to v4-N, v5litepod-N, v5p-N or v6e-N"
    spot=()
    [[ ${SPOT:-0} != 1 ]] || spot=(--spot)
    execute gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${where[@]}" \
      --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
      --scopes=https://www.googleapis.com/auth/cloud-platform "${spot[@]}"
    ;;
  status)
    execute gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)'
    ;;
  install)
    pack "${REVISION:-HEAD}"
    execute gcloud compute tpus tpu-vm scp "$root/build/exit_jax.tar.gz" "$NAME:" "${where[@]}" --worker=all
    on_workers all "$(install_command)"
    [[ -z $BUCKET ]] || on_workers all "$(fuse_command)"
    ;;
  run)
    ((${#arguments[@]})) || fail "run needs the arguments of exit_jax.main: $0 run -- --config configs/..."
    # Types of more than 8 chips (v4, v5p: cores) have several hosts, whose disks are apart.
    [[ -n $BUCKET || ! ${TYPE##*-} =~ ^[0-9]+$ || ${TYPE##*-} -le 8 ]] ||
      fail "TYPE='$TYPE' has several hosts, and a checkpoint needs a folder that all of them share: set BUCKET=gs://..."
    on_workers all "$(run_command)"
    ;;
  logs)
    on_workers "${WORKER:-all}" "tail -n 50 -F ~/runs/$RUN.log | sed -u \"s/^/\$HOSTNAME: /\""
    ;;
  stop)
    on_workers all "kill -TERM \$(cat ~/runs/$RUN.pid)"
    ;;
  collect)
    execute mkdir -p "$root/runs/$RUN/logs"
    on_workers all "cat ~/runs/$RUN.log" --output-directory="$root/runs/$RUN/logs"
    if [[ -n $BUCKET ]]; then # its checkpoints stay there: they outlive the TPU, and are large
      execute gcloud storage rsync --recursive --exclude='(.*/)?checkpoints/.*' "$BUCKET/$RUN" "$root/runs/$RUN"
    else
      execute gcloud compute tpus tpu-vm scp --recurse "$NAME:runs/$RUN" "$root/runs" "${where[@]}" --worker=0
    fi
    ;;
  delete)
    execute gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force
    ;;
  *) fail "unknown command '$command'; one of create status install run logs stop collect delete" ;;
esac
