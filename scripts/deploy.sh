#!/usr/bin/env bash
# Create the whole shop in namespace `market` and wait until it is ready. Run it again to continue where it stopped, or to
# roll out a change.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
# shellcheck source=scripts/lib-checks.sh
. "$here/lib-checks.sh"
# shellcheck source=scripts/lib-images.sh
. "$here/lib-images.sh"
# shellcheck source=scripts/lib-wait.sh
. "$here/lib-wait.sh"
# shellcheck source=scripts/lib-render.sh
. "$here/lib-render.sh"

usage() {
  cat <<'TEXT'
scripts/deploy.sh [--overlay base|minikube|production] [--context C] [--build] [--registry R] [--image-tag T] [--timeout S]
                  [--check]
scripts/deploy.sh --render DIR [--overlay O] [--secrets S] [--registry R] [--image-tag T]

Creates the shop in namespace market and waits until it is ready. Running it again changes nothing,
continues where it stopped, or rolls out a change. With --render it only writes the manifests.

  --overlay O     base: with its own stores and the demo catalogue, two pods of each service
                  minikube: the same with one pod each, small limits and a NodePort (the default on minikube)
                  production: the services only; fill in deploy/overlays/production first
  --context C     the kubectl context to use (default: the current one, which is never changed)
  --build         build the images: into minikube or kind, else with Docker and a push to the registry
                  (on minikube they are built in any case if the tag does not exist yet)
  --registry R    where the nodes pull the images from: R/products:T, R/orders:T, ... (not for minikube and kind)
  --image-tag T   default: the commit, with a hash of uncommitted changes if there are any
  --timeout S     time limit for all of it, in seconds (default 600)
  --check         only check the prerequisites, and change nothing
  --render DIR    write the manifests to DIR, a file for each object, for a GitOps repository; no cluster is contacted.
                  Secrets are not among them; it lists those that the shop needs
  --secrets S     what creates the Secrets of the production overlay: external-secrets or sealed-secrets, whose objects
                  (deploy/components/secrets) are then among the manifests, or none (default)

Exit status: 0 ready, 1 something did not become ready, 2 wrong usage, 3 a prerequisite is missing.
TEXT
}

overlay='' build=no registry='' tag='' timeout=600 check=no render='' operator=none
while [ $# -gt 0 ]; do
  case $1 in
    --overlay|--context|--registry|--image-tag|--timeout|--render|--secrets) [ $# -ge 2 ] || wrong "$1 needs a value" ;;
  esac
  case $1 in
    --overlay) overlay=$2; shift 2 ;;
    --context) context=$2; shift 2 ;;
    --build) build=yes; shift ;;
    --check) check=yes; shift ;;
    --registry) registry=${2%/}; shift 2 ;;
    --image-tag) tag=$2; shift 2 ;;
    --timeout) timeout=$2; shift 2 ;;
    --render) render=$2; shift 2 ;;
    --secrets) operator=$2; shift 2 ;;
    -h|--help) usage; exit 0 ;;
    *) wrong "unknown option: $1" ;;
  esac
done
case $overlay in ''|base|minikube|production) ;; *) wrong "--overlay must be base, minikube or production, got $overlay" ;; esac
[[ $timeout =~ ^[1-9][0-9]*$ ]] || wrong "--timeout must be a number of seconds, got $timeout"
case $operator in
  none) ;;
  external-secrets|sealed-secrets)
    [ -n "$render" ] && [ "$overlay" = production ] || wrong "--secrets needs --render and --overlay production" ;;
  *) wrong "--secrets must be none, external-secrets or sealed-secrets, got $operator" ;;
esac
[ -z "$render" ] || [ $build$check = nono ] || wrong "--render goes with neither --build nor --check"

# --- prerequisites: all that are missing, in one message ----------------------------------------------
missing=() ingress_class=''
if [ -n "$render" ]; then
  need_kubectl
  profile=''
else
  need_cluster
  profile=$(minikube_profile) || profile=''
fi
if [ -z "$overlay" ]; then
  if [ -n "$profile" ]; then overlay=minikube; else overlay=base; fi
fi
folder=$root/deploy/overlays/$overlay
[ "$overlay" != base ] || folder=$root/deploy/base
[ -n "$render" ] || say "Market into namespace $NAMESPACE of context $context, overlay $overlay"

[ -n "$tag" ] || tag=$(image_tag)
[ -n "$render$profile" ] || is_kind || [ -n "$registry" ] ||
  missing+=("a registry: name the one that the nodes pull the images from with --registry R (with --build the images are built and pushed there)")
if [ -z "$render" ]; then
  # Gateway API needs no ingress controller.
  grep -q '^  - .*components/gateway$' "$folder/kustomization.yaml" || check_ingress_class
  [ "$overlay" = production ] || check_storage_class
  check_namespace
  need_builder
fi
[ "$overlay" != production ] || check_production
if [ ${#missing[@]} -gt 0 ]; then
  say "Missing prerequisites:" >&2
  printf '  - %s\n' "${missing[@]}" >&2
  exit "$MISSING"
fi
[ $check = no ] || exit 0
[ -n "$render" ] || cluster get --raw /apis/metrics.k8s.io/v1beta1 >/dev/null 2>&1 || [ "$overlay" = minikube ] ||
  step "note: this cluster has no metrics, so the autoscalers stay at their minimum"

# --- images ------------------------------------------------------------------------------------------------
images=(products orders inventory notifications graphql storefront)
[ "$overlay" = production ] || images+=(testbed)
[ -n "$render" ] || provide_images

# --- manifests ---------------------------------------------------------------------------------------------
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A password is generated once and kept; it is never on a command line.
ensure_passwords() {
  local name bytes new=no
  mkdir "$work/passwords"
  # shellcheck disable=SC2016
  inside get secret passwords --ignore-not-found -o 'go-template={{range $name, $value := .data}}{{$name}} {{$value}}{{"\n"}}{{end}}' > "$work/kept"
  while read -r name bytes; do base64 -d <<<"$bytes" > "$work/passwords/$name"; done < "$work/kept"
  while read -r name bytes; do
    [ ! -s "$work/passwords/$name" ] || continue
    head -c "$bytes" /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$work/passwords/$name"
    new=yes
  done <<<'postgresql_products 24
postgresql_inventory 24
redis 24
mongodb_root 24
mongodb_orders 24
mongodb_keyfile 96
storefront_cookies 32'
  if [ $new = yes ]; then
    inside create secret generic passwords --from-file="$work/passwords" --dry-run=client -o yaml > "$work/passwords.yaml"
    cluster label --local -f "$work/passwords.yaml" "$OURS" -o yaml | inside apply -f - >/dev/null
    step "passwords generated, and kept in the Secret passwords"
  fi
}
# The Secrets that the pods use, from the passwords; a hash in their names restarts the pods when one changes.
secrets() {
  local p=$work/passwords to=$work/secrets
  mkdir -p "$to"
  cp "$root/deploy/components/secrets/passwords/kustomization.yaml" "$to/"
  printf 'MARKET_POSTGRES_PASSWORD=%s\nMARKET_REDIS_PASSWORD=%s\n' "$(<"$p/postgresql_products")" "$(<"$p/redis")" > "$to/product-service.env"
  printf 'MARKET_POSTGRES_PASSWORD=%s\n' "$(<"$p/postgresql_inventory")" > "$to/inventory-service.env"
  printf 'MARKET_MONGODB_PASSWORD=%s\n' "$(<"$p/mongodb_orders")" > "$to/order-service.env"
  printf 'PRODUCTS_PASSWORD=%s\nINVENTORY_PASSWORD=%s\n' "$(<"$p/postgresql_products")" "$(<"$p/postgresql_inventory")" > "$to/postgresql.env"
  printf 'ROOT_PASSWORD=%s\nORDERS_PASSWORD=%s\n' "$(<"$p/mongodb_root")" "$(<"$p/mongodb_orders")" > "$to/mongodb.env"
  printf 'requirepass %s\n' "$(<"$p/redis")" > "$to/password.conf"
  cp "$p/mongodb_keyfile" "$to/keyfile"
  cp "$p/storefront_cookies" "$to/cookie-secrets"
  printf 'components: [secrets]\n'
}
# render FOLDER: the overlay's manifests with our images, and with Secrets if the shop has its own stores
render() {
  kubectl kustomize "$1" > "$work/overlay.yaml"
  {
    printf 'namespace: %s\nresources: [overlay.yaml]\nimages:\n' "$NAMESPACE"
    local image
    for image in "${images[@]}"; do
      printf '  - {name: market/%s, newName: %s, newTag: "%s"}\n' "$image" "$(image_name "$image")" "$tag"
    done
    if [ "$1" = "$folder" ]; then
      [ -n "$render" ] || [ "$overlay" = production ] || secrets
      [ -z "$ingress_class" ] || printf 'patches:\n  - target: {kind: Ingress}\n    patch: |-\n      - {op: add, path: /spec/ingressClassName, value: %s}\n' "$ingress_class"
    fi
  } > "$work/kustomization.yaml"
  kubectl kustomize "$work"
}

if [ -n "$render" ]; then
  overlay_with_secrets "$operator"
  render_to "$render"
  exit 0
fi
umask 077

# Each of our objects with its generation, which increases when its specification changes. (`kubectl apply` reports
# unchanged objects as configured, too: it compares texts, without the defaults that the cluster filled in.)
objects() {
  # shellcheck disable=SC2016
  inside get "${KINDS/pods,/}" -l "$OURS" -o 'jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.generation}{"\n"}{end}' | sort
}
cluster apply -f "$root/deploy/base/services/namespace.yaml" >/dev/null
[ "$overlay" = production ] || ensure_passwords
render "$folder" > "$work/all.yaml"
objects > "$work/before"
# Classes cannot be changed, only replaced; pods keep what they have got. Those of an earlier version preempted other pods.
preempting=$(cluster get priorityclasses -l "$OURS" -o 'jsonpath={range .items[?(@.preemptionPolicy!="Never")]}{.metadata.name}{" "}{end}')
# shellcheck disable=SC2086
[ -z "$preempting" ] || cluster delete priorityclass $preempting >/dev/null
cluster apply -f "$work/all.yaml" >/dev/null || die "$FAILED" "the cluster rejected the manifests; see the lines above"
objects > "$work/after"
created=$(join -v 2 "$work/before" "$work/after" | awk '{print $1}')
changed=$(join "$work/before" "$work/after" | awk '$2 != $3 {print $1}')
step "applied: $(grep -c . <<<"$created" || true) created, $(grep -c . <<<"$changed" || true) changed, of $(wc -l < "$work/after")"
for name in $changed; do say "         changed: $name"; done
if [ -s "$work/before" ]; then for name in $created; do say "         created: $name"; done; fi

# --- readiness -----------------------------------------------------------------------------------------------
if [ "$overlay" != production ]; then
  for name in "${STORES[@]}"; do wait_for statefulset "$name"; done
fi
scale_from_zero
for name in "${SERVICES[@]}"; do wait_for deployment "$name"; done
wait_for_replicas

if [ "$overlay" != production ] && [ "$(inside get job demo-catalogue --ignore-not-found -o 'jsonpath={.status.succeeded}')" != 1 ]; then
  inside delete job demo-catalogue --ignore-not-found >/dev/null
  render "$root/deploy/demo" | cluster apply -f - >/dev/null
  wait_for_job demo-catalogue
fi
prune_old "$work/all.yaml"

# --- addresses -------------------------------------------------------------------------------------------------
edge=ingress
grep -q '^kind: Ingress$' "$work/all.yaml" || edge=httproute
# The address of the ingress, or nothing.
address() {
  local i at
  [ $edge = ingress ] || return 0
  for ((i = 0; i < 15; i++)); do
    at=$(inside get ingress market -o 'jsonpath={.status.loadBalancer.ingress[0].ip}{.status.loadBalancer.ingress[0].hostname}')
    [[ $at != *:* ]] || at="[$at]"
    [ -z "$at" ] || { printf '%s' "$at"; return; }
    sleep 1
  done
}
host=$(inside get $edge market -o 'jsonpath={.spec.rules[0].host}{.spec.hostnames[0]}')
at=$(address)
scheme=https
[ $edge = httproute ] || [ -n "$(inside get ingress market -o 'jsonpath={.spec.tls}')" ] || scheme=http
step "ready"
say
if [ -n "$profile" ]; then
  say "GraphQL:   minikube service graphql-service -n $NAMESPACE${profile:+ -p $profile}      opens it in the browser"
  [ -n "$at" ] || at=$(minikube -p "$profile" ip 2>/dev/null || true)
fi
if [ -z "$host$at" ]; then
  say "The ingress has no address yet: kubectl --context $context -n $NAMESPACE get $edge market -w"
  exit 0
fi
url=$scheme://${host:-$at}
say "Shop:      $url/          GraphQL: $url/graphql"
say "REST:      $url/api/product   $url/api/order"
if [ "$overlay" != production ]; then
  say "Mail:      kubectl --context $context -n $NAMESPACE port-forward service/mail 8025     then http://localhost:8025/"
fi
say "An order:"
token='' buyer='"user": "ada", "email": "ada@example.test", '
if [ "$overlay" = production ]; then
  # The buyer is the caller who has signed in.
  # shellcheck disable=SC2016
  token=' -H "authorization: Bearer $TOKEN"' buyer=''
fi
say "  curl -s $url/api/order$token -H 'content-type: application/json' -d '{$buyer\"items\": [{\"product_id\": \"'\$(curl -s '$url/api/product?limit=1' | sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/')'\", \"quantity\": 1}]}'"
