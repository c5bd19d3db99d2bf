# Images: their names, and how they come to where the nodes find them. Sourced by deploy.sh.
# shellcheck shell=bash disable=SC2154  # root, tag, registry, profile, build, images, missing are deploy.sh's

# The commit; where something is not committed, with a mark that changes with it.
image_tag() {
  local commit state
  if ! commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null); then
    printf 'dev'
    return
  fi
  state=$(cd "$root" && { git diff HEAD -- Dockerfile requirements src; git ls-files --others --exclude-standard -- requirements src; } | sha256sum | cut -c1-8)
  if [ "$state" = e3b0c442 ]; then printf '%s' "$commit"; else printf '%s-%s' "$commit" "$state"; fi
}

image_name() { printf '%s' "${registry:+$registry/}$( [ -n "$registry" ] || printf market/ )$1"; }

# Adds to `missing` what a build would need.
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
    local there
    there=$(minikube -p "$profile" image ls)
    for image in "${images[@]}"; do
      if [ "$build" = no ] && grep -qE "(^|/)market/$image:$tag\$" <<<"$there"; then continue; fi
      step "building market/$image:$tag in minikube"
      in_minikube "$image"
    done
    return
  fi
  [ "$build" = yes ] || return 0
  for image in "${images[@]}"; do
    step "building $(image_name "$image"):$tag"
    docker build --quiet --build-arg SERVICE="$image" --build-arg VERSION="$tag" --build-arg REVISION="${tag%%-*}" \
      --tag "$(image_name "$image"):$tag" "$root" >/dev/null || die "$FAILED" "the image $image could not be built"
  done
  if is_kind; then
    for image in "${images[@]}"; do kind load docker-image --name "${context#kind-}" "$(image_name "$image"):$tag"; done
  else
    for image in "${images[@]}"; do
      step "pushing $(image_name "$image"):$tag"
      docker push --quiet "$(image_name "$image"):$tag" >/dev/null ||
        die "$FAILED" "the image could not be pushed: is $registry right, and are you logged in (docker login)?"
    done
  fi
}

# `minikube image build` hands build arguments on in a different way for each container runtime, and sends the whole
# folder: it gets a small folder whose Dockerfile has the arguments in it.
in_minikube() {
  local folder status=0
  folder=$(mktemp -d)
  mkdir -p "$folder/src" "$folder/deploy"
  cp -R "$root/requirements" "$folder/"
  cp -R "$root/deploy/image" "$folder/deploy/"
  cp -R "$root/src/market" "$folder/src/"
  find "$folder" -name __pycache__ -prune -exec rm -rf {} +
  sed -e "s/^ARG SERVICE\$/ARG SERVICE=$1/" -e "s/^ARG VERSION=.*/ARG VERSION=$tag/" -e "s/^ARG REVISION=.*/ARG REVISION=${tag%%-*}/" \
    "$root/Dockerfile" > "$folder/Dockerfile"
  minikube -p "$profile" image build -t "market/$1:$tag" "$folder" > "$folder.log" 2>&1 || status=$?
  # Some versions end with 0 although the build failed.
  if [ $status != 0 ] || ! minikube -p "$profile" image ls | grep -qE "(^|/)market/$1:$tag\$"; then
    tail -n 20 "$folder.log" >&2
    rm -rf "$folder" "$folder.log"
    die "$FAILED" "the image $1 could not be built in minikube; the lines above are the build's last"
  fi
  rm -rf "$folder" "$folder.log"
}
