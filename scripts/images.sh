#!/usr/bin/env bash
# The supply chain of the images: digests of what they are built from, builds for several processors, and SBOMs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
# shellcheck source=scripts/lib-images.sh
. "$here/lib-images.sh"

usage() {
  cat <<'TEXT'
scripts/images.sh pin
scripts/images.sh sbom --to DIR [--image-tag T]
scripts/images.sh push --registry R [--image-tag T] [--platforms P]

pin     write the digests that the registries have now beside the tags of the images of others: Python in the
        Dockerfile, and the stores in deploy/ and compose.yaml. Run it again to bring them up to date, and commit them
sbom    write DIR/IMAGE.cdx.json for each image: its name and tag, and the Python packages of its lock, with their hashes
        (CycloneDX)
push    build each image for each processor, push it with SBOM and provenance of the build, and print its digest

  --registry R    R/products:T, R/orders:T, ...
  --image-tag T   default: the commit, with a hash of uncommitted changes if there are any
  --platforms P   default: linux/amd64,linux/arm64

Exit status: 0 done, 1 something failed, 2 wrong usage, 3 a prerequisite is missing.
TEXT
}

case ${1-} in pin|sbom|push) action=$1; shift ;; -h|--help) usage; exit 0 ;; *) wrong "say what to do: pin, sbom or push" ;; esac
registry='' tag='' to='' platforms=linux/amd64,linux/arm64
while [ $# -gt 0 ]; do
  case $1 in -h|--help) ;; *) [ $# -ge 2 ] || wrong "$1 needs a value" ;; esac
  case $action$1 in
    push--registry) registry=${2%/}; shift 2 ;;
    push--platforms) platforms=$2; shift 2 ;;
    push--image-tag|sbom--image-tag) tag=$2; shift 2 ;;
    sbom--to) to=$2; shift 2 ;;
    *-h|*--help) usage; exit 0 ;;
    *) wrong "unknown option for $action: $1" ;;
  esac
done
[ "$action" != push ] || [ -n "$registry" ] || wrong "push needs --registry R"
[ "$action" != sbom ] || [ -n "$to" ] || wrong "sbom needs --to DIR"
[ -n "$tag" ] || tag=$(image_tag)
images=()
for lock in "$root"/requirements/*.lock; do
  lock=${lock##*/}
  [ "$lock" = bench.lock ] || images+=("${lock%.lock}")
done
need() { command -v "$1" >/dev/null || die "$MISSING" "$1 is missing: $2"; }

need_buildx() {
  need docker "https://docs.docker.com/engine/install/"
  docker buildx version >/dev/null 2>&1 || die "$MISSING" "docker's plug-in buildx is missing: https://docs.docker.com/go/buildx/"
}

# Files with the names of images of others, and the names: NAME:TAG, without a digest.
files=("$root/Dockerfile" "$root/compose.yaml")
while read -r file; do files+=("$file"); done < <(grep -rlE --include='*.yaml' '^ +(- )?image: ' "$root/deploy")
others() {
  sed -nE -e 's/^ARG PYTHON_IMAGE=([^@]+).*/\1/p' -e 's/^ +(- )?image: ([^@ ]+:[^@ ]+).*/\2/p' "${files[@]}" | grep -v '^market/' | sort -u
}

pin() {
  need_buildx
  local name file digest changes=() pinned=()
  # All digests before the first change, so that a registry that does not respond changes nothing.
  for name in $(others); do
    # Without `json`, buildx ignores the template and prints a table.
    digest=$(docker buildx imagetools inspect "$name" --format '{{json .Manifest.Digest}}' | tr -d '"') || die "$FAILED" "the digest of $name cannot be read from its registry"
    [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || die "$FAILED" "the registry's digest of $name is '$digest'"
    changes+=(-e "s#(image: |PYTHON_IMAGE=)${name//./\\.}(@sha256:[0-9a-f]+)?\$#\1$name@$digest#")
    pinned+=("$name@$digest")
  done
  # Not local, because the trap runs after the function. Outside of the project, so that nothing is left in it.
  changed=$(mktemp)
  trap 'rm -f "$changed"' EXIT
  for file in "${files[@]}"; do
    sed -E "${changes[@]}" "$file" > "$changed"
    # Not `mv`, which would replace the permissions of the file, too.
    cmp -s "$changed" "$file" || cat "$changed" > "$file"
  done
  printf '%s\n' "${pinned[@]}"
}

sbom() {
  need uv "pip install uv"
  local image
  # Not local, because the trap runs after the function.
  described=$(mktemp)
  trap 'rm -f "$described"' EXIT
  mkdir -p "$to"
  for image in "${images[@]}"; do
    # What the SBOM is about is the image, not the project.
    sed -E "/^\[project\]/,/^\[/ {s/^name = .*/name = \"market-$image\"/; s/^version = .*/version = \"$tag\"/}" "$root/pyproject.toml" > "$described"
    uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --pyproject "$described" \
      --mc-type application --output-reproducible --output-file "$to/$image.cdx.json" "$root/requirements/$image.lock" 2>/dev/null ||
      die "$FAILED" "the SBOM of $image cannot be written"
    say "$to/$image.cdx.json"
  done
}

push() {
  need_buildx
  local image
  # Not local, because the trap runs after the function.
  metadata=$(mktemp)
  trap 'rm -f "$metadata"' EXIT
  for image in "${images[@]}"; do
    docker buildx build --platform "$platforms" --provenance=mode=max --sbom=true --push --metadata-file "$metadata" \
      --build-arg SERVICE="$image" --build-arg VERSION="$tag" --build-arg REVISION="${tag%%-*}" \
      --tag "$(image_name "$image"):$tag" "$root" >&2 || die "$FAILED" "building or pushing the image $image failed"
    say "$(image_name "$image")@$(sed -nE 's/.*"containerimage\.digest": *"(sha256:[0-9a-f]+)".*/\1/p' "$metadata")"
  done
}

"$action"
