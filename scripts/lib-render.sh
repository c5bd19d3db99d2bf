# `deploy.sh --render`: the manifests as files, for a GitOps repository. Sourced by deploy.sh.
# shellcheck shell=bash disable=SC2154  # root, work, folder, overlay, images, tag are deploy.sh's

RENDERED='# Rendered by scripts/deploy.sh --render, which replaces all files that are listed here.'

# Copy the overlay, with `secrets` replaced by the component of that name (or by none), and set `folder` to the copy. The
# values in secrets/ stay where they are.
overlay_with_secrets() {
  local component=''
  [ "$1" = none ] || component="  - ../../components/secrets/$1"
  cp -R "$root/deploy" "$work/deploy"
  rm -f "$work"/deploy/overlays/production/secrets/{*.env,cookie-secrets}
  folder=$work/deploy/${folder#"$root/deploy/"}
  sed "s|^  - secrets\$|$component|" "$folder/kustomization.yaml" > "$work/replaced"
  mv "$work/replaced" "$folder/kustomization.yaml"
}

# The Secrets that pods and the Ingress in this file use, and that nothing in it creates.
expected_secrets() {
  awk '/^kind: /{kind = $2} /^  name: /{if (kind ~ /^(Secret|ExternalSecret|SealedSecret)$/) made[$2] = 1}
    /secretName: /{if (kind == "Certificate") made[$NF] = 1; else used[$NF] = 1} /secret(Key)?Ref:$/{want = 1; next} want && /name: /{used[$NF] = 1; want = 0}
    END {for (name in used) if (!(name in made)) print name}' "$1" | sort
}

# render_to DIR: one file per object, and a kustomization.yaml that lists them.
render_to() {
  local directory=$1 file secrets
  if [ -n "$(ls -A "$directory" 2>/dev/null)" ]; then
    [ "$(head -n 1 "$directory/kustomization.yaml" 2>/dev/null)" = "$RENDERED" ] ||
      die "$USAGE" "$directory is not empty, and was not rendered by this script"
    sed -n 's/^  - \([a-z0-9._-]*\.yaml\)$/\1/p' "$directory/kustomization.yaml" | while read -r file; do rm -f "$directory/$file"; done
  fi
  render "$folder" > "$work/all.yaml"
  ! grep -q '^kind: Secret$' "$work/all.yaml" ||
    die "$FAILED" "the overlay has a Secret, which must not be in plain text in a repository: see deploy/components/secrets"
  mkdir -p "$directory" "$work/objects"
  kubectl kustomize "$work" --output "$work/objects"
  cp "$work"/objects/*.yaml "$directory/"
  {
    printf '%s\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n' "$RENDERED"
    for file in "$work"/objects/*.yaml; do printf '  - %s\n' "${file##*/}"; done
  } > "$directory/kustomization.yaml"
  say "$(find "$work/objects" -type f | wc -l) objects of the overlay $overlay, with the images $(image_name '*'):$tag, written to $directory"
  secrets=$(expected_secrets "$work/all.yaml")
  [ -z "$secrets" ] || say "Something else must create these Secrets: ${secrets//$'\n'/, }"
}
