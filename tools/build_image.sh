#!/usr/bin/env bash
# Build the image of the Dockerfile with buildah, without a container engine, and run a job in it.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
Usage: tools/build_image.sh [OPTION]...

  --variant cpu|cuda    build of torch (default: cpu)
  --platform PLATFORM   linux/amd64 or linux/arm64 (default: this machine's); another machine's
                        needs QEMU's binfmt handlers, and the image is not run here
  --base KIND           pinned: the image that the Dockerfile names; debian: made with debootstrap;
                        auto: pinned, or debian where no registry can be reached (default: auto)
  --tag NAME            name of the image (default: localhost/intraslice)
  --archive FILE        write the image for `docker load` and `podman load`
  --storage DIRECTORY   keep images there (default: a temporary directory, which is removed)
  --no-check            do not run the image
  --dry-run             print the commands instead of running them
  --help                show this text

Needs root, buildah, podman and runc, debootstrap for --base debian, and for the check the .venv of
`make setup`; PYTHON names another. Prints the sizes, and a JSON object as the last line.
TEXT
}

fail() {
  echo "build_image.sh: $*" >&2
  exit 2
}

parse() {
  python=${PYTHON:-.venv/bin/python}
  command -v "$python" >/dev/null || python=python3
  variant=cpu platform='' base=auto tag=localhost/intraslice archive='' storage='' check=1 dry=''
  while (($#)); do
    case $1 in
      --variant | --platform | --base | --tag | --archive | --storage)
        (($# > 1)) || fail "$1 needs a value; see --help"
        printf -v "${1#--}" %s "$2"
        shift
        ;;
      --no-check) check='' ;;
      --dry-run) dry=1 ;;
      --help) usage && exit ;;
      *) fail "unknown option $1; see --help" ;;
    esac
    shift
  done
  [[ $variant == cpu || $variant == cuda ]] || fail "--variant $variant: use cpu or cuda"
  [[ $base =~ ^(auto|pinned|debian)$ ]] || fail "--base $base: use auto, pinned or debian"
}

choose_platform() {
  local machine
  machine=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
  platform=${platform:-linux/$machine}
  [[ $platform == linux/amd64 || $platform == linux/arm64 ]] ||
    fail "--platform $platform: use linux/amd64 or linux/arm64"
  native=1
  if [[ $platform != "linux/$machine" ]]; then
    [[ $base != debian ]] || fail "--base debian: only for this machine's linux/$machine"
    base=pinned check='' native=''
  fi
}

require() {
  ((EUID == 0)) || fail "must run as root: debootstrap and podman with runc need it"
  local program
  for program in buildah "$@"; do
    command -v "$program" >/dev/null || fail "$program is not installed: apt-get install $program"
  done
}

# Print the command in a dry run, run it otherwise.
run() {
  if [[ $dry ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# The storage may lie on a file system that cannot be a layer of overlay, such as overlay itself.
choose_driver() {
  driver=overlay
  [[ ! $dry ]] || return 0
  local probe
  probe=$(mktemp -d -p "$storage")
  mkdir "$probe"/{lower,upper,work,merged}
  if mount -t overlay -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" \
    overlay "$probe/merged" 2>/dev/null; then
    umount "$probe/merged"
  else
    driver=vfs
  fi
  rm -r "$probe"
}

choose_base() {
  base_image=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)}
  if [[ $base == auto ]]; then
    base=pinned
    if [[ ! $dry ]] && ! timeout 120 "${buildah[@]}" pull --platform "$platform" "$base_image"; then
      echo "No registry offers $base_image; the base image is made with debootstrap"
      base=debian
    fi
  fi
  if [[ $base == debian ]]; then
    base_image=localhost/intraslice-base
    run tools/debian_base.sh "$base_image" "${buildah[@]}"
  fi
}

build() {
  local options=() index=https://download.pytorch.org/whl
  mapfile -t options < <("$python" tools/build_pip_config.py "$storage/pip")
  # A wheel of torch that pip has at hand is a build for this machine's CPU: it replaces that index.
  if [[ $variant == cpu && $native ]]; then
    options=(--build-arg "TORCH_INDEX=$index/cpu" "${options[@]}")
  else
    options+=(--build-arg "TORCH_INDEX=$index/cu130")
  fi
  [[ $base == pinned ]] || options+=(--pull-never)
  run "${buildah[@]}" build --isolation=chroot --format docker --platform "$platform" \
    --build-arg "BASE_IMAGE=$base_image" "${options[@]}" --tag "$tag" .
}

main() {
  parse "$@"
  choose_platform
  [[ $dry ]] || require ${check:+podman runc}
  [[ $dry || ! $check ]] || "$python" -c 'import psycopg, torch' 2>/dev/null ||
    fail "the check needs the packages of .venv: run make setup, or use --no-check"
  if [[ ! $storage ]]; then
    storage=$(mktemp -d -p /var/tmp intraslice-image.XXXXXX)
    trap remove_storage EXIT
  fi
  mkdir -p "$storage"
  choose_driver
  local places=(--root "$storage/images" --runroot "$storage/run" --storage-driver "$driver")
  buildah=(buildah "${places[@]}")
  local started=$SECONDS
  choose_base
  build
  local seconds=$((SECONDS - started))
  [[ ! $archive ]] || run "${buildah[@]}" push --quiet "$tag" "docker-archive:$archive:$tag"
  if [[ $check ]]; then
    run env "PYTHONPATH=$PWD" "$python" tools/check_image.py "$tag" \
      --storage "$storage/images" --runroot "$storage/run" --driver "$driver" \
      --build-seconds "$seconds"
  fi
}

remove_storage() {
  umount "$storage/images/$driver" 2>/dev/null || true
  rm -rf --one-file-system "$storage"
}

main "$@"
