# Waiting for readiness, and the report when it does not come. Sourced by deploy.sh.
# shellcheck shell=bash disable=SC2154  # timeout is deploy.sh's

# One line per container that cannot run: pod, container, reason, restarts.
# shellcheck disable=SC2016
TROUBLE='{{range .items}}{{$pod := .metadata.name}}{{if not .metadata.deletionTimestamp}}{{range .status.conditions}}{{if and (eq .type "PodScheduled") (eq .status "False")}}{{$pod}} - {{.reason}} 0{{"\n"}}{{end}}{{end}}{{range .status.initContainerStatuses}}{{if .state.waiting}}{{$pod}} {{.name}} {{.state.waiting.reason}} {{.restartCount}}{{"\n"}}{{end}}{{end}}{{range .status.containerStatuses}}{{if .state.waiting}}{{$pod}} {{.name}} {{.state.waiting.reason}} {{.restartCount}}{{"\n"}}{{end}}{{end}}{{end}}{{end}}'

# The pods of NAME that waiting will not make ready.
stuck() {
  inside get pods -l "app.kubernetes.io/name=$1" -o "go-template=$TROUBLE" | while read -r pod container reason restarts; do
    case $reason in
      ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull|CreateContainerConfigError|CreateContainerError|RunContainerError|Unschedulable)
        printf '%s %s %s\n' "$pod" "$container" "$reason" ;;
      CrashLoopBackOff)
        [ "$restarts" -lt 2 ] || printf '%s %s %s\n' "$pod" "$container" "$reason" ;;
    esac
  done
}

# Wait until it is ready, or end the script with the reason. Gives up on a pod that has been stuck for 20 s; on an
# unschedulable one after 60 s, because a node or a volume may be on its way.
wait_for() {
  local kind=$1 name=$2 began=$SECONDS since=0 reported=$SECONDS now patience
  while ! watching rollout status "$kind/$name" --timeout=2s >/dev/null 2>&1; do
    now=$(stuck "$name")
    [ -z "$now" ] || [ "$kind" != statefulset ] || replace_stuck "$name"
    if [ -n "$now" ]; then
      [ $since != 0 ] || since=$SECONDS
      patience=20
      [[ $now != *Unschedulable* ]] || patience=60
      [ $((SECONDS - since)) -lt $patience ] || explain "$kind/$name" "${now%%$'\n'*}"
    else
      since=0
    fi
    [ "$SECONDS" -lt "$timeout" ] || explain "$kind/$name" "$(first_unready "$name") - not ready after $timeout s"
    if [ $((SECONDS - reported)) -ge 15 ]; then
      step "waiting for $name${now:+: ${now%%$'\n'*}}"
      reported=$SECONDS
    fi
    sleep 0.5
  done
  step "$name is ready ($((SECONDS - began)) s)"
}

# A StatefulSet waits for a broken pod to become ready before it replaces it, even if the new version repairs it. So delete
# a pod that is stuck in an older version.
replace_stuck() {
  local pod revision
  revision=$(inside get statefulset "$1" -o 'jsonpath={.status.updateRevision}')
  for pod in $(inside get pods -l "app.kubernetes.io/name=$1,controller-revision-hash!=$revision" -o name); do
    step "$1: ${pod#*/} was stuck in an older version, recreating it"
    inside delete "$pod" --wait=false >/dev/null
  done
}

wait_for_job() {
  local name=$1 began=$SECONDS
  until [ "$(inside get job "$name" -o 'jsonpath={.status.succeeded}')" = 1 ]; do
    if [ -n "$(inside get job "$name" -o 'jsonpath={.status.conditions[?(@.type=="Failed")].reason}')" ] || [ "$SECONDS" -ge "$timeout" ]; then
      explain "job/$name" "$(first_unready "$name") - failed"
    fi
    sleep 0.5
  done
  step "$name is done ($((SECONDS - began)) s)"
}

# The autoscalers' targets, with their minimum number of pods.
minimums() {
  inside get hpa -l "$OURS" -o 'jsonpath={range .items[*]}{.spec.scaleTargetRef.name} {.spec.minReplicas}{"\n"}{end}'
}

# Scale to the minimum what was scaled to 0 pods: that switches the autoscaler off, and the manifest has no `replicas`.
scale_from_zero() {
  local name minimum
  while read -r name minimum; do
    [ "$(inside get deployment "$name" -o 'jsonpath={.spec.replicas}')" = 0 ] || continue
    inside scale "deployment/$name" --replicas="$minimum" >/dev/null
    step "$name was scaled to 0 pods: scaled to its minimum of $minimum"
  done < <(minimums)
}

# Wait until each service has its minimum number of pods. The autoscalers do that within seconds; being late is no reason
# to fail, but a service without any ready pod is.
wait_for_replicas() {
  local i name ready minimum least late none
  least=$(minimums)
  for ((i = 0; i < 60; i++)); do
    late='' none=''
    while read -r name ready; do
      minimum=$(awk -v name="$name" '$1 == name {print $2}' <<<"$least")
      [ "${ready:-0}" -ge "${minimum:-1}" ] || late+=" $name"
      [ "${ready:-0}" -gt 0 ] || none=$name
    done < <(inside get deployments -l "$OURS" -o 'jsonpath={range .items[*]}{.metadata.name} {.status.readyReplicas}{"\n"}{end}')
    [ -n "$late" ] || return 0
    [ "$SECONDS" -lt "$timeout" ] || break
    sleep 1
  done
  if [ -n "$none" ]; then
    explain "deployment/$none" "$(first_unready "$none") - it has no ready pod, and its replicas are $(inside get deployment "$none" -o 'jsonpath={.spec.replicas}')"
  fi
  step "note: fewer pods than the minimum:$late"
}

first_unready() {
  # shellcheck disable=SC2016
  inside get pods -l "app.kubernetes.io/name=$1" -o 'go-template={{range .items}}{{$pod := .metadata.name}}{{range .status.conditions}}{{if and (eq .type "Ready") (eq .status "False")}}{{$pod}}{{"\n"}}{{end}}{{end}}{{end}}' | head -n 1
}

# explain WHAT "POD CONTAINER REASON...": report the pod, its last events and last log lines, and exit. POD may be empty.
explain() {
  local what=$1 pod=${2%% *} container reason claim log line
  read -r container reason <<<"${2#* }"
  {
    say
    [ "$container" != - ] || container=""
    say "FAILED: $what is not ready: ${pod:-no pod}${container:+ $container}: $reason"
    if [ -n "$pod" ]; then
      say "Its last events:"
      inside get events --field-selector "involvedObject.name=$pod" --sort-by=.lastTimestamp \
        -o 'go-template={{range .items}}  {{.reason}}: {{.message}}{{"\n"}}{{end}}' | tail -n 6
      for claim in $(inside get pod "$pod" -o 'jsonpath={.spec.volumes[*].persistentVolumeClaim.claimName}'); do
        [ "$(inside get pvc "$claim" -o 'jsonpath={.status.phase}')" != Bound ] || continue
        say "Its volume claim $claim is not bound:"
        inside get events --field-selector "involvedObject.name=$claim" --sort-by=.lastTimestamp \
          -o 'go-template={{range .items}}  {{.reason}}: {{.message}}{{"\n"}}{{end}}' | tail -n 3
      done
      # After a restart the reason is in the previous container's log.
      log=$({ [ -n "$container" ] && inside logs "$pod" -c "$container" --previous --tail=12; } 2>/dev/null ||
        inside logs "$pod" --all-containers --tail=12 2>/dev/null | tail -n 12 || true)
      if [ -n "$log" ]; then
        say "Its last log lines:"
        while read -r line; do say "  $line"; done <<<"$log"
      else
        say "It logged nothing."
      fi
    else
      inside get events --sort-by=.lastTimestamp -o 'go-template={{range .items}}  {{.involvedObject.name}}: {{.message}}{{"\n"}}{{end}}' | tail -n 6
    fi
    say "See more: kubectl --context $context -n $NAMESPACE describe ${pod:+pod }${pod:-$what}"
    say "Once it is repaired, run the script again: it continues from here."
  } >&2
  exit "$FAILED"
}

# Delete generated ConfigMaps and Secrets that neither the manifests nor any version to roll back to uses.
prune_old() {
  local users name
  users=$(inside get deployments,replicasets,statefulsets,jobs,pods -o yaml)
  for name in $(inside get configmaps,secrets -l "$OURS" -o name); do
    case ${name#*/} in passwords) continue ;; esac
    grep -qE "^  name: ${name#*/}\$" "$1" || grep -qE "(name|secretName): ${name#*/}\$" <<<"$users" || inside delete "$name" >/dev/null
  done
}
