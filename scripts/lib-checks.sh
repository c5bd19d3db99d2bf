# The prerequisites that the cluster and the overlay must meet: each that is missing is added to `missing`. Sourced by deploy.sh.
# shellcheck shell=bash disable=SC2154,SC2034  # profile, overlay, folder, render, missing, ingress_class are deploy.sh's

# Each line: name of the class, and `true` if it is the default.
# shellcheck disable=SC2016  # $ belongs to the templates
classes() {
  cluster get "$1" -o "go-template={{range .items}}{{.metadata.name}} {{with .metadata.annotations}}{{index . \"$2\"}}{{end}}{{\"\\n\"}}{{end}}"
}
# sign_in NAME: the value of a setting in sign-in.env
sign_in() { sed -n "s/^$1=//p" "$folder/sign-in.env"; }
# Wrong settings would make every request of a signed-in caller fail with 401, after a rollout that looks successful.
check_sign_in() {
  local where=deploy/overlays/production/sign-in.env issuer cluster_issuer
  grep -q 'sign-in.env' "$folder/kustomization.yaml" || return 0
  if [ ! -f "$folder/sign-in.env" ]; then
    missing+=("$where: copy sign-in.env.example and name the issuer of the tokens that the shop accepts (docs/security.md)")
    return
  fi
  issuer=$(sign_in MARKET_ISSUER)
  [[ $issuer =~ ^https://[^[:space:]]+$ ]] || missing+=("the issuer: MARKET_ISSUER in $where must be an https URL, got '$issuer'")
  [[ $issuer != *example.com* ]] || missing+=("the issuer: MARKET_ISSUER in $where is still that of the example, $issuer")
  [ -n "$(sign_in MARKET_AUDIENCE)" ] || missing+=("the audience: MARKET_AUDIENCE in $where is missing")
  [[ $(sign_in MARKET_PUBLIC_URL) =~ ^https://[^/[:space:]]+$ ]] ||
    missing+=("the shop's address: MARKET_PUBLIC_URL in $where must be an https URL without a path, got '$(sign_in MARKET_PUBLIC_URL)'")
  [ -n "$(sign_in MARKET_STOREFRONT_CLIENT_ID)" ] || missing+=("the storefront's client: MARKET_STOREFRONT_CLIENT_ID in $where is missing")
  [ -z "$render" ] || return 0
  # The API server says which issuer it is.
  cluster_issuer=$(cluster get --raw /.well-known/openid-configuration 2>/dev/null | sed -n 's/.*"issuer":"\([^"]*\)".*/\1/p') || cluster_issuer=''
  [ -z "$cluster_issuer" ] || [ "$cluster_issuer" = "$(sign_in MARKET_CLUSTER_ISSUER)" ] ||
    missing+=("the cluster's issuer: MARKET_CLUSTER_ISSUER in $where must be $cluster_issuer, got '$(sign_in MARKET_CLUSTER_ISSUER)'")
}
# The ingress class becomes `ingress_class` if it must be named.
check_ingress_class() {
  local found
  found=$(classes ingressclasses ingressclass.kubernetes.io/is-default-class) || found=''
  if [ -z "$found" ]; then
    missing+=("an ingress controller (no IngressClass): ${profile:+minikube addons enable ingress, or }install Traefik, HAProxy or another one from its chart")
  elif ! grep -q ' true$' <<<"$found"; then
    if [ "$(wc -l <<<"$found")" = 1 ]; then ingress_class=${found%% *}
    else
      missing+=("a default ingress class, because there are several: kubectl annotate ingressclass ${found%% *} ingressclass.kubernetes.io/is-default-class=true")
    fi
  fi
}

check_storage_class() {
  local found
  found=$(classes storageclasses storageclass.kubernetes.io/is-default-class) || found=''
  grep -q ' true$' <<<"$found" || missing+=("a default storage class, for the stores' volumes: ${profile:+minikube addons enable default-storageclass storage-provisioner, or }list them with kubectl get storageclass, and annotate one with storageclass.kubernetes.io/is-default-class=true")
}

check_production() {
  local file
  for file in {product,order,inventory,notification,storefront}-service.env cookie-secrets; do
    [ -z "$render" ] && grep -qx '  - secrets' "$folder/kustomization.yaml" && [ ! -f "$folder/secrets/$file" ] || continue
    missing+=("deploy/overlays/production/secrets/$file: copy $file.example and fill it in, or let an operator create the Secrets (docs/operations.md)")
  done
  check_sign_in
  local examples
  examples=$(cd "$folder" && grep -l 'example\.com' config/*.yaml ingress.yaml | tr '\n' ' ') || examples=''
  [ -z "$examples" ] || say "note: these files in deploy/overlays/production still have names of the example, below example.com: ${examples% }" >&2
}

check_namespace() {
  if [ "$(cluster get namespace "$NAMESPACE" --ignore-not-found -o 'jsonpath={.metadata.name}')" ] &&
    [ -z "$(cluster get namespace -l "$OURS" --field-selector "metadata.name=$NAMESPACE" -o name)" ]; then
    missing+=("the name $NAMESPACE: a namespace of that name exists that this script did not create")
  fi
}
