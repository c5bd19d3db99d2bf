# Images: their names, and how they are built and get to the nodes. Sourced by deploy.sh.
# shellcheck shell=bash disable=SC2154  # root, tag, registry, profile, build, images, missing are deploy.sh's

# What an image is built from.
sources=(Dockerfile requirements deploy/image src dev/market_dev)

# The commit; with uncommitted changes, also a hash of them.
image_tag() {
  local commit state
  if ! commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null); then
    printf 'dev'
    return
  fi
  state=$(cd "$root" && { git diff HEAD -- "${sources[@]}"; git ls-files --others --exclude-standard -- "${sources[@]}"; } | sha256sum | cut -c1-8)
  if [ "$state" = e3b0c442 ]; then printf '%s' "$commit"; else printf '%s-%s' "$commit" "$state"; fi
}

image_name() { printf '%s' "${registry:+$registry/}$( [ -n "$registry" ] || printf market/ )$1"; }

# Add to `missing` what a build needs and this machine lacks.
need_builder() {
  if [ -n "$profile" ]; then
    command -v minikube >/dev/null || missing+=("minikube itself, which loads the images: https://minikube.sigs.k8s.io/docs/start/")
    return 0
  fi
  [ "$build" = yes ] || return 0
  command -v docker >/dev/null || missing+=("docker, to build the images: https://docs.docker.com/engine/install/")
  ! is_kind || command -v kind >/dev/null || missing+=("kind itself, which loads the images: https://kind.sigs.k8s.io/")
}

provide_images() {
  local image
  if [ -n "$profile" ]; then
    local existing
    existing=$(minikube -p "$profile" image ls)
    for image in "${images[@]}"; do
      if [ "$build" = no ] && grep -qE "(^|/)market/$image:$tag\$" <<<"$existing"; then continue; fi
      step "building market/$image:$tag in minikube"
      build_in_minikube "$image"
    done
    return
  fi
  [ "$build" = yes ] || return 0
  for image in "${images[@]}"; do
    step "building $(image_name "$image"):$tag"
    docker build --quiet --build-arg SERVICE="$image" --build-arg VERSION="$tag" --build-arg REVISION="${tag%%-*}" \
      --tag "$(image_name "$image"):$tag" "$root" >/dev/null || die "$FAILED" "building the image $image failed"
  done
  if is_kind; then
    for image in "${images[@]}"; do kind load docker-image --name "${context#kind-}" "$(image_name "$image"):$tag"; done
  else
    for image in "${images[@]}"; do
      step "pushing $(image_name "$image"):$tag"
      docker push --quiet "$(image_name "$image"):$tag" >/dev/null ||
        die "$FAILED" "pushing the image failed: is $registry right, and are you logged in (docker login)?"
    done
  fi
}

# `minikube image build` passes build arguments differently for each container runtime, and sends the whole folder. So it
# gets a small folder whose Dockerfile has the arguments in it.
build_in_minikube() {
  local folder status=0
  folder=$(mktemp -d)
  mkdir -p "$folder/src" "$folder/dev" "$folder/deploy"
  cp -R "$root/requirements" "$folder/"
  cp -R "$root/deploy/image" "$folder/deploy/"
  cp -R "$root/src/market" "$folder/src/"
  cp -R "$root/dev/market_dev" "$folder/dev/"
  find "$folder" -name __pycache__ -prune -exec rm -rf {} +
  sed -e "s/^ARG SERVICE\$/ARG SERVICE=$1/" -e "s/^ARG VERSION=.*/ARG VERSION=$tag/" -e "s/^ARG REVISION=.*/ARG REVISION=${tag%%-*}/" \
    "$root/Dockerfile" > "$folder/Dockerfile"
  minikube -p "$profile" image build -t "market/$1:$tag" "$folder" > "$folder.log" 2>&1 || status=$?
  # Some versions exit with 0 although the build failed.
  if [ $status != 0 ] || ! minikube -p "$profile" image ls | grep -qE "(^|/)market/$1:$tag\$"; then
    tail -n 20 "$folder.log" >&2
    rm -rf "$folder" "$folder.log"
    die "$FAILED" "building the image $1 in minikube failed; the lines above are the last ones of its output"
  fi
  rm -rf "$folder" "$folder.log"
}
