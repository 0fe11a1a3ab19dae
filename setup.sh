# Sourced by train.sh and test.sh: makes .venv on first use, and again where a requirements file or constraints.txt has
# changed. The requirements say what works, constraints.txt which of it is installed here. Sets `python` to the
# environment's interpreter.

stop() {
  echo "error: $*" >&2
  exit 1
}

mistake() {
  echo "error: $*" >&2
  exit 2
}

# set_up requirements.txt [more requirement files]
set_up() {
  local base=${PYTHON:-python3} mark=.venv/.installed sum files=() file
  command -v "$base" >/dev/null || stop "there is no $base; install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"
  "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "$("$base" --version 2>&1) is too old; install Python 3.11 or newer, or name one: PYTHON=python3.12 bash ${0##*/}"
  for file in "$@"; do files+=(-r "$file"); done
  sum=$(cat "$@" constraints.txt | sha256sum)
  exec 9>.venv.lock
  flock 9 # a second start waits until the first has made the environment
  if [ ! -x .venv/bin/python ]; then
    "$base" -c 'import ensurepip, venv' 2>/dev/null || stop "Python's venv is missing; install it: apt-get install python3-venv"
    echo "Making the environment .venv (some minutes, once) ..." >&2
    "$base" -m venv .venv || stop "$base -m venv .venv failed; remove .venv and start again"
  fi
  # One line for each set of files that is installed: train.sh and test.sh need different ones.
  if ! grep -qxF -- "$* $sum" "$mark" 2>/dev/null; then
    echo "Installing $* ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "${files[@]}" || stop "pip could not install $*; see its message above"
    grep -sv -- "^$* " "$mark" >"$mark.new" || true
    echo "$* $sum" >>"$mark.new"
    mv "$mark.new" "$mark"
  fi
  exec 9>&-
  python=.venv/bin/python
}
