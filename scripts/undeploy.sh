#!/usr/bin/env bash
# Remove all that deploy.sh created, and only that, and wait until it is gone. Succeeds if there is nothing to remove.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

usage() {
  cat <<'TEXT'
scripts/undeploy.sh [--keep-data] [--yes] [--context C] [--timeout S]

Removes the shop from namespace market, with its data, and waits until it is gone.

  --keep-data   the namespace, the volume claims and the Secret with the passwords stay: the next deploy finds its data
  --yes         confirm the removal: required outside minikube and kind
  --context C   the kubectl context to use (default: the current one, which is never changed)
  --timeout S   time limit, in seconds (default 300)

Exit status: 0 removed (or nothing to remove), 1 not removed in time, 2 wrong usage, 3 no cluster, or --yes is missing.
TEXT
}

keep=no yes=no timeout=300
while [ $# -gt 0 ]; do
  case $1 in --context|--timeout) [ $# -ge 2 ] || wrong "$1 needs a value" ;; esac
  case $1 in
    --keep-data) keep=yes; shift ;;
    --yes|-y) yes=yes; shift ;;
    --context) context=$2; shift 2 ;;
    --timeout) timeout=$2; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    *) wrong "unknown option: $1" ;;
  esac
done
[[ $timeout =~ ^[1-9][0-9]*$ ]] || wrong "--timeout must be a number of seconds, got $timeout"
need_cluster

if [ -z "$(cluster get namespace "$NAMESPACE" --ignore-not-found -o name)" ]; then
  say "Nothing to remove: context $context has no namespace $NAMESPACE."
  exit 0
fi
[ -n "$(cluster get namespace -l "$OURS" --field-selector "metadata.name=$NAMESPACE" -o name)" ] ||
  die "$MISSING" "the namespace $NAMESPACE of context $context was not created by deploy.sh: nothing is removed"

# Objects that neither deploy.sh nor the cluster itself created, and that no other object owns.
others() {
  # shellcheck disable=SC2016
  inside get "$KINDS" -o 'go-template={{range .items}}{{$ours := false}}{{with .metadata.labels}}{{if eq (or (index . "app.kubernetes.io/part-of") "-") "market"}}{{$ours = true}}{{end}}{{end}}{{if and (not $ours) (not .metadata.ownerReferences)}}{{.kind}}/{{.metadata.name}}{{"\n"}}{{end}}{{end}}' |
    grep -vxE 'ConfigMap/kube-root-ca.crt|ServiceAccount/default|ConfigMap/istio-ca-root-cert|ConfigMap/openshift-service-ca.crt' || true
}
foreign=$(others)
claims=$(inside get persistentvolumeclaims -l "$OURS" -o name | wc -l)
say "Context:    $context"
if [ $keep = yes ]; then
  say "Removes:    the shop in namespace $NAMESPACE; the namespace, $claims volume claims and the passwords stay"
elif [ -n "$foreign" ]; then
  say "Removes:    what deploy.sh created in namespace $NAMESPACE, with $claims volumes and their data; the namespace stays, because it has other objects:"
  say "            $(tr '\n' ' ' <<<"$foreign")"
else
  say "Removes:    namespace $NAMESPACE with all its objects, including $claims volumes and their data"
fi
if [ $yes = no ] && ! is_kind && ! minikube_profile >/dev/null; then
  die "$MISSING" "this is neither minikube nor kind: confirm the removal with --yes"
fi

volumes() { cluster get persistentvolumes -o "jsonpath={range .items[?(@.spec.claimRef.namespace==\"$NAMESPACE\")]}{.metadata.name} {.spec.persistentVolumeReclaimPolicy}{\"\\n\"}{end}"; }
# Seconds left until the time-out, at least one.
remaining() { echo $((timeout > SECONDS ? timeout - SECONDS : 1)); }
all_gone() { [ -z "$(inside get "$1" -l "$OURS" -o name)" ]; }

# The kinds outside of namespaces.
for kind in clusterrolebindings.rbac.authorization.k8s.io priorityclasses.scheduling.k8s.io; do
  [ -n "$(cluster get "$kind" -l "$OURS" -o name 2>/dev/null || true)" ] || continue
  cluster delete "$kind" -l "$OURS" --ignore-not-found | sed 's/^/  /'
done

if [ $keep = yes ] || [ -n "$foreign" ]; then
  work=horizontalpodautoscalers.autoscaling,ingresses.networking.k8s.io,deployments.apps,statefulsets.apps,cronjobs.batch,jobs.batch
  rest=services,configmaps,serviceaccounts,networkpolicies.networking.k8s.io,poddisruptionbudgets.policy
  known=$(cluster api-resources --namespaced -o name 2>/dev/null || true)
  for kind in "${OPTIONAL_KINDS[@]}"; do
    if grep -qx "$kind" <<<"$known"; then work=$kind,$work; fi
  done
  watching delete "$work" -l "$OURS" --wait=true --timeout="$(remaining)s" --ignore-not-found | sed 's/^/  /'
  until all_gone pods; do
    [ "$SECONDS" -lt "$timeout" ] || die "$FAILED" "pods still exist after $timeout s: kubectl --context $context -n $NAMESPACE get pods"
    sleep 1
  done
  [ $keep = yes ] || rest+=,persistentvolumeclaims,secrets
  watching delete "$rest" -l "$OURS" --wait=true --timeout="$(remaining)s" --ignore-not-found | sed 's/^/  /'
  if [ $keep = yes ]; then
    # The Secrets with a hash in their names are generated from the passwords at the next deploy.
    for name in $(inside get secrets -l "$OURS" -o name); do
      [ "$name" = secret/passwords ] || inside delete "$name" | sed 's/^/  /'
    done
    step "removed; kept: namespace $NAMESPACE, Secret passwords, $(inside get persistentvolumeclaims -l "$OURS" -o name | tr '\n' ' ')"
    exit 0
  fi
else
  kinds=$(inside get "$KINDS" -l "$OURS" -o 'jsonpath={range .items[*]}{.kind}{"\n"}{end}' | sort | uniq -c | awk '{printf "%s%d %s", sep, $1, $2; sep = ", "}')
  # Pods first, so that every process shuts down in order before its network policies and Secrets are deleted.
  watching delete horizontalpodautoscalers,deployments,statefulsets,cronjobs,jobs --all --wait=true --timeout="$(remaining)s" >/dev/null
  watching wait pods --all --for=delete --timeout="$(remaining)s" >/dev/null 2>&1 || true
  cluster delete namespace "$NAMESPACE" --wait=false >/dev/null
  while [ -n "$(cluster get namespace "$NAMESPACE" --ignore-not-found -o name)" ]; do
    if [ "$SECONDS" -ge "$timeout" ]; then
      cluster get namespace "$NAMESPACE" -o 'jsonpath={range .status.conditions[*]}{.type}: {.message}{"\n"}{end}' >&2
      die "$FAILED" "the namespace still exists after $timeout s; the lines above say why"
    fi
    sleep 0.5
  done
  step "removed: namespace $NAMESPACE with $kinds"
fi
until [ -z "$(volumes | grep -v ' Retain$' || true)" ]; do
  [ "$SECONDS" -lt "$timeout" ] || die "$FAILED" "volumes still exist after $timeout s: kubectl --context $context get persistentvolumes"
  sleep 0.5
done
retained=$(volumes)
[ -z "$retained" ] || say "Kept because of their reclaim policy (Retain), delete them yourself: $(awk '{printf "%s ", $1}' <<<"$retained")"
step "done: all removed, volumes too"
