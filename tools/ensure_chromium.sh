#!/usr/bin/env bash
# The report is tested in a real browser. Use one that is here, or install Debian's where we may.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  command -v "$name" > /dev/null && exit 0
done
if command -v apt-get > /dev/null; then
  as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo"
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends chromium > /dev/null
  exit 0
fi
echo "The report's tests need Chromium or Chrome: install one and run this again." >&2
exit 1
