#!/usr/bin/env bash
# TPUs on Google Kubernetes Engine, with XPK (pip install xpk; needs gcloud, kubectl and docker).
#
#   launch/xpk.sh [--dry-run] COMMAND [-- arguments of exit_jax.main]
#
#   create   a cluster with one slice, the bucket mounted in it as /bucket
#   run      exit_jax.main on every host of the slice    logs         follow its hosts
#   collect  copy results back from the bucket           delete-run   the workload: it saves and ends
#   delete   the cluster; the bill ends here
#
# Settings, from the environment:
#   PROJECT  Google Cloud project (no default)     ZONE      such as us-west4-a (no default)
#   BUCKET   gs://... for the workdir (no default; a container's disk is lost with it)
#   NAME     of the cluster   [exit-jax]           TYPE      of the slice  [v5litepod-16]
#   RUN      of the workload  [NAME]               SPOT      1 for a pre-emptible slice  [0]
#   EXTRAS   of setup.py to install  [tpu,math]    REVISION  of git to run  [HEAD]

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

parse "$@"
require PROJECT ZONE BUCKET
NAME="${NAME:-exit-jax}" TYPE="${TYPE:-v5litepod-16}" RUN="${RUN:-${NAME:-exit-jax}}"
[[ $BUCKET =~ ^gs://[a-z0-9][a-z0-9._-]*/?$ ]] || fail "BUCKET='$BUCKET' is not of the form gs://name"
BUCKET="${BUCKET%/}"
plain_name NAME
plain_name RUN
where=(--project="$PROJECT" --zone="$ZONE")

case "$command" in
  create)
    capacity=--on-demand
    [[ ${SPOT:-0} != 1 ]] || capacity=--spot
    execute xpk cluster create --cluster="$NAME" "${where[@]}" --tpu-type="$TYPE" --num-slices=1 "$capacity" \
      --enable-gcsfuse-csi-driver
    # No metadata cache: the hosts wait for folders that another host makes.
    execute xpk storage attach exit-jax-bucket --cluster="$NAME" "${where[@]}" --type=gcsfuse \
      --bucket="${BUCKET#gs://}" --mount-point=/bucket --readonly=false --auto-mount=true --size=1000 \
      --no-prefetch-metadata --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
    ;;
  run)
    ((${#arguments[@]})) || fail "run needs the arguments of exit_jax.main: $0 run -- --config configs/..."
    pack "${REVISION:-HEAD}"
    execute rm -rf "$root/build/xpk"
    execute mkdir "$root/build/xpk"
    execute tar -xzf "$root/build/exit_jax.tar.gz" -C "$root/build/xpk"
    # exec, for xpk sends its SIGTERM to the shell that holds this command; EXIT_JAX_DISTRIBUTED lets JAX find the others
    job="EXIT_JAX_DISTRIBUTED=1 python -m exit_jax.main --workdir /bucket/$RUN $(quoted "${arguments[@]}")"
    execute xpk workload create --workload="$RUN" --cluster="$NAME" "${where[@]}" --tpu-type="$TYPE" --num-slices=1 \
      --base-docker-image=python:3.12 --script-dir="$root/build/xpk" --termination-grace-period-seconds=300 \
      --command="pip install --quiet -e '.[${EXTRAS:-tpu,math}]' && exec env $job"
    ;;
  logs)
    execute kubectl logs --follow --prefix --tail=50 --max-log-requests=256 --container=jax-tpu \
      --selector="jobset.sigs.k8s.io/jobset-name=$RUN"
    ;;
  collect) # the checkpoints stay in the bucket: they outlive the cluster, and are large
    execute mkdir -p "$root/runs/$RUN"
    execute gcloud storage rsync --recursive --exclude='(.*/)?checkpoints/.*' "$BUCKET/$RUN" "$root/runs/$RUN"
    ;;
  delete-run)
    execute xpk workload delete --workload="$RUN" --cluster="$NAME" "${where[@]}"
    ;;
  delete)
    execute xpk cluster delete --cluster="$NAME" "${where[@]}"
    ;;
  *) fail "unknown command '$command'; one of create run logs collect delete-run delete" ;;
esac
