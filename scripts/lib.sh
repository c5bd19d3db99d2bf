# Shared by the scripts for Kubernetes. Sourced, never run.
# shellcheck shell=bash
NAMESPACE=market
OURS=app.kubernetes.io/part-of=market
# All kinds that deploy.sh creates (except the namespace) and those that its objects create.
KINDS=deployments.apps,statefulsets.apps,daemonsets.apps,jobs.batch,cronjobs.batch,pods,services,configmaps,secrets,serviceaccounts,persistentvolumeclaims,ingresses.networking.k8s.io,networkpolicies.networking.k8s.io,horizontalpodautoscalers.autoscaling,poddisruptionbudgets.policy
# Those that only a cluster with the Gateway API or cert-manager has: kubectl fails for a kind that it does not know.
OPTIONAL_KINDS=(httproutes.gateway.networking.k8s.io certificates.cert-manager.io issuers.cert-manager.io)
STORES=(postgresql redis mongodb kafka mail)
SERVICES=(inventory-service product-service order-service notification-service graphql-service storefront-service)
# Exit codes: failed rollout, wrong usage, missing prerequisite.
FAILED=1 USAGE=2 MISSING=3
export FAILED USAGE MISSING KINDS OPTIONAL_KINDS OURS STORES SERVICES
context=''

say() { printf '%s\n' "$*"; }
# Prefixed with the seconds since the script began.
step() { printf '%4ds  %s\n' "$SECONDS" "$*"; }
die() {
  local code=$1
  shift
  printf 'error: %s\n' "$*" >&2
  exit "$code"
}
wrong() { die "$USAGE" "$1 (${0##*/} --help)"; }

# Every call names the context: the user's current context is read, never changed.
cluster() { kubectl --context "$context" --request-timeout=30s "$@"; }
inside() { cluster --namespace "$NAMESPACE" "$@"; }
# For calls that wait on purpose, and so must not time out.
watching() { kubectl --context "$context" --namespace "$NAMESPACE" "$@"; }

need_kubectl() {
  command -v kubectl >/dev/null ||
    die "$MISSING" "kubectl is missing. Get it: https://kubernetes.io/docs/tasks/tools/ (minikube includes one: alias kubectl='minikube kubectl --')"
}

# Set `context`, and check that its cluster responds.
need_cluster() {
  need_kubectl
  if [ -z "$context" ]; then
    context=$(kubectl config current-context 2>/dev/null) ||
      die "$MISSING" "no cluster: kubectl has no current context. Start one (minikube start), or choose one with --context C (kubectl config get-contexts lists them)"
  elif ! kubectl config get-contexts "$context" >/dev/null 2>&1; then
    die "$MISSING" "kubectl has no context $context (kubectl config get-contexts)"
  fi
  local response
  response=$(kubectl --context "$context" --request-timeout=10s get --raw /version 2>&1 </dev/null) ||
    die "$MISSING" "the cluster of context $context does not respond: ${response##*$'\n'}"
}

# The minikube profile behind the context; fails for another kind of cluster.
minikube_profile() {
  local name
  name=$(cluster get nodes -o 'jsonpath={.items[0].metadata.labels.minikube\.k8s\.io/name}' 2>/dev/null)
  [ -n "$name" ] && printf '%s' "$name"
}
is_kind() { [[ $context == kind-* ]]; }
