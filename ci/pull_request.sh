#!/usr/bin/env bash
# Open a pull request with what a scheduled workflow has changed; nothing changed: say so.
#
#   bash ci/pull_request.sh BRANCH TITLE REPORT PATH...
#
# BRANCH: start of the new branch's name; REPORT: a file with the changes as people read them; PATH: what may change.
# Needs git, gh, GH_TOKEN and GITHUB_RUN_NUMBER. Every step that fails ends the script: no green run without its work.
set -euo pipefail

branch="$1-$(date --utc +%Y-%m-%d)-$GITHUB_RUN_NUMBER"
title=$2
report=$3
shift 3

changed=$(git status --porcelain -- "$@")
if [ -z "$changed" ]; then
    echo "Nothing has changed."
    exit 0
fi
body=$(mktemp)
{
    echo "Made, checked and installed by the weekly run; what changed:"
    echo '```'
    head --bytes=50000 "$report"
    echo '```'
} >"$body"
git config user.name "github-actions[bot]"
git config user.email "41898282+github-actions[bot]@users.noreply.github.com"
git switch --create "$branch"
git add -- "$@"
git commit --message "$title" --message "$(head --bytes=2000 "$report")"
git push origin "$branch"
gh pr create --head "$branch" --title "$title" --body-file "$body"
